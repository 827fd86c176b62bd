"""What a worker with the embedded models serves, without opening them."""

from worker.families.catalogue import CATALOGUE
from worker.families.orpheus.offer import describe_speech
from worker.families.pictures import describe
from worker.seam import Served
from worker.settings import Settings
from worker.weights.spec import list_lightning_steps


def served(settings: Settings) -> list[Served]:
    """Return what callers may request of the models that MODEL names, on a CPU."""
    return [
        (describe_speech if "speech" in spec.tasks else describe)(
            spec,
            settings,
            revision="local",
            precision="bf16",
            lightning=list_lightning_steps(spec, settings),
            working=lambda _: 0,
            left=None,
        )
        for spec in CATALOGUE.resolve(settings.model, settings, has_gpu=False)
    ]
