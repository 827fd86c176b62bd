"""The tasks of pictures, one per way, and how a job's pictures settle what was asked."""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from worker.settings import Settings
from worker.tasks import reference
from worker.tasks.picture import PictureAsked, PictureWish
from worker.tasks.picture_input import PictureInput
from worker.tasks.picture_judgement import compare, judge
from worker.tasks.size import choose
from worker.tasks.task import Settled, Span, Task, Warn
from worker.tasks.way import (
    FROM_PICTURES,
    FROM_TEXT,
    WAYS,
    Way,
)


async def settle(
    asked: PictureAsked, fetched: Sequence[bytes], settings: Settings, warn: Warn
) -> Settled:
    """Decode the pictures and choose the size.

    The size follows the last picture, or the first where that is repainted. Raises as
    media.images.decode, `choose` and Repaint.apply.
    """
    has_mask = asked.repaint is not None and asked.repaint.margins is None
    shown, mask = (fetched[:-1], fetched[-1]) if has_mask else (fetched, None)
    pictures, warnings = await reference.decode_all(shown, settings.max_image_pixels)
    for text in warnings:
        warn(text)
    begins = asked.draft.strength is not None
    size = pictures[-1].size if pictures else None
    if asked.repaint is not None:
        size = asked.repaint.measure(pictures[0].size)
    chosen = choose(asked.size, asked.offer, size, shrink=settings.shrink)
    for text in chosen.warnings:
        warn(text)
    part = None
    if asked.repaint is not None:
        part = await asyncio.to_thread(asked.repaint.apply, pictures[0], mask, settings, warn)
        pictures = (part.image, *pictures[1:])
    wish = replace(
        asked.draft,
        references=pictures if asked.sees else (),
        source=pictures[0] if begins else None,
        mask=None if part is None else part.mask,
        width=chosen.width,
        height=chosen.height,
        final=chosen.final,
    )
    return Settled(wish, {**asked.adjusted, **chosen.adjusted})


def _make_task(way: Way) -> Task:
    return Task(
        name=way.name,
        input=PictureInput,
        wish=PictureWish,
        key="images",
        noun="picture",
        formats={"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"},
        smaller=("webp", "jpeg"),
        lossless=("png",),
        advice="output_format jpeg or webp, fewer pictures or a smaller size",
        # Denoising is nearly all of it.
        spans=(
            Span("text", 4, "text"),
            Span("reference", 4, "text"),
            Span("denoise", 88, "denoise", steps="run_steps"),
            Span("decode", 4, "decode"),
        ),
        sign=way.sign,
        unused=way.unused,
        compare=functools.partial(compare, way=way),
        judge=functools.partial(judge, way=way),
        settle=settle,
        has_previews=True,
    )


PICTURE_TASKS: Final[Mapping[str, Task]] = {way.name: _make_task(way) for way in WAYS}
TEXT_TO_IMAGE: Final = PICTURE_TASKS[FROM_TEXT]
EDIT: Final = PICTURE_TASKS[FROM_PICTURES]
