"""A LoRA without side products: the weights with B @ A added, kept or made for each product."""

from typing import Any, Final

import torch
from torch import Tensor, nn

from worker.engine.device import is_out_of_memory
from worker.engine.lora import Adapters, fuse
from worker.engine.quantise import make_linear, quantise

# Columns and rows of the weights that the kernel is tried on; their LoRA has the published rank.
TRIED: Final = (256, 128, 64)
# Half a step of bf16, relative; and the share of the largest sum by which float32 sums of 64
# products in another order may differ.
HALF_STEP: Final = 2**-8
REORDERED: Final = 2**-20


@torch.library.custom_op("worker::unpack_sum", mutates_args=())
def _unpack_sum(
    packed: Tensor,
    nested: Tensor,
    nested_levels: Tensor,
    nested_maxima: Tensor,
    offset: Tensor,
    levels: Tensor,
    down: Tensor,
    up: Tensor,
) -> Tensor:
    from worker.engine import nf4_kernel  # noqa: PLC0415 - Triton is imported on a GPU alone

    return nf4_kernel.unpack_sum(
        packed, nested, nested_levels, nested_maxima, offset, levels, down, up
    )


@_unpack_sum.register_fake
def _make_sum(*given: Tensor) -> Tensor:
    """Return what the compiler must know: shape and dtype."""
    down, up = given[-2:]
    return up.new_empty(up.shape[0], down.shape[1])


def combine_nf4(base: nn.Module, down: Tensor, up: Tensor) -> Tensor:
    """Return the weight of a 4-bit Linear [out, in] plus up @ down, unpacked in one kernel."""
    weight: Any = base.weight
    state = weight.quant_state
    found: Tensor = _unpack_sum(
        weight.data,
        state.absmax,
        state.state2.code,
        state.state2.absmax,
        state.offset,
        state.code,
        down,
        up,
    )
    return found


def add_nf4(base: nn.Module, down: Tensor, up: Tensor) -> Tensor:
    """Return what `combine_nf4` does by bitsandbytes and a product: its reference."""
    from bitsandbytes import functional as bnb  # noqa: PLC0415 - only a 4-bit model pays its import

    weight: Any = base.weight
    return torch.addmm(bnb.dequantize_4bit(weight.data, weight.quant_state), up, down)


def try_nf4(device: torch.device) -> str:
    """Run the kernel on a small weight; return what is wrong with it here, "" when nothing is."""
    columns, rows, rank = TRIED
    made = torch.Generator().manual_seed(0)
    parts = quantise(torch.randn(rows, columns, generator=made).bfloat16(), "4bit", device)
    base = make_linear(parts, None, "4bit", device)
    down = torch.randn(rank, columns, generator=made).bfloat16().to(device)
    up = torch.randn(rows, rank, generator=made).bfloat16().to(device)
    try:
        found = combine_nf4(base, down, up)
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
            raise
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    expected = add_nf4(base, down, up)
    plain = add_nf4(base, torch.zeros_like(down), up)
    wrong = count_wrong(found, expected, plain)
    return f"{wrong} of {found.numel()} weights are wrong" if wrong else ""


def count_wrong(found: Tensor, expected: Tensor, plain: Tensor) -> int:
    """Return how many sums differ from those of `add_nf4` by more than both may be rounded.

    `plain` is the weight without the LoRA. The reference rounds it, then the product, which is at
    most as large as the two together, then the sum; the kernel rounds the sum alone. (cuBLAS did on
    an H100, torch 2.11: 27 of 32,768 sums are beyond what two roundings explain.)
    """
    most = (2 * plain.abs().float() + 3 * expected.abs().float()) * HALF_STEP
    most += expected.abs().max().float() * REORDERED
    return int(((found.float() - expected.float()).abs() > most).sum())


def count_merged_bytes(adapters: Adapters, name: str) -> int:
    """Return the bytes of a second copy of the plain weights that an adapter reaches."""
    return sum(
        wrapped.base.weight.numel() * wrapped.base.weight.element_size()
        for wrapped in adapters.find_wrapped(name).values()
        if type(wrapped.base) is nn.Linear
    )


def merge(adapters: Adapters, name: str) -> None:
    """Keep, for each plain Linear that an adapter reaches, its weight with B @ A added.

    In float32, rounded once. The base stays as it is, for jobs without the adapter.
    """
    for wrapped in adapters.find_wrapped(name).values():
        if type(wrapped.base) is nn.Linear:
            wrapped.keep_sum(name, fuse(wrapped.base.weight, *wrapped.find_sides(name)))
