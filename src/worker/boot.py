"""A cold start: settings -> preflight -> weights -> bundle -> open -> warm models."""

import importlib
import time
from dataclasses import dataclass
from typing import Any

from worker import log
from worker.errors import InvalidSettings
from worker.families import Control, Generation, Model, Models, Phase, Served
from worker.residency import Openable, Residency
from worker.settings import Settings
from worker.weights import catalog
from worker.weights.catalog import ModelSpec

# the largest picture by free device memory in bytes, in pixels: activations of a 1024x1024 edit
# take about 3 GB beside the weights (est.)
LARGEST = ((40 << 30, 2048 * 2048), (22 << 30, 1536 * 1536), (0, 1328 * 1328))


class _Unheard(Control):
    """The warm-up picture's job: nobody listens and nobody stops it."""

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Take no notice."""


def family(name: str) -> Any:
    """Import one family's module; that is when torch is imported."""
    return importlib.import_module(f"worker.families.{name}")


def lightning_steps(spec: ModelSpec, settings: Settings) -> tuple[int, ...]:
    """Return the step counts whose LoRA is held, the default first.

    LIGHTNING_STEPS where it was set, else 8 (both for the embedded pair); none when
    USE_LIGHTNING_LORA is off or the model has no Lightning. Raises InvalidSettings for a count
    that the model has no LoRA for.
    """
    if not settings.use_lightning_lora or not spec.lightning:
        return ()
    if "lightning_steps" not in settings.model_fields_set:
        return tuple(spec.lightning) if spec.embedded else tuple(spec.lightning)[:1]
    missing = [n for n in settings.lightning_steps if n not in spec.lightning]
    if missing:
        held = ", ".join(map(str, spec.lightning))
        raise InvalidSettings(
            f"LIGHTNING_STEPS: {spec.name} has no LoRA for {missing[0]} steps, it has {held}"
        )
    return settings.lightning_steps


def describe(
    spec: ModelSpec, settings: Settings, *, revision: str, precision: str, memory: int | None
) -> Served:
    """Say what callers may ask of a model; `memory` is the device's in bytes, None on a CPU."""
    largest = settings.max_pixels
    if largest is None:
        room = next((pixels for floor, pixels in LARGEST if (memory or 0) >= floor), 0)
        largest = min(room, 4 * spec.area)
    return Served(
        id=spec.name,
        repository=spec.repository,
        revision=revision,
        precision=precision,
        licence=spec.licence,
        tasks=spec.tasks,
        steps=spec.steps,
        true_cfg_scale=spec.true_cfg_scale,
        negative_prompt=spec.negative_prompt,
        lightning_steps=lightning_steps(spec, settings),
        area=spec.area,
        max_pixels=largest,
        max_references=min(spec.max_references, settings.max_input_images),
        sizes=spec.sizes,
    )


def warm(model: Model) -> float:
    """Make one picture, so that a job finds everything loaded; return its seconds."""
    from PIL import Image  # noqa: PLC0415 - only a cold start needs it here

    served = model.served
    start = time.monotonic()
    side = max(64, int(served.area**0.5) // 32 * 32)
    edit = "edit" in served.tasks
    fast = bool(served.lightning_steps)
    grey = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    model.generate(
        Generation(
            task="edit" if edit else "text-to-image",
            prompt="a warm-up picture",
            negative_prompt=None,
            references=(grey,) if edit else (),
            width=side,
            height=side,
            steps=served.lightning_steps[0] if fast else 2,
            true_cfg_scale=1.0,
            lightning=fast,
            seed=0,
        ),
        _Unheard(),
    )
    return time.monotonic() - start


@dataclass(frozen=True, slots=True)
class _Opener:
    """How one model is opened, warmed and logged, at start or when it is swapped in."""

    spec: ModelSpec
    served: Served
    settings: Settings

    def __call__(self) -> Model:
        start = time.monotonic()
        model: Model = family(self.spec.family).open_model(self.spec, self.served)
        opened = time.monotonic() - start
        warmed = warm(model)
        log.get().info(
            "model warm",
            model=self.spec.name,
            precision=self.served.precision,
            open_s=round(opened, 2),
            warm_s=round(warmed, 2),
        )
        return model


def boot(settings: Settings) -> Models:
    """Bring the models of this worker from wherever they are to warm.

    Raises WorkerError: what is wrong and what to do about it.
    """
    specs = catalog.resolve(settings.model, settings, has_gpu=False)
    openables = []
    for spec in specs:
        served = describe(spec, settings, revision="local", precision="bf16", memory=None)
        openables.append(Openable(served, 0, _Opener(spec, served, settings)))
    models = Residency(openables, budget=None)
    models.fill()
    return models
