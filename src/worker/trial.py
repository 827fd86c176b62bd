"""What the doctor tries: an object into the bucket and out again, and torch on the GPU."""

import asyncio
import importlib
import secrets
from typing import Final

from yarl import URL

from worker import settings as environment
from worker.driver import Gpu
from worker.errors import DeliveryFailed
from worker.finding import Finding
from worker.media.objects import REQUEST_TTL_S, RefusedError, put_object, send_object
from worker.media.s3 import Bucket, read_own_bucket
from worker.settings import Settings

HOPPER: Final = (9, 0)
CONTENT: Final = b"The worker's doctor has put this here; it may be deleted.\n"


def try_bucket(settings: Settings) -> list[Finding]:
    """Put an object into the operator's bucket, read it by its link and delete it; never raises.

    Nothing is found without a usable bucket: the preflight says why. Only a refused upload is
    fatal. The link is not tried where BUCKET_PUBLIC_URL is used instead.
    """
    try:
        bucket = read_own_bucket(settings)
    except DeliveryFailed:
        return []
    return [] if bucket is None else asyncio.run(_try_object(bucket, settings))


def try_attention(gpu: Gpu | None) -> list[Finding]:
    """Ask torch which kernel computes attention on the GPU; never raises, and takes seconds.

    Nothing is found without a GPU.
    """
    if gpu is None:
        return []
    try:
        environment.fill_environment()
        attention = importlib.import_module("worker.engine.attention")
        backend = attention.find_backend("cuda")
    except Exception as error:  # noqa: BLE001 - whatever a broken torch or GPU raises
        found = f"torch does not answer on this GPU ({type(error).__name__})"
        return [Finding("attention", "advice", found, "start a worker: its log says more")]
    return [describe_attention(backend, gpu.capability)]


def describe_attention(backend: str, capability: tuple[int, int]) -> Finding:
    """Return what the kernel that computes attention means on a GPU of that capability."""
    if backend == "cudnn" or (backend == "flash" and capability != HOPPER):
        return Finding("attention", "ok", f"{backend} kernel")
    if backend == "flash":
        found = "flash kernel; cuDNN's takes 1.36 instead of 2.31 ms on an H100, at 8,420 tokens"
        return Finding("attention", "advice", found, "use the image for CUDA 13.0")
    found = f"{backend} kernel, slower than flash or cuDNN's"
    return Finding("attention", "advice", found, "use an image of this worker, with its own torch")


async def _try_object(bucket: Bucket, settings: Settings) -> list[Finding]:
    key = f"worker-doctor-{secrets.token_hex(8)}.txt"
    try:
        taken = await put_object(bucket, key, CONTENT, "text/plain", settings, trusted=True)
    except RefusedError as error:
        change = "see DELIVERY_FAILED in docs/troubleshooting.md for the store's word"
        return [Finding("upload", "fatal", error.message, change)]
    except DeliveryFailed as error:
        return [Finding("upload", "advice", error.message, "check the store, then try again")]
    findings = [Finding("upload", "ok", "the bucket stored an object")]
    if taken.signing_region != bucket.signing_region:
        found = f"the store takes {taken.signing_region}, not {bucket.signing_region}"
        change = f"set BUCKET_REGION={taken.signing_region}: each start has one upload refused"
        findings.append(Finding("region", "advice", found, change))
    if settings.bucket_public_url is None:
        reason = await _find_failure("GET", taken, key, settings)
        findings.append(
            Finding("link", "advice", reason, "allow the keys to read objects, or links fail")
            if reason
            else Finding("link", "ok", "its link opened")
        )
    reason = await _find_failure("DELETE", taken, key, settings)
    findings.append(
        Finding("deletion", "advice", reason, f"not needed by the worker; delete {key} yourself")
        if reason
        else Finding("deletion", "ok", "it was deleted again")
    )
    return findings


async def _find_failure(method: str, bucket: Bucket, key: str, settings: Settings) -> str:
    """Return why a request for the object fails, empty if it does not."""
    address = await asyncio.to_thread(bucket.sign, method, key, REQUEST_TTL_S)
    try:
        answer = await send_object(method, URL(address, encoded=True), settings, trusted=True)
    except (DeliveryFailed, RefusedError) as error:
        return error.message
    return "" if method != "GET" or answer == CONTENT else "the answer is not what was stored"
