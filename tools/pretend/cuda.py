"""What torch.cuda and attention answer while the pretend device stands in for a GPU."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from tools.pretend.device import PretendDevice, count_bytes


class Marker:
    """An event or a stream: everything on the pretend device is done at once."""

    def __init__(self, *_given: Any, **_named: Any) -> None:
        self.cuda_stream = 0

    def record(self, *_given: Any) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing: at most one step of the loop is ahead, which is no wait for its values."""

    def query(self) -> bool:
        """Return that it is done."""
        return True

    def wait_stream(self, _other: Any) -> None:
        """Do nothing."""

    def wait_event(self, _event: Any) -> None:
        """Do nothing."""


@contextmanager
def pretend(device: PretendDevice) -> Iterator[PretendDevice]:
    """Run what is inside with "cuda" being the pretend device."""
    with ExitStack() as stack:

        def put(owner: Any, **values: Any) -> None:
            for name, value in values.items():
                stack.enter_context(patch.object(owner, name, value))

        memory = device.memory
        put(
            torch.cuda,
            _lazy_init=lambda: None,
            synchronize=lambda *_: None,
            Event=Marker,
            Stream=Marker,
            stream=lambda _: nullcontext(),
            default_stream=Marker,
            current_stream=Marker,
            empty_cache=lambda: None,
            max_memory_allocated=lambda *_: memory.peak,
            reset_peak_memory_stats=lambda *_: None,
            mem_get_info=lambda *_: (memory.free, memory.free + memory.live),
            memory_allocated=lambda *_: memory.live,
            memory_reserved=lambda *_: memory.live,
        )
        tensor = send_made(torch.tensor)
        put(torch, tensor=tensor, as_tensor=send_given(torch.as_tensor, tensor))
        attend = make_attention(device, functional.scaled_dot_product_attention)
        put(functional, scaled_dot_product_attention=attend)
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(device)
        yield device


def is_cuda(device: Any) -> bool:
    """Return whether a device, None for the default one, is the pretend device."""
    return device is not None and torch.device(device).type == "cuda"


def send_made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return torch.tensor with the copy to the device as an operator, which it is not in C++."""

    def tensor(data: Any, *, dtype: Any = None, device: Any = None, **more: Any) -> Tensor:
        if not is_cuda(device):
            return make(data, dtype=dtype, device=device, **more)
        data = tree_map_only(Tensor, lambda one: one.item(), data)
        return make(data, dtype=dtype).to(device)

    return tensor


def send_given(keep: Callable[..., Tensor], make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return torch.as_tensor with the copy to the device as an operator."""

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        if isinstance(data, Tensor) or not is_cuda(device):
            return keep(data, dtype=dtype, device=device)
        return make(data, dtype=dtype, device=device)

    return as_tensor


def make_attention(device: PretendDevice, stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return attention as flash's kernel, or with a mask the memory-efficient one, computes it.

    Neither makes the scores [batch, heads, queries, keys]. A mask is counted.
    """

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *given: Any,
        **named: Any,
    ) -> Tensor:
        if not isinstance(query, FakeTensor):
            return stock(query, key, value, attn_mask, *given, **named)
        batch, heads, queries, channels = query.shape
        if attn_mask is not None:
            device.ledger.add_masked(f"mask {list(attn_mask.shape)}")
        device.make((batch, heads, queries), torch.float32)  # the logarithms of the sums
        made = device.make((batch, queries, heads, value.shape[-1]), query.dtype).transpose(1, 2)
        operations = 4 * batch * heads * queries * key.shape[2] * channels
        moved = sum(map(count_bytes, (query, key, value, made)))
        device.ledger.add_kernel(moved, operations, is_product=True)
        device.ledger.attention[device.ledger.phase] += operations
        return made

    return attend
