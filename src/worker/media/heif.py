"""AVIF and HEIC (both HEIF containers), decoded in a child process: bytes -> pixels as stored."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from worker.errors import ImageUnreadable
from worker.media.header import UNREADABLE, Kind
from worker.media.limits import check_size
from worker.media.primaries import by_number

CHILD: Final = Path(__file__).with_name("heif_child.py")
SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture as stored, the ICC profile of its colours if they are told, and its orientation."""

    picture: Image.Image
    profile: bytes | None
    orientation: int


def decode(data: bytes, kind: Kind, max_pixels: int) -> Stored:
    """Decode an AVIF or HEIC of at most `max_pixels` in a child; modes L, LA, RGB or RGBA.

    What breaks a decoder of HEVC or AV1 ends the child alone, and what it takes is bounded by the
    kernel: no more than 24 bytes a pixel of `max_pixels`, and 30 s. Raises ImageUnreadable, and
    what `check_size` raises.
    """
    command = [sys.executable, "-I", str(CHILD), kind, str(max_pixels)]
    try:
        answer = subprocess.run(  # noqa: S603 - our own child; the file goes by standard input
            command, input=data, capture_output=True, timeout=SECONDS, env={}, check=True
        ).stdout
    except (subprocess.SubprocessError, OSError) as error:
        raise ImageUnreadable(UNREADABLE) from error
    body = answer.index(b"\n") + 1
    told = json.loads(answer[:body])
    width, height = told["size"]
    check_size(width, height, max_pixels)  # over it nothing but the size was told
    pixels = body + told["profile"]
    picture = Image.frombytes(told["mode"], (width, height), memoryview(answer)[pixels:])
    profile: bytes | None = answer[body:pixels]
    if not profile:
        profile = by_number(*told["numbers"]) if told["numbers"] else None
    return Stored(picture, profile, told["orientation"])
