"""The environment, read once into one frozen value; the only file that knows `os.environ`."""

import ipaddress
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from worker import log
from worker.errors import Detail, InvalidSettings

MB: Final = 1_000_000
VOLUME: Final = Path("/runpod-volume")
MAX_PORT: Final = 65535
BYTES: Final = re.compile(r"([0-9]{1,9}) ?(kb|mb|gb)", re.IGNORECASE)
UNITS: Final = {"KB": 1000, "MB": MB, "GB": 1000 * MB}

Network = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int]


def _words(value: Any) -> Any:
    return (
        tuple(w.strip() for w in value.split(",") if w.strip()) if isinstance(value, str) else value
    )


def _networks(value: Any) -> Any:
    """Read "127.0.0.0/8:8080,[::1]/128:80" as (network, port) pairs."""
    networks: list[Network] = []
    for word in _words(value):
        if not isinstance(word, str):
            return value
        cidr, _, port = word.rpartition(":")
        try:
            network = ipaddress.ip_network(cidr.replace("[", "").replace("]", ""))
        except ValueError:
            network = None
        if network is None or not port.isdecimal() or not 0 < int(port[:6]) <= MAX_PORT:
            raise ValueError('must be a list of "CIDR:port", as in 127.0.0.0/8:8080')
        networks.append((network, int(port)))
    return tuple(networks)


def _bytes(value: Any) -> Any:
    """Read "20MB" as 20,000,000."""
    match = BYTES.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) * UNITS[match[2].upper()] if match else value


def _steps(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or len(set(value)) < len(value) or not all(2 <= n <= 100 for n in value):  # noqa: PLR2004 - the input's own limits
        raise ValueError("must be one or more different counts of 2 to 100, as in 8,4")
    return value


def _address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+[^\s@]*", value, re.IGNORECASE):
        raise ValueError("must be an https:// address without a user name")
    return value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Counts = Annotated[tuple[int, ...], BeforeValidator(_words), AfterValidator(_steps)]
Bytes = Annotated[int, BeforeValidator(_bytes)]
Address = Annotated[str, AfterValidator(_address)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_networks)]
Precision = Annotated[Literal["auto", "bf16", "8bit", "4bit", "fp32"], BeforeValidator(_lower)]


def _named(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class Settings(BaseModel):
    """What the operator sets; a field is the variable of the same name in upper case.

    Values ending in `_bytes` are bytes (a plain number, or one with KB, MB or GB), in `_gb` 10^9
    bytes, in `_s` seconds.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True, allow_inf_nan=False
    )

    model: Words = Field((), validation_alias=_named("MODEL", "MODEL_ID"))
    model_revision: str | None = None
    model_path: Path | None = None
    model_dir: Path | None = Field(None, validation_alias=_named("MODEL_DIR", "QWEN_HOME"))
    hf_token: SecretStr | None = None
    hf_endpoint: Address | None = None
    precision_mode: Precision = "auto"
    use_lightning_lora: bool = True
    lightning_steps: Counts = (8,)
    lightning_fused: bool = False

    download_workers: int = Field(8, ge=1, le=64)
    download_retries: int = Field(5, ge=0, le=100)
    download_stall_s: float = Field(60, gt=0)
    min_storage_free_gb: float = Field(2, ge=0)
    volume_size_gb: float | None = Field(None, gt=0)
    runpod_cache_dir: Path = VOLUME / "huggingface-cache" / "hub"
    verify: Literal["sizes", "full"] = "sizes"
    keep_source_weights: bool = False

    max_pixels: int | None = Field(None, ge=64 * 64)
    max_input_images: int = Field(3, ge=1, le=3)
    max_image_bytes: Bytes = Field(20 * MB, ge=1024)
    max_image_pixels: int = Field(50_000_000, ge=256 * 256)
    max_images_per_request: int = Field(4, ge=1, le=4)
    max_reply_bytes: Bytes = Field(18 * MB, ge=1024)
    allowed_image_hosts: Words = ()
    allow_http_images: bool = False
    allowed_image_networks: Networks = ()
    fetch_nameservers: Words = ()
    fetch_connect_s: float = Field(5, gt=0)
    fetch_total_s: float = Field(20, gt=0)
    job_deadline_s: float = Field(0, ge=0)

    bucket_endpoint_url: Address | None = None
    bucket_access_key_id: SecretStr | None = None
    bucket_secret_access_key: SecretStr | None = None
    bucket_name: str | None = None
    bucket_prefix: str = ""
    bucket_region: str | None = None
    bucket_url_ttl_s: int = Field(7 * 24 * 3600, ge=60, le=7 * 24 * 3600)

    prefetch: bool = False
    png_metadata: bool = True
    response_compat: Literal["output_image_base64", "image", "image_base64", "image_url"] | None = (
        None
    )
    strict_input: bool = False
    refresh_worker: bool = False
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = (
        Field("INFO", validation_alias=_named("LOG_LEVEL", "RUNPOD_LOG_LEVEL"))
    )
    log_prompts: bool = False

    @property
    def on_platform(self) -> bool:
        """Whether this process was started by RunPod (the SDK's own test: a job-take address)."""
        return self.runpod_webhook_get_job is not None

    runpod_webhook_get_job: str | None = None

    @property
    def home(self) -> Path:
        """Where bundles and weights are kept: MODEL_DIR, else the volume, else a cache folder."""
        if self.model_dir is not None:
            return self.model_dir
        if VOLUME.is_dir():
            return VOLUME / "models"
        return Path(tempfile.gettempdir()) / "worker-models"


def where_we_run() -> Settings:
    """Read only what tells whether this is the platform: for a start whose environment is wrong."""
    return read({name: os.environ.get(name, "") for name in ("RUNPOD_WEBHOOK_GET_JOB",)})


def variables() -> tuple[tuple[str, ...], ...]:
    """Return every variable with its aliases, in the order of the fields."""
    names: list[tuple[str, ...]] = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = (
            tuple(map(str, alias.choices)) if isinstance(alias, AliasChoices) else (name.upper(),)
        )
        names.append(choices)
    return tuple(names)


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment (or a mapping like it); empty values count as not set.

    The secrets in it are kept out of the log from here on. Raises InvalidSettings naming every
    wrong variable at once, without their values.
    """
    given = os.environ if environ is None else environ
    known: dict[str, str] = {}
    written: dict[str, str] = {}  # the variable that was set, by the name pydantic reports
    for name, names in zip(Settings.model_fields, variables(), strict=True):
        key = names[0] if len(names) > 1 else name
        for variable in names:
            if given.get(variable, "").strip():
                known[key], written[key] = given[variable].strip(), variable
                break
    details: list[Detail] = []
    try:
        settings = Settings.model_validate(known)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False, include_context=False):
            key = str(fault["loc"][0])
            known.pop(key, None)
            details.append(Detail(written[key], _reason(fault["msg"])))
        settings = Settings.model_validate(known)
    secrets = (value for _, value in settings if isinstance(value, SecretStr))
    log.hide(*(secret.get_secret_value() for secret in secrets))
    details += _contradictions(settings)
    if details:
        told = "; ".join(f"{detail.field}: {detail.message}" for detail in details)
        raise InvalidSettings(told, details=details)
    return settings


def _reason(message: str) -> str:
    """Say what pydantic said in the words of our other messages."""
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _contradictions(settings: Settings) -> list[Detail]:
    """Tell what single values cannot: settings that only make sense together."""
    bucket = {
        "BUCKET_ENDPOINT_URL": settings.bucket_endpoint_url,
        "BUCKET_ACCESS_KEY_ID": settings.bucket_access_key_id,
        "BUCKET_SECRET_ACCESS_KEY": settings.bucket_secret_access_key,
    }
    held = [name for name, value in bucket.items() if value is not None]
    details = [
        Detail(name, f"is needed beside {held[0]}")
        for name, value in bucket.items()
        if held and value is None
    ]
    if settings.lightning_fused and len(settings.lightning_steps) != 1:
        details.append(Detail("LIGHTNING_FUSED", "bakes one LoRA: give LIGHTNING_STEPS one count"))
    if settings.lightning_fused and not settings.use_lightning_lora:
        details.append(Detail("LIGHTNING_FUSED", "needs USE_LIGHTNING_LORA"))
    return details
