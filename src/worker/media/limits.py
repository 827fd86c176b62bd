"""Which sizes of picture are accepted, in pixels."""

from typing import Final

from worker.errors import ImageTooLarge, InvalidInput

MIN_SIDE: Final = 16
MAX_ASPECT: Final = 32  # beyond it a side shrinks below one patch of the reference encoder
MAX_PIXELS: Final = 25_000_000  # the largest of most phones have 24.5 million


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageTooLarge for over `max_pixels`, InvalidInput for a side that is too short."""
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"a picture must have at most {max_pixels} pixels (got {width} x {height})"
        )
    if min(width, height) < MIN_SIDE:
        raise InvalidInput(
            f"a picture must be at least {MIN_SIDE} pixels wide and high (got {width} x {height})"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidInput(
            f"a picture's longer side must be at most {MAX_ASPECT} times the shorter"
            f" (got {width} x {height})"
        )
