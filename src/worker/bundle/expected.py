"""Which tensors a part must have, by the modules that its configuration describes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.bundle.recipe import Configuration, Part
from worker.errors import WeightsUnavailable

CONFIGURATION: Final = "config.json"
LONGEST_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class Expected:
    """The tensors that fit a part's modules.

    `kept` maps every parameter to its shape. `dropped` are tensors that a publisher may store too:
    those that the modules compute themselves, and those of modules that are removed. `config` is
    the configuration with its defaults.
    """

    kept: Mapping[str, tuple[int, ...]]
    dropped: frozenset[str]
    config: Mapping[str, Any]


def build_expected(part: Part, config: Configuration) -> Expected:
    """Build a part's modules from its configuration and return what fits them.

    Raises WeightsUnavailable when no modules can be built from it.
    """
    try:
        model = part.modules.stock(config)
    except Exception as error:
        # whatever a constructor raises for such a configuration, it raises every time
        raise WeightsUnavailable(
            f"{part.role}/{CONFIGURATION} describes no model that can be built:"
            f" {type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"
        ) from error
    stock = {*model.state_dict(), *dict(model.named_buffers())}
    filled = part.modules.filled(model)
    bare = part.modules.bare(model)
    kept = {name: tuple(tensor.shape) for name, tensor in bare.named_parameters()}
    return Expected(kept, frozenset(stock - kept.keys()), filled)
