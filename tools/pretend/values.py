"""The values of small tensors on the pretend device: the host will request some of them."""

from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

# Elements of a tensor whose values are kept: those of positions and grids, not of pixels.
MOST: Final = 1 << 17


class Values:
    """The real values of tensors on the device, where they follow from what the host sent there."""

    def __init__(self) -> None:
        self._known: Any = WeakTensorKeyDictionary()

    def find(self, tensor: Tensor) -> Tensor | None:
        """Return the values of a tensor on the device, on the CPU; None where they are unknown."""
        found: Tensor | None = self._known.get(tensor)
        return found

    def keep(self, tensor: Tensor, values: Tensor) -> Tensor:
        """Keep the values of a small tensor of whole numbers, and return the tensor."""
        if values.numel() <= MOST and not values.dtype.is_floating_point:
            self._known[tensor] = values
        return tensor

    def follow(self, tensor: Tensor, values: Tensor) -> None:
        """Keep what was computed from known values: a small tensor of real numbers."""
        if values.numel() <= MOST and not values.dtype.is_complex:
            self._known[tensor] = values

    def forget(self, tensor: Tensor) -> None:
        """Forget the values of a tensor that was overwritten."""
        self._known.pop(tensor, None)

    def has_all(self, tensors: list[Tensor]) -> bool:
        """Return whether the values of all these tensors are known."""
        return all(tensor in self._known for tensor in tensors)

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operator on known values, on the CPU."""
        args, kwargs = tree_map_only(FakeTensor, self.find, (args, kwargs))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        return func(*args, **kwargs)
