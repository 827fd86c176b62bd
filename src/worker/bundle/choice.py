"""Which precision a model is opened in: the best of those available that fits the GPU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from worker import log
from worker.bundle import layout, match, needs
from worker.bundle.recipe import Recipe
from worker.bundle.sizes import WeightSizes
from worker.driver import Gpu
from worker.engine import precision
from worker.engine.precision import Choice, Need
from worker.engine.quantise import PRECISIONS, Precision
from worker.settings import Settings
from worker.weights import space


@dataclass(frozen=True, slots=True)
class Candidates:
    """The bundles and weights to choose a precision for: what is `required` of them, and where.

    Where MODEL_DIR cannot be written, only a precision that is there can be chosen.
    """

    recipe: Recipe
    settings: Settings
    required: match.Required
    is_writable: bool

    @property
    def name(self) -> str:
        """Return the name that callers give the model."""
        return self.required.spec.name


def list_precisions(among: Candidates) -> tuple[Precision, ...]:
    """Return the precisions available; raises WeightsUnavailable when there is none."""
    home, mode = among.settings.home, among.settings.precision_mode
    if among.is_writable:
        return PRECISIONS
    found = {chosen: match.find_best(home, among.required, chosen) for chosen in PRECISIONS}
    there = tuple(p for p, bundle in found.items() if bundle and bundle[1] is None)
    if not there:
        reasons = [bundle[1] for bundle in found.values() if bundle and bundle[1]]
        reason = f" (one {reasons[0]})" if reasons else ""
        raise space.make_unwritable(f" and has no complete bundle of {among.name}{reason}")
    if mode not in ("auto", *there):
        raise space.make_unwritable(f" and has {among.name} in {', '.join(there)}, not in {mode}")
    return there


def find_needs(
    among: Candidates,
    there: Sequence[Precision],
    *,
    name: str,
    beside: int,
    compute: Callable[[], Mapping[Precision, WeightSizes]],
) -> dict[Precision, Need]:
    """Return what each precision in `there` takes on the device, without asking a hub if possible.

    `name` is the name of the sizes on MODEL_DIR, `beside` the number of LoRAs beside the weights;
    `compute` computes the sizes from the published headers.
    """
    home, mode, recipe = among.settings.home, among.settings.precision_mode, among.recipe
    known = needs.read_kept(home, name, recipe)
    known = known or needs.read_kept_before(
        home, match.find_matching(home, among.required), beside, recipe
    )
    if known is None and (mode != "auto" or not among.is_writable):
        asked = there if mode == "auto" else [mode]
        found = {p: match.find_best(home, among.required, p) for p in asked}
        whole = {p: bundle[0] for p, bundle in found.items() if bundle and bundle[1] is None}
        if whole:
            return {
                p: needs.measure_bundle(layout.verify(path), recipe) for p, path in whole.items()
            }
    sizes = known or compute()
    return needs.convert_sizes({chosen: sizes[chosen] for chosen in there}, recipe)


def choose(
    among: Candidates,
    there: Sequence[Precision],
    need: Mapping[Precision, Need],
    gpu: Gpu | None,
) -> Choice:
    """Choose one of the precisions in `there`; `need` is empty without a GPU.

    Raises InvalidSettings, with what to change, when nothing fits.
    """
    mode = among.settings.precision_mode
    if mode == "auto" and gpu is None and "bf16" not in there:
        choice = Choice(there[-1], "MODEL_DIR has no other precision and cannot be written")
    else:
        working = partial(among.recipe.compute_working, among.required.spec, among.settings)
        choice = precision.choose(
            mode,
            need,
            free=gpu.room if gpu else None,
            capability=gpu.capability if gpu else None,
            working=working,
            offloaded=partial(working, offload=True),
        )
    log.get().info(
        "precision chosen", model=among.name, precision=choice.precision, reason=choice.reason
    )
    return choice
