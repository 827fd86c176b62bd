"""Which precision a model is opened in: of those that can be had, the one that the GPU holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from worker import log
from worker.bundle import layout, match, needs
from worker.bundle.making import Recipe
from worker.bundle.sizes import WeightSizes
from worker.driver import Gpu
from worker.engine import precision
from worker.engine.precision import Choice, Need
from worker.engine.quantise import PRECISIONS, Precision
from worker.settings import Settings
from worker.weights import space


@dataclass(frozen=True, slots=True)
class Candidates:
    """The bundles and weights that a precision is chosen for: what is `wanted` of them, and where.

    Where MODEL_DIR cannot be written, only what is there can be chosen.
    """

    recipe: Recipe
    settings: Settings
    wanted: match.Required
    is_writable: bool

    @property
    def name(self) -> str:
        """Return what callers name the model by."""
        return self.wanted.spec.name


def list_precisions(among: Candidates) -> tuple[Precision, ...]:
    """Return the precisions that can be had; raises WeightsUnavailable when none can."""
    home, mode = among.settings.home, among.settings.precision_mode
    if among.is_writable:
        return PRECISIONS
    found = {chosen: match.find_best(home, among.wanted, chosen) for chosen in PRECISIONS}
    there = tuple(p for p, bundle in found.items() if bundle and bundle[1] is None)
    if not there:
        reasons = [bundle[1] for bundle in found.values() if bundle and bundle[1]]
        told = f" (one {reasons[0]})" if reasons else ""
        raise space.make_unwritable(f" and has no whole bundle of {among.name}{told}")
    if mode not in ("auto", *there):
        raise space.make_unwritable(f" and has {among.name} in {', '.join(there)}, not in {mode}")
    return there


def find_needs(
    among: Candidates,
    there: Sequence[Precision],
    *,
    name: str,
    beside: int,
    computed: Callable[[], Mapping[Precision, WeightSizes]],
) -> dict[Precision, Need]:
    """Return what each precision that is `there` takes on the device, without a hub if it can be.

    `name` is that of the sizes on MODEL_DIR, `beside` is the number of LoRAs beside the weights;
    `computed` computes the sizes from the published headers.
    """
    home, mode, recipe = among.settings.home, among.settings.precision_mode, among.recipe
    known = needs.read_kept(home, name, recipe)
    known = known or needs.read_kept_before(
        home, match.find_matching(home, among.wanted), beside, recipe
    )
    if known is None and (mode != "auto" or not among.is_writable):
        asked = there if mode == "auto" else [mode]
        found = {p: match.find_best(home, among.wanted, p) for p in asked}
        whole = {p: bundle[0] for p, bundle in found.items() if bundle and bundle[1] is None}
        if whole:
            return {
                p: needs.measure_bundle(layout.verify(path), recipe) for p, path in whole.items()
            }
    sizes = known or computed()
    return needs.convert_sizes({chosen: sizes[chosen] for chosen in there}, recipe)


def choose(
    among: Candidates,
    there: Sequence[Precision],
    need: Mapping[Precision, Need],
    gpu: Gpu | None,
) -> Choice:
    """Choose one of the precisions that are `there`; `need` is empty without a GPU.

    Raises InvalidSettings, with what to change, when nothing fits.
    """
    mode = among.settings.precision_mode
    if mode == "auto" and gpu is None and "bf16" not in there:
        choice = Choice(there[-1], "MODEL_DIR has no other precision and cannot be written")
    else:
        choice = precision.choose(
            mode,
            need,
            free=gpu.free if gpu else None,
            capability=gpu.capability if gpu else None,
        )
    log.get().info(
        "precision chosen", model=among.name, precision=choice.precision, reason=choice.reason
    )
    return choice
