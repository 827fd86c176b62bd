"""A least-recently-used cache of tensors in a budget of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class TensorCache:
    """Keep the tensors used last, up to `budget` bytes; for one thread."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor kept under `key`; compute and keep it when there is none."""
        kept = self._kept.get(key)
        if kept is not None:
            self.hits += 1
            self._kept.move_to_end(key)
            return kept
        self.misses += 1
        tensor = compute()
        size = tensor.numel() * tensor.element_size()
        if size <= self._budget:
            self._kept[key] = tensor
            self._used += size
            while self._used > self._budget:
                _, dropped = self._kept.popitem(last=False)
                self._used -= dropped.numel() * dropped.element_size()
        return tensor

    def clear(self) -> None:
        """Drop every tensor, to free memory."""
        self._kept.clear()
        self._used = 0
