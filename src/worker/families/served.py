"""What is said of a served model: by its row, whatever family it is of, and by what is offered."""

from collections.abc import Mapping

from worker.seam import Offer, Served
from worker.weights.spec import ModelSpec


def describe_served(
    spec: ModelSpec, revision: str, precision: str, offers: Mapping[str, Offer], working: int
) -> Served:
    """Return what is served of a model; `working` is the bytes that its largest job takes."""
    return Served(
        id=spec.name,
        repository=spec.repository,
        revision=revision,
        precision=precision,
        licence=spec.licence,
        is_gated=spec.is_gated,
        offers=offers,
        working=working,
    )
