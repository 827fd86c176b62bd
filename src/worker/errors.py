"""Every way a job or a start can fail, as one tree; only `serve` turns it into a reply.

WorkerError
|-- BadRequest            the caller can fix it; the same input fails again
|   |-- InvalidInput          INVALID_INPUT
|   |-- UnsupportedTask       UNSUPPORTED_TASK
|   |-- ModelNotServed        MODEL_NOT_SERVED
|   |-- ImageFetchRefused     IMAGE_FETCH_REFUSED
|   |-- ImageTooLarge         IMAGE_TOO_LARGE
|   |-- ImageUnreadable       IMAGE_UNREADABLE
|   `-- OutputTooLarge        OUTPUT_TOO_LARGE
|-- Transient             the same input may work later or elsewhere
|   |-- ImageFetchFailed      IMAGE_FETCH_FAILED
|   |   `-- ImageUnavailable      IMAGE_FETCH_FAILED    (final: for the caller to fix)
|   |-- DeliveryFailed        DELIVERY_FAILED
|   |   |-- DeliveryRefused       DELIVERY_FAILED       (final: for the caller to fix)
|   |   `-- BucketUnusable        DELIVERY_FAILED       (final: for the operator to fix)
|   |-- DeadlineExceeded      DEADLINE_EXCEEDED
|   |-- CudaOutOfMemory       CUDA_OUT_OF_MEMORY
|   |-- DeviceLost            DEVICE_LOST           (fatal)
|   `-- WorkerNotReady        WORKER_NOT_READY
`-- Fault                 for us or the operator to fix
    |-- BadPicture            BAD_PICTURE
    |-- BadAudio              BAD_AUDIO
    |-- WeightsUnavailable    WEIGHTS_UNAVAILABLE
    |   `-- HubUnreachable        WEIGHTS_UNAVAILABLE   (a retry may succeed)
    |-- VolumeFull            VOLUME_FULL
    |-- LoraNotApplied        LORA_NOT_APPLIED
    |   |-- LoraRefused           LORA_NOT_APPLIED      (for the caller to fix)
    |   `-- LoraFetchFailed       LORA_NOT_APPLIED      (a retry may succeed)
    |-- InvalidSettings       WORKER_NOT_READY
    |   `-- UnfitHost         WORKER_NOT_READY      (this host only)
    |-- StartFailed           WORKER_NOT_READY
    `-- Internal              INTERNAL
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

ErrorType = Literal["bad_request", "transient", "internal"]


@dataclass(frozen=True, slots=True)
class Detail:
    """One fault of an input: the field as the caller wrote it and what is wrong with it."""

    field: str
    message: str


class WorkerError(Exception):
    """Fail a job or a start, with a message that may be shown to the caller.

    The message never contains a path, a host name, a token or an internal address. `warnings` were
    collected before the failure and may explain it.
    """

    code: ClassVar[str]
    error_type: ClassVar[ErrorType]
    retryable: ClassVar[bool] = False
    fatal: ClassVar[bool] = False

    def __init__(
        self, message: str, *, details: Sequence[Detail] = (), warnings: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.warnings = tuple(warnings)


class BadRequest(WorkerError):
    """The caller can fix it; the same input fails again."""

    error_type = "bad_request"


class Transient(WorkerError):
    """The same input may work later or on another worker; final kinds override `retryable`."""

    error_type: ClassVar[ErrorType] = "transient"
    retryable = True


class Fault(WorkerError):
    """For us or the operator to fix."""

    error_type: ClassVar[ErrorType] = "internal"


class InvalidInput(BadRequest):
    """The job's input breaks the contract; `details` lists every fault."""

    code = "INVALID_INPUT"


class UnsupportedTask(BadRequest):
    """No served model can do the task."""

    code = "UNSUPPORTED_TASK"


class ModelNotServed(BadRequest):
    """This worker does not serve the requested model."""

    code = "MODEL_NOT_SERVED"


class ImageFetchRefused(BadRequest):
    """The address or scheme of a URL is not allowed."""

    code = "IMAGE_FETCH_REFUSED"


class ImageTooLarge(BadRequest):
    """A picture has more bytes or pixels than the limits allow."""

    code = "IMAGE_TOO_LARGE"


class ImageUnreadable(BadRequest):
    """The bytes are not a complete PNG, JPEG, WEBP, GIF, AVIF or HEIC picture."""

    code = "IMAGE_UNREADABLE"


class OutputTooLarge(BadRequest):
    """The reply would exceed what RunPod delivers."""

    code = "OUTPUT_TOO_LARGE"


class ImageFetchFailed(Transient):
    """The site of a reference picture did not deliver it."""

    code = "IMAGE_FETCH_FAILED"


class ImageUnavailable(ImageFetchFailed):
    """The site of a reference picture will not deliver it, however often it is requested."""

    error_type = "bad_request"
    retryable = False


class DeliveryFailed(Transient):
    """The bucket or presigned URL did not accept the picture."""

    code = "DELIVERY_FAILED"


class DeliveryRefused(DeliveryFailed):
    """The caller's own store will not accept the picture, however often it is sent."""

    error_type = "bad_request"
    retryable = False


class BucketUnusable(DeliveryFailed):
    """The operator's bucket will not accept the picture, however often it is sent."""

    error_type = "internal"
    retryable = False


class DeadlineExceeded(Transient):
    """The job ran past JOB_DEADLINE_S."""

    code = "DEADLINE_EXCEEDED"


class CudaOutOfMemory(Transient):
    """The device has too little memory for this job."""

    code = "CUDA_OUT_OF_MEMORY"


class DeviceLost(Transient):
    """The device's context is gone; this process must end."""

    code = "DEVICE_LOST"
    fatal = True


class WorkerNotReady(Transient):
    """This start failed or has not finished; the message says why."""

    code = "WORKER_NOT_READY"


class BadPicture(Fault):
    """The model's picture is NaN, or all its pixels are equal."""

    code = "BAD_PICTURE"


class BadAudio(Fault):
    """The model's speech is NaN or silent, or it did not end after several attempts."""

    code = "BAD_AUDIO"


class WeightsUnavailable(Fault):
    """The weights cannot be obtained; the message says what to do."""

    code = "WEIGHTS_UNAVAILABLE"


class HubUnreachable(WeightsUnavailable):
    """The hub did not deliver this time; a later start may succeed."""

    retryable = True


class VolumeFull(Fault):
    """There is too little disk space; the message says how much is missing."""

    code = "VOLUME_FULL"


class LoraNotApplied(Fault):
    """A LoRA is incomplete or not a plain LoRA, or a module of it matches no weight."""

    code = "LORA_NOT_APPLIED"


class LoraRefused(LoraNotApplied):
    """A caller's LoRA cannot be fetched or applied, however often it is requested."""

    error_type = "bad_request"


class LoraFetchFailed(LoraNotApplied):
    """A LoRA did not arrive this time."""

    error_type = "transient"
    retryable = True


class InvalidSettings(Fault):
    """The environment is wrong; `details` lists every variable."""

    code = "WORKER_NOT_READY"


class UnfitHost(InvalidSettings):
    """This machine cannot serve the model, whatever is set; another one may."""

    code = "WORKER_NOT_READY"


class StartFailed(Fault):
    """This start failed, and the next one will for the same reason; the message says why."""

    code = "WORKER_NOT_READY"


class Internal(Fault):
    """A bug in the worker; the log has the details under the reference id in the message."""

    code = "INTERNAL"
