"""One family of models, as it is known before its module is imported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from worker.setting_values import Precision
from worker.settings import Settings
from worker.weights.instead import Relative
from worker.weights.meaning import Complete
from worker.weights.spec import ModelSpec

# An aspect ratio such as "16:9" -> (width, height) in pixels.
Sizes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PictureDefaults:
    """What a model of pictures uses unless a job says otherwise, and what it accepts.

    `area` is its native number of pixels, `max_references` is how many reference pictures one job
    may give, `strength` is how far img2img changes one. `takes_loras` says whether jobs may bring
    LoRAs, each of `rank_bytes` of device memory per rank where it reaches every module (0: not
    known). Without `takes_cfg` no negative prompt has an effect; `guidance` is the strength of
    guidance that the model takes as an input instead, None where it has no such input.
    `weighs_references` says whether a reference may count more or less than once. Whether the
    transformer modulates references apart (Qwen-Image-Edit-2511) is in its own configuration, not
    here.
    """

    steps: int
    max_references: int
    sizes: Sizes
    true_cfg_scale: float
    negative_prompt: str
    strength: float
    area: int = 1024 * 1024
    takes_loras: bool = True
    takes_cfg: bool = True
    guidance: float | None = None
    weighs_references: bool = False
    rank_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """Device bytes of a model and its largest job: with all of its weights there, and at least."""

    whole: int
    least: int


# A model and the settings -> what it needs by precision, the smallest first.
EstimateNeeds = Callable[[ModelSpec, Settings], Mapping[Precision, DeviceNeed]]


def ignore_needs(spec: ModelSpec, settings: Settings) -> Mapping[Precision, DeviceNeed]:
    """Return nothing: what a model needs is known once its files are read."""
    del spec, settings
    return {}


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of a family without torch.

    `rows` are its published models, the oldest first, each with the `family` module that opens it;
    that module has `make_ready(spec, settings, gpu, taken=...)` and `prepare(spec, settings, gpu)`.
    `groups` maps a word of MODEL to the names of several rows. `classes` maps each class under
    which it is published to how a model of that class is completed. `form` says in words what a
    folder of its published weights looks like. `relatives` are models that are taken for it.
    `needs` is what one of its models takes, as far as that is known before its files are read.
    """

    rows: tuple[ModelSpec, ...]
    classes: Mapping[str, Complete]
    form: str
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    relatives: tuple[Relative, ...] = ()
    needs: EstimateNeeds = ignore_needs
