"""What is run on the pretend device: every task at its published sizes, however opened."""

from dataclasses import dataclass
from typing import Final

from worker.engine.quantise import Precision
from worker.families.qwen_image.working import MAX_TOKENS
from worker.tasks.way import FROM_PICTURES, FROM_TEXT, IMG2IMG, INPAINT, OUTPAINT

# The editions of the transformer and of the template: by diffusers' name of the pipeline class.
IMAGE: Final = "QwenImagePipeline"
FIRST_EDIT: Final = "QwenImageEditPipeline"
EDIT_PLUS: Final = "QwenImageEditPlusPipeline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model as it is opened: its pipeline class, its precision, its LoRA fused or beside.

    With `is_offloaded` its text encoder waits in the host's memory.
    """

    pipeline: str = IMAGE
    precision: Precision = "4bit"
    is_fused: bool = False
    is_offloaded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A job: a square picture of `side` pixels, from so many references, `batch` of them at once.

    `begins` is a task that begins from a picture, which models that edit have as a reference too.
    With it come `loras` of rank 64 in every module of a block. `guided` is the base schedule with
    true CFG in `steps` steps, else it is Lightning. `words` is the length of the prompt. `room` is
    the device's memory beyond the weights in bytes, None for no limit. `known` is a fault that is
    known and why it stays: the case fails once it is gone.
    """

    opened: Opened
    side: int = 1024
    references: int = 0
    begins: str = ""
    batch: int = 1
    loras: int = 0
    guided: bool = False
    steps: int = 4
    words: int = 8
    room: int | None = None
    known: str = ""

    @property
    def prompt_tokens(self) -> int:
        """Return the length of the prompt in tokens, at most: a number, and one per word."""
        return min(MAX_TOKENS, NUMBER_TOKENS + 2 * self.words)

    @property
    def task(self) -> str:
        """Name its task."""
        return self.begins or (FROM_PICTURES if self.references else FROM_TEXT)

    @property
    def name(self) -> str:
        """Name it as the tables do: task, side, references, and what is unusual."""
        kind = self.begins or ("edit" if self.references else "image")
        parts = [
            f"{kind}-{self.side}-{self.references}" if self.references else f"{kind}-{self.side}"
        ]
        if self.opened.pipeline == FIRST_EDIT:
            parts.append("first")
        parts.append(self.opened.precision + ("-fused" if self.opened.is_fused else ""))
        parts += ["offload"] if self.opened.is_offloaded else []
        parts += [f"batch{self.batch}"] if self.batch > 1 else []
        parts += [f"loras{self.loras}"] if self.loras else []
        parts += ["cfg"] if self.guided else []
        parts += ["long"] if self.words > SHORT else []
        parts += ["tiled"] if self.room is not None else []
        return "-".join(parts)


SHORT: Final = 8
NUMBER_TOKENS: Final = 12
# More than the 1024 tokens that are used of a prompt.
LONG: Final = 1100
# Less than the VAE takes for a picture of 1024 x 1024 in one piece.
SCARCE: Final = 700_000_000


def list_cases() -> list[Case]:
    """Return every case at published sizes, those of one model next to each other."""
    image, edit = Opened(), Opened(pipeline=EDIT_PLUS)
    cases = [Case(opened=image, side=side) for side in (1024, 1328, 1536, 2048)]
    cases += [
        Case(opened=image, words=LONG),
        Case(opened=image, guided=True),
        Case(opened=image, side=2048, room=2_200_000_000),
        Case(opened=image, begins=IMG2IMG),
        Case(opened=image, begins=INPAINT),
    ]
    cases += [
        Case(opened=edit, side=side, references=references)
        for side, references in ((1024, 1), (1024, 2), (1024, 3), (1328, 1), (1328, 3))
    ]
    cases += [
        Case(opened=edit, references=1, guided=True),
        Case(opened=edit, references=1, words=LONG),
        Case(opened=edit, references=1, begins=OUTPAINT),
    ]
    exact: tuple[Precision, ...] = ("bf16", "8bit")
    for precision in exact:
        image, edit = (
            Opened(precision=precision),
            Opened(pipeline=EDIT_PLUS, precision=precision),
        )
        cases += [Case(opened=image), Case(opened=edit, references=1)]
        if precision == "bf16":
            cases += [Case(opened=one, references=r, loras=3) for one, r in ((image, 0), (edit, 1))]
            cases += [Case(opened=image, batch=batch) for batch in (2, 4)]
            cases += [Case(opened=edit, references=1, batch=batch) for batch in (2, 4)]
            cases += [Case(opened=image, room=SCARCE)]
    fused_in: tuple[Precision, ...] = ("bf16", "4bit")
    for precision in fused_in:
        fused = Opened(pipeline=EDIT_PLUS, precision=precision, is_fused=True)
        cases += [Case(opened=fused, references=1)]
    cases += [Case(opened=Opened(pipeline=FIRST_EDIT), references=1)]
    cases += [
        Case(opened=Opened(pipeline=EDIT_PLUS, is_offloaded=True), references=1),
        Case(opened=Opened(pipeline=EDIT_PLUS, is_offloaded=True), references=1, words=LONG),
    ]
    return sorted(cases, key=lambda case: str(case.opened))
