"""AVIF and HEIC (both HEIF containers), decoded in a child process: bytes -> pixels as stored."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from worker.errors import ImageUnreadable
from worker.media.header import UNREADABLE
from worker.media.limits import check_size
from worker.media.primaries import build_numbered_profile

CHILD: Final = Path(__file__).with_name("heif_child.py")
SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture as stored, the ICC profile of its colours if stated, and its orientation."""

    picture: Image.Image
    profile: bytes | None
    orientation: int


def decode(data: bytes, max_pixels: int) -> Stored:
    """Decode an AVIF or HEIC of at most `max_pixels` in a child; modes L, RGB, RGBA or RGBa.

    A file that breaks the HEVC or AV1 decoder ends only the child, and the kernel bounds what it
    takes: 24 bytes per pixel of `max_pixels`, and 30 s. Raises ImageUnreadable, and what
    `check_size` raises.
    """
    command = [sys.executable, "-I", str(CHILD), str(max_pixels)]
    try:
        answer = subprocess.run(  # noqa: S603 - our own child; it gets the file on standard input
            command, input=data, capture_output=True, timeout=SECONDS, env={}, check=True
        ).stdout
    except (subprocess.SubprocessError, OSError) as error:
        raise ImageUnreadable(UNREADABLE) from error
    body = answer.index(b"\n") + 1
    facts = json.loads(answer[:body])
    width, height = facts["size"]
    check_size(width, height, max_pixels)  # over it the child reports nothing but the size
    pixels = body + facts["profile"]
    picture = Image.frombytes(facts["mode"], (width, height), memoryview(answer)[pixels:])
    profile: bytes | None = answer[body:pixels]
    if not profile:
        profile = build_numbered_profile(*facts["numbers"]) if facts["numbers"] else None
    return Stored(picture, profile, facts["orientation"])
