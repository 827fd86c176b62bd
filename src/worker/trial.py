"""What the doctor does beyond looking: one object into the operator's bucket, and out again."""

import asyncio
import secrets
from typing import Final

from yarl import URL

from worker.errors import DeliveryFailed
from worker.finding import Finding
from worker.media.objects import REQUEST_TTL_S, RefusedError, put_object, send_object
from worker.media.s3 import Bucket, read_own_bucket
from worker.settings import Settings

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
