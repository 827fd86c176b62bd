"""What a task does with the pictures of a job, and which fields have a use in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.edge.fields import join_words
from worker.edge.verdict import Verdict

FROM_TEXT: Final = "text-to-image"
FROM_PICTURES: Final = "edit"
IMG2IMG: Final = "img2img"
INPAINT: Final = "inpaint"
OUTPAINT: Final = "outpaint"
# The fields that say which part of a picture is repainted, by their task.
PARTS: Final[Mapping[str, str]] = {INPAINT: "mask", OUTPAINT: "outpaint"}
# The fields that only some tasks have a use for.
USES: Final[Mapping[str, tuple[str, ...]]] = {
    "reference_weights": (FROM_PICTURES, INPAINT, OUTPAINT),
    "strength": (IMG2IMG, INPAINT, OUTPAINT),
    "mask": (INPAINT,),
    "invert_mask": (INPAINT,),
    "mask_blur": (INPAINT, OUTPAINT),
    "preserve_unmasked": (INPAINT, OUTPAINT),
    "outpaint": (OUTPAINT,),
}


@dataclass(frozen=True, slots=True)
class Way:
    """What one task does with the pictures of a job.

    `sign` is the field that asks for it, None where it takes no picture. With `begins` the picture
    is what it begins from, as far as `strength` says.
    """

    name: str
    sign: str | None = None
    begins: bool = False

    @property
    def part(self) -> str | None:
        """The field that says which part of the picture is repainted, None for all of it."""
        return PARTS.get(self.name)

    @property
    def unused(self) -> frozenset[str]:
        """The fields that have no use in it."""
        others = {name for name, tasks in USES.items() if self.name not in tasks}
        return frozenset(others if self.sign else {*others, "images"})


WAYS: Final = (
    Way(FROM_TEXT),
    Way(FROM_PICTURES, "images"),
    Way(IMG2IMG, "strength", begins=True),
    # What asks for one of these comes with a picture, and often with a strength.
    Way(INPAINT, "mask", begins=True),
    Way(OUTPAINT, "outpaint", begins=True),
)


def check_uses(values: Any, verdict: Verdict, way: Way) -> None:
    """Check that each field has a use in the task, and that what it repaints is given."""
    for name, tasks in USES.items():
        if way.name not in tasks and getattr(values, name) is not None:
            verdict.add_fault(name, f"is for {join_words(tasks)}, not {way.name}")
    part = way.part
    if part is not None and getattr(values, part) is None and not verdict.is_broken(part):
        verdict.add_fault(part, f"is required for {way.name}")
