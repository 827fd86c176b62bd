"""Presets: three ways to trade time for quality, by the schedules that a model has loaded."""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, Protocol

from worker.edge.verdict import Verdict
from worker.settings import Settings

Preset = Literal["fast", "balanced", "quality"]
# Without Lightning, the parts of the model's own steps that each preset takes (est.).
SHARES: Final[Mapping[Preset, float]] = {"fast": 0.4, "balanced": 0.6, "quality": 1.0}
FEWEST: Final = 2


class PresetRow(NamedTuple):
    """What a preset stands for, by the names of the fields that it fills."""

    num_inference_steps: int
    true_cfg_scale: float
    lightning: bool


class Schedules(Protocol):
    """What of an offer the presets follow from; worker.tasks.picture.PictureOffer is one."""

    @property
    def steps(self) -> int:
        """The base schedule's default."""

    @property
    def true_cfg_scale(self) -> float:
        """The scale of CFG there."""

    @property
    def lightning_steps(self) -> tuple[int, ...]:
        """The counts whose Lightning LoRA is loaded."""


def list_presets(offer: Schedules, settings: Settings) -> dict[Preset, PresetRow]:
    """Return what each preset stands for.

    With Lightning `fast` has its fewest steps and `balanced` its most; `quality` is the model's own
    schedule, where Lightning is not baked in.
    """
    loaded, scale = offer.lightning_steps, offer.true_cfg_scale
    base = {
        name: PresetRow(max(FEWEST, round(share * offer.steps)), scale, lightning=False)
        for name, share in SHARES.items()
    }
    if not loaded:
        return base
    fewest, most = (PresetRow(count, 1.0, lightning=True) for count in (min(loaded), max(loaded)))
    best = most if settings.lightning_fused else base["quality"]
    return {"fast": fewest, "balanced": most, "quality": best}


def fill_preset(
    values: Any, offer: Schedules, settings: Settings, verdict: Verdict
) -> tuple[Any, dict[str, tuple[str, dict[str, Any]]]]:
    """Return an input with what its preset fills in, and that as `adjusted` says it.

    What the caller gave next to it stays. Where that is the other way with Lightning, the preset's
    steps and scale are for another schedule: it has no effect, and a warning says so.
    """
    if values.preset is None:
        return values, {}
    row = list_presets(offer, settings)[values.preset]
    if values.lightning not in (None, row.lightning):
        given = "true" if values.lightning else "false"
        verdict.warn("preset", f"{values.preset} has no effect with lightning {given}")
        return values, {}
    filled = {name: value for name, value in row._asdict().items() if getattr(values, name) is None}
    return values.model_copy(update=filled), {"preset": (values.preset, filled)}
