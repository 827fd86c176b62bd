"""The families of this version, their models as one catalogue; adding one means adding a name."""

from collections.abc import Mapping, Sequence
from typing import Final

from worker.families.family import DeviceNeed, Family
from worker.families.flux2 import models as flux2
from worker.families.orpheus import models as orpheus
from worker.families.qwen_image import models as qwen_image
from worker.setting_values import Precision
from worker.settings import Settings
from worker.weights.meaning import Catalogue
from worker.weights.spec import ModelSpec

FAMILIES: Final = (qwen_image.FAMILY, flux2.FAMILY, orpheus.ORPHEUS)


def combine(families: Sequence[Family]) -> Catalogue:
    """Return the catalogue of several families; MODEL's defaults are the same whatever they are."""
    return Catalogue(
        rows=tuple(row for family in families for row in family.rows),
        groups={word: names for family in families for word, names in family.groups.items()},
        classes={name: known for family in families for name, known in family.classes.items()},
        forms=tuple(dict.fromkeys(family.form for family in families)),
        default=qwen_image.DEFAULT,
        embedded=qwen_image.EMBEDDED,
        relatives=tuple(one for family in families for one in family.relatives),
    )


def estimate_needs(spec: ModelSpec, settings: Settings) -> Mapping[Precision, DeviceNeed]:
    """Return what a model needs by precision, the smallest first; empty where that is not known."""
    for family in FAMILIES:
        if any(row.family == spec.family for row in family.rows):
            return family.needs(spec, settings)
    return {}


# Always read through this module, so that a test can put a catalogue with another family here.
CATALOGUE = combine(FAMILIES)
