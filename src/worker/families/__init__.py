"""The seam between serving and models: what a family is asked and what it gives back.

Nothing here, and nothing above it, knows what a transformer or a VAE is. A family is one module of
this package, imported by name when one of its models is opened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image

Task = Literal["text-to-image", "edit"]
Phase = Literal["text", "reference", "denoise", "decode"]


@dataclass(frozen=True, slots=True)
class Served:
    """What callers may ask of one warm model: plain facts, readable without torch.

    `area` is the model's native number of pixels; `lightning_steps` are the step counts whose LoRA
    is held, the first being the default, empty when none is; `sizes` maps an aspect ratio such as
    "16:9" to (width, height) in pixels.
    """

    id: str
    repository: str
    revision: str
    precision: str
    licence: str
    tasks: tuple[Task, ...]
    steps: int
    true_cfg_scale: float
    negative_prompt: str
    lightning_steps: tuple[int, ...]
    area: int
    max_pixels: int
    max_references: int
    sizes: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Generation:
    """One picture to make: everything resolved, nothing left to choose.

    `width` and `height` are pixels, multiples of 16. `negative_prompt` is None when no CFG runs.
    `references` are RGB pictures, upright, in the caller's order.
    """

    task: Task
    prompt: str
    negative_prompt: str | None
    references: tuple[Image.Image, ...]
    width: int
    height: int
    steps: int
    true_cfg_scale: float
    lightning: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture (RGB) and how it was made; `timings_ms` by phase, `peak_vram_mb` in MiB."""

    image: Image.Image
    lightning_enabled: bool
    timings_ms: Mapping[Phase, float]
    peak_vram_mb: int = 0
    warnings: tuple[str, ...] = field(default=())


class Control(Protocol):
    """How a running picture talks to the job that wants it."""

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Tell that `step` of `steps` of a phase is done; raise when the job must stop here."""


class Unheard(Control):
    """A picture that nobody follows and nobody stops, as a warm-up's."""

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Take no notice."""


class Model(Protocol):
    """One warm model; used by one thread at a time, and without memory of earlier pictures."""

    @property
    def served(self) -> Served:
        """What callers may ask of it."""

    def generate(self, generation: Generation, control: Control) -> Drawn:
        """Make one picture.

        Raises BadPicture, CudaOutOfMemory, DeviceLost, LoraNotApplied, or what `control` raises.
        """

    def release(self) -> None:
        """Free the device memory; the model cannot be used afterwards.

        Raises DeviceLost when something else still holds it.
        """


@dataclass(frozen=True, slots=True)
class Openable:
    """A model that can be opened at any time: what it serves, what it takes, and how.

    `parts` maps what identifies a part to its device bytes: models may share parts. `facts` tell in
    op=health where it came from.
    """

    served: Served
    parts: Mapping[str, int]
    open: Callable[[], Model]
    facts: Mapping[str, object] = field(default_factory=dict)


class Models(Protocol):
    """The models of this worker: at least one is warm, others may be swapped in."""

    @property
    def served(self) -> tuple[Served, ...]:
        """Every model that callers may name; the first that can do a task is its default."""

    def take(self, model_id: str) -> Model:
        """Return that model, warm; called only by the thread that generates."""

    def health(self) -> Mapping[str, object]:
        """Return what op=health tells: plain JSON, without paths, hosts or secrets."""
