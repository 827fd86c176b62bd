"""Encoded pieces -> reply entries: base64, data URL, a bucket, or the caller's presigned URLs."""

import asyncio
import base64
import re
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Literal

from worker.errors import (
    BucketUnusable,
    DeliveryFailed,
    DeliveryRefused,
    Detail,
    ImageFetchRefused,
    InvalidInput,
    WorkerError,
)
from worker.media.objects import RefusedError, put_object, send_object
from worker.media.piece import Encoded
from worker.media.s3 import Bucket, CallersBucket, read_own_bucket
from worker.media.url import check_url
from worker.settings import Settings

ResponseFormat = Literal["base64", "data_url", "url"]

# These query keys identify Azure, whose presigned PUT needs a header that names the kind of blob.
AZURE_QUERY: Final = frozenset({"sig", "sv"})
AZURE_HEADERS: Final = {"x-ms-blob-type": "BlockBlob"}
EXTENSIONS: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/ogg": "opus",
    "audio/pcm": "pcm",
}


def check_upload_urls(urls: Sequence[str], settings: Settings) -> None:
    """Check the presigned URLs of a job before anything is made for them.

    Raises ImageFetchRefused; the addresses of their hosts are checked when they are dialled.
    """
    for url in urls:
        try:
            check_url(url, settings)
        except ImageFetchRefused as error:
            raise _refuse("upload_url", error.message) from None


async def deliver(
    pieces: Sequence[Encoded],
    response_format: ResponseFormat,
    *,
    upload_urls: Sequence[str],
    bucket: CallersBucket | None,
    job_id: str,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Return the reply's entry of each piece, with exactly one of `base64`, `data_url`, `url`.

    For `url` pieces go to `upload_urls` (one per piece) if there are any, else to the `bucket` that
    the job brings, else to the operator's. Uploads run in parallel, and temporary failures are
    retried. The `url` of a piece in a bucket is presigned for BUCKET_URL_TTL_S, or public if the
    operator set BUCKET_PUBLIC_URL; that of an upload URL is the URL without its signature.

    Raises DeliveryFailed, ImageFetchRefused or InvalidInput.
    """
    if response_format == "url":
        values = await _upload(pieces, upload_urls, bucket, job_id, settings)
    else:
        values = await asyncio.to_thread(_encode_inline, pieces, response_format)
    return [
        {
            "index": index,
            response_format: value,
            "mime_type": piece.mime_type,
            **piece.facts,
        }
        for index, (piece, value) in enumerate(zip(pieces, values, strict=True))
    ]


def _encode_inline(pieces: Sequence[Encoded], response_format: ResponseFormat) -> list[str]:
    texts = [base64.b64encode(piece.data).decode() for piece in pieces]
    if response_format == "base64":
        return texts
    return [f"data:{p.mime_type};base64,{text}" for p, text in zip(pieces, texts, strict=True)]


async def _upload(
    pieces: Sequence[Encoded],
    upload_urls: Sequence[str],
    bucket: CallersBucket | None,
    job_id: str,
    settings: Settings,
) -> list[str]:
    uploads: list[Coroutine[Any, Any, str]]
    if upload_urls:
        if len(upload_urls) < len(pieces):
            raise InvalidInput("upload_url: one is needed for each picture")
        uploads = [
            _upload_to_url(url, piece, settings)
            for url, piece in zip(upload_urls, pieces, strict=False)
        ]
    else:
        store = read_own_bucket(settings) if bucket is None else bucket.require()
        if store is None:
            raise InvalidInput("response_format: url needs a bucket or upload_url")
        name = None if bucket is None else bucket.endpoint_field
        folder = re.sub(r"[^A-Za-z0-9_-]", "-", job_id)[:128] or "job"
        uploads = [
            _upload_to_bucket(store, f"{folder}/{index}", piece, settings, name)
            for index, piece in enumerate(pieces)
        ]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(upload) for upload in uploads]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _upload_to_url(url: str, piece: Encoded, settings: Settings) -> str:
    try:
        target = check_url(url, settings)
        kind = AZURE_HEADERS if target.query.keys() >= AZURE_QUERY else {}
        headers = {"Content-Type": piece.mime_type, **kind}
        await send_object("PUT", target, settings, body=piece.data, headers=headers)
    except ImageFetchRefused as error:
        raise _refuse("upload_url", error.message) from None
    except RefusedError as error:
        raise DeliveryRefused(error.message) from None
    return str(target.with_query(None).with_fragment(None))


async def _upload_to_bucket(
    bucket: Bucket, stem: str, piece: Encoded, settings: Settings, callers: str | None
) -> str:
    """Store one piece; `callers` is the field of a caller's endpoint, None for our trusted one."""
    trusted = callers is None
    key = f"{stem}.{EXTENSIONS.get(piece.mime_type, 'bin')}"
    try:
        bucket = await put_object(
            bucket, key, piece.data, piece.mime_type, settings, trusted=trusted
        )
    except ImageFetchRefused as error:
        raise (error if callers is None else _refuse(callers, error.message)) from None
    except RefusedError as error:
        if error.is_of_clock:  # ours: another worker's may be right
            raise DeliveryFailed(error.message) from None
        raise (BucketUnusable if trusted else DeliveryRefused)(error.message) from None
    if trusted and settings.bucket_public_url is not None:
        return f"{settings.bucket_public_url.rstrip('/')}/{bucket.make_path(key)}"
    return await asyncio.to_thread(bucket.sign, "GET", key, settings.bucket_url_ttl_s)


def _refuse(field: str, message: str) -> WorkerError:
    return ImageFetchRefused(f"{field}: {message}", details=(Detail(field, message),))
