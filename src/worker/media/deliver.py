"""Encoded pieces -> reply entries: base64, data URL, a bucket, or the caller's presigned URLs."""

import asyncio
import base64
import difflib
import re
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, Literal

import aiohttp
import stamina
from yarl import URL

from worker.errors import (
    BucketUnusable,
    DeliveryFailed,
    DeliveryRefused,
    Detail,
    ImageFetchRefused,
    InvalidInput,
    WorkerError,
)
from worker.media.dial import cause, may_pass, request, was_refused
from worker.media.piece import Encoded
from worker.media.s3 import Bucket, own_bucket
from worker.media.url import check
from worker.settings import Settings

ResponseFormat = Literal["base64", "data_url", "url"]

# The keys of a job's own bucket, and whether it must have them.
BUCKET_KEYS: Final[Mapping[str, bool]] = {
    "endpointUrl": True,
    "accessId": True,
    "accessSecret": True,
    "bucketName": False,
    "region": False,
    "sessionToken": False,
}
LONGEST_VALUE: Final = 4096  # a session token may have over 2000 characters
LONGEST_NAME: Final = 60
MOST_UNKNOWN: Final = 10
# Azure wants to be told what kind of blob its presigned PUT makes; these tell that it is Azure's.
AZURE_QUERY: Final = frozenset({"sig", "sv"})
AZURE_HEADERS: Final = {"x-ms-blob-type": "BlockBlob"}
UPLOAD_ATTEMPTS: Final = 4
UPLOAD_ATTEMPT_S: Final = 30.0  # a picture of 20 MB at 6 Mbit/s
UPLOAD_TOTAL_S: Final = 90.0
WAIT_INITIAL_S: Final = 0.2
PUT_TTL_S: Final = 3600
STORED: Final = range(200, 300)
EXTENSIONS: Final = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class _TryAgainError(Exception):
    """An upload failed in a way that may pass; the message may be shown to the caller."""


class _FinalError(Exception):
    """An upload failed in a way that another try would not mend; the message may be shown."""


def callers_bucket(s3_config: Mapping[str, Any], settings: Settings) -> Bucket:
    """Return the bucket that a job brings, by BUCKET_KEYS.

    Its endpoint obeys the policy for image URLs. Raises InvalidInput, which also names the keys
    that are not known, or ImageFetchRefused.
    """
    values: dict[str, str] = {}
    details: list[Detail] = []
    for key, is_required in BUCKET_KEYS.items():
        value = s3_config.get(key)
        if value is None and not is_required:
            continue
        if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_VALUE:
            details.append(Detail(f"s3Config.{key}", "must be a string that is not empty"))
        else:
            values[key] = value.strip()
    if not details:
        try:
            bucket = Bucket(
                endpoint=values["endpointUrl"],
                access_key_id=values["accessId"],
                secret_access_key=values["accessSecret"],
                name=values.get("bucketName"),
                region=values.get("region"),
                session_token=values.get("sessionToken"),
            )
            check(bucket.address("probe"), settings)
        except ImageFetchRefused as error:
            raise _refused("s3Config.endpointUrl", error.message) from None
        except ValueError as error:
            details.append(Detail("s3Config", str(error)))
        else:
            return bucket
    details += unknown_keys(s3_config)
    raise InvalidInput("; ".join(f"{d.field}: {d.message}" for d in details), details=details)


def unknown_keys(s3_config: Mapping[str, Any]) -> list[Detail]:
    """Return the keys of a job's bucket that mean nothing here, with what they may be meant for."""
    names = {name.lower(): name for name in BUCKET_KEYS}
    details = []
    for key in [key for key in s3_config if key not in BUCKET_KEYS][:MOST_UNKNOWN]:
        close = difflib.get_close_matches(key.lower()[:LONGEST_NAME], names)
        shown = key if key.isascii() and key.isprintable() else ascii(key)
        told = (
            f"is not a known key; did you mean {names[close[0]]}?"
            if close
            else "is not a known key"
        )
        details.append(Detail(f"s3Config.{shown[:LONGEST_NAME]}", told))
    return details


def check_targets(
    *, upload_urls: Sequence[str], s3_config: Mapping[str, Any] | None, settings: Settings
) -> tuple[str, ...]:
    """Judge where a job wants its pieces, before any is made; return what to warn of.

    Raises ImageFetchRefused or InvalidInput; addresses behind names are judged when they are
    dialled.
    """
    for url in upload_urls:
        try:
            check(url, settings)
        except ImageFetchRefused as error:
            raise _refused("upload_url", error.message) from None
    if s3_config is None:
        return ()
    callers_bucket(s3_config, settings)
    unknown = unknown_keys(s3_config)
    told = [f"{detail.field}: {detail.message}" for detail in unknown]
    if unknown and settings.strict_input:
        raise InvalidInput("; ".join(told), details=unknown)
    return tuple(told)


async def deliver(
    pieces: Sequence[Encoded],
    response_format: ResponseFormat,
    *,
    upload_urls: Sequence[str],
    s3_config: Mapping[str, Any] | None,
    job_id: str,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Return the reply's entry of each piece, with exactly one of `base64`, `data_url`, `url`.

    `url` goes to `upload_urls` (one for each piece) if there are any, else to the job's own
    bucket, else to the operator's. Uploads run side by side and are tried again for what may pass.
    A bucket's `url` is presigned for BUCKET_URL_TTL_S, or the public address where the operator
    gave one (BUCKET_PUBLIC_URL); of an upload URL the address without its signature is returned.

    Raises DeliveryFailed, ImageFetchRefused or InvalidInput.
    """
    if response_format == "url":
        values = await _upload(pieces, upload_urls, s3_config, job_id, settings)
    else:
        values = await asyncio.to_thread(_inline, pieces, response_format)
    return [
        {
            "index": index,
            response_format: value,
            "mime_type": piece.mime_type,
            **piece.facts,
        }
        for index, (piece, value) in enumerate(zip(pieces, values, strict=True))
    ]


def _inline(pieces: Sequence[Encoded], response_format: ResponseFormat) -> list[str]:
    texts = [base64.b64encode(piece.data).decode("ascii") for piece in pieces]
    if response_format == "base64":
        return texts
    return [f"data:{p.mime_type};base64,{text}" for p, text in zip(pieces, texts, strict=True)]


async def _upload(
    pieces: Sequence[Encoded],
    upload_urls: Sequence[str],
    s3_config: Mapping[str, Any] | None,
    job_id: str,
    settings: Settings,
) -> list[str]:
    uploads: list[Coroutine[Any, Any, str]]
    if upload_urls:
        if len(upload_urls) < len(pieces):
            raise InvalidInput("upload_url: one is needed for each picture")
        uploads = [
            _to_presigned(url, piece, settings)
            for url, piece in zip(upload_urls, pieces, strict=False)
        ]
    else:
        bucket = own_bucket(settings) if s3_config is None else callers_bucket(s3_config, settings)
        if bucket is None:
            raise InvalidInput("response_format: url needs a bucket or upload_url")
        folder = re.sub(r"[^A-Za-z0-9_-]", "-", job_id)[:128] or "job"
        uploads = [
            _to_bucket(bucket, f"{folder}/{index}", piece, settings, trusted=s3_config is None)
            for index, piece in enumerate(pieces)
        ]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(upload) for upload in uploads]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _to_presigned(url: str, piece: Encoded, settings: Settings) -> str:
    try:
        target = check(url, settings)
        headers = AZURE_HEADERS if target.query.keys() >= AZURE_QUERY else {}
        await _put(target, piece, settings, headers)
    except ImageFetchRefused as error:
        raise _refused("upload_url", error.message) from None
    return str(target.with_query(None).with_fragment(None))


async def _to_bucket(
    bucket: Bucket, stem: str, piece: Encoded, settings: Settings, *, trusted: bool
) -> str:
    key = f"{stem}.{EXTENSIONS.get(piece.mime_type, 'bin')}"
    put = await asyncio.to_thread(bucket.signed, "PUT", key, PUT_TTL_S, piece.mime_type)
    try:
        target = URL(put, encoded=True) if trusted else check(put, settings)
        await _put(target, piece, settings, trusted=trusted)
    except ImageFetchRefused as error:
        raise _refused("s3Config.endpointUrl", error.message) from None
    if trusted and settings.bucket_public_url is not None:
        return f"{settings.bucket_public_url.rstrip('/')}/{bucket.path_of(key)}"
    return await asyncio.to_thread(bucket.signed, "GET", key, settings.bucket_url_ttl_s)


async def _put(
    url: URL,
    piece: Encoded,
    settings: Settings,
    headers: Mapping[str, str] | None = None,
    *,
    trusted: bool = False,
) -> None:
    """Send one piece; raises DeliveryFailed or ImageFetchRefused when it does not arrive."""
    final = BucketUnusable if trusted else DeliveryRefused
    try:
        async for attempt in stamina.retry_context(
            on=_TryAgainError,
            attempts=UPLOAD_ATTEMPTS,
            timeout=UPLOAD_TOTAL_S,
            wait_initial=WAIT_INITIAL_S,
            wait_jitter=WAIT_INITIAL_S,
            wait_max=5.0,
        ):
            with attempt:
                await _put_once(url, piece, settings, headers or {}, trusted=trusted)
    except _TryAgainError as error:
        raise DeliveryFailed(f"{error} (tried up to {UPLOAD_ATTEMPTS} times)") from None
    except _FinalError as error:
        raise final(str(error)) from None


async def _put_once(
    url: URL, piece: Encoded, settings: Settings, headers: Mapping[str, str], *, trusted: bool
) -> None:
    sent = {"Content-Type": piece.mime_type, **headers}
    try:
        async with (
            asyncio.timeout(UPLOAD_ATTEMPT_S),
            request(
                "PUT", url, settings, body=piece.data, headers=sent, trusted=trusted
            ) as response,
        ):
            status = response.status
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if was_refused(error):
            raise ImageFetchRefused("a URL must lead to a public address") from None
        why = cause(error, "the store")
        raise (_TryAgainError if why.passes else _FinalError)(why.message) from None
    if status not in STORED:  # also of a redirect: its target would not match the signature
        failure = _TryAgainError if may_pass(status) else _FinalError
        raise failure(f"the store answered with status {status}")


def _refused(field: str, message: str) -> WorkerError:
    return ImageFetchRefused(f"{field}: {message}", details=(Detail(field, message),))
