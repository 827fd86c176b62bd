"""Pictures that are too big for the reply: into a bucket, a smaller format, or an error."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from PIL import Image

from worker.errors import OutputTooLarge
from worker.media.deliver import Encoded, ResponseFormat
from worker.media.images import MIME_TYPES, encode
from worker.settings import MB

SMALLER: Final = (95, 85, 75)  # WEBP qualities, in the order they are tried
WEBP_SIDE: Final = 16383  # the format's own limit
DATA_URL_HEAD: Final = len("data:image/jpeg;base64,")


@dataclass(frozen=True, slots=True)
class Fitted:
    """The pictures as they will be delivered; `adjusted` holds [asked, given] of what changed."""

    pictures: tuple[Encoded, ...]
    response_format: ResponseFormat
    adjusted: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def reply_bytes(pictures: Sequence[Encoded]) -> int:
    """Return how many bytes the pictures take in the reply, as base64 or data URLs."""
    return sum((len(picture.data) + 2) // 3 * 4 + DATA_URL_HEAD for picture in pictures)


async def fit(
    images: Sequence[Image.Image],
    pictures: Sequence[Encoded],
    response_format: ResponseFormat,
    *,
    room: int,
    format_is_open: bool,
    has_bucket: bool,
) -> Fitted:
    """Make `pictures` (the encoded `images`, in the same order) fit into `room` bytes of reply.

    Pictures that fit, or go elsewhere anyway, stay as they are. Otherwise they go to the bucket
    (the operator's or the job's) if there is one; else, if the caller left the format open, they
    become WEBP of the best quality that fits. Raises OutputTooLarge.
    """
    if response_format == "url" or reply_bytes(pictures) <= room:
        return Fitted(tuple(pictures), response_format)
    if has_bucket:
        return Fitted(tuple(pictures), "url", {"response_format": (response_format, "url")})
    if format_is_open and all(max(image.size) <= WEBP_SIDE for image in images):
        asked = pictures[0].mime_type.removeprefix("image/")
        for quality in SMALLER:
            data = [await asyncio.to_thread(encode, image, "webp", quality) for image in images]
            smaller = tuple(
                replace(picture, data=file, mime_type=MIME_TYPES["webp"])
                for picture, file in zip(pictures, data, strict=True)
            )
            if reply_bytes(smaller) <= room:
                return Fitted(smaller, response_format, {"output_format": (asked, "webp")})
    size = reply_bytes(pictures)
    raise OutputTooLarge(
        f"the pictures would take {size / MB:.1f} MB of the reply, where {room / MB:.1f} MB are"
        " left; ask for output_format webp or jpeg, fewer or smaller pictures, or response_format"
        " url with a bucket or upload_url"
    )
