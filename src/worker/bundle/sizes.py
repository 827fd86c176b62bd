"""How many bytes a model takes at each precision, computed from its published headers."""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.bundle import headers
from worker.bundle.recipe import Part, Published, Recipe
from worker.bundle.tensors import Header, TensorEntry
from worker.engine.quantise import Precision, count_stored_bytes, is_quantised


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """The bytes that one model takes at one precision: its files, and its parts in device memory.

    `parts` maps roles to device memory; `disk` also counts what is mapped and never completely in
    device memory. `adapters` are LoRAs beside the weights.
    """

    disk: int
    parts: Mapping[str, int]
    adapters: int

    @property
    def memory(self) -> int:
        """Return the device memory of all weights."""
        return sum(self.parts.values()) + self.adapters


def count_stored(part: Part, tensors: Header, precision: Precision) -> int:
    """Return the bytes of a part's tensors in the bundle, without what replaces some of them."""
    total = 0
    for name, entry in tensors.items():
        kept = part.keep(name)
        if kept is None or part.is_replaced(kept):
            continue
        total += (
            count_stored_bytes(entry.shape, precision)
            if is_quantised(part.quantised, kept, entry.shape, precision)
            else entry.count * _count_element_bytes(part, entry)
        )
    return total


def _count_element_bytes(part: Part, entry: TensorEntry) -> int:
    """Return the bytes of a number that is not quantised: bf16, or as it was published."""
    return entry.dtype.itemsize if part.is_exact or not entry.dtype.is_floating_point else 2


def count_loaded(part: Part, published: Published) -> int:
    """Return the bytes of what replaces some of a part's weights in the device's memory."""
    return 0 if part.replaced is None else part.replaced.loaded(published)


def count_mapped(part: Part, published: Published) -> int:
    """Return the bytes of what replaces some of a part's weights: on the disk alone."""
    return 0 if part.replaced is None else part.replaced.size(published)


def compute_sizes_at(
    recipe: Recipe, published: Published, precision: Precision, *, adapters: int
) -> WeightSizes:
    """Compute what a model takes; `adapters` bytes of LoRAs stay beside the weights."""
    parts = [recipe.find_part(role) for role in recipe.with_weights]
    memory = {
        part.role: count_stored(part, headers.merge(published.shards[part.role]), precision)
        + count_loaded(part, published)
        for part in parts
    }
    return WeightSizes(
        disk=sum(memory.values()) + adapters + sum(count_mapped(part, published) for part in parts),
        parts=memory,
        adapters=adapters,
    )
