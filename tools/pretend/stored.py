"""The tensors of modules as a bundle has them, on the pretend device and without values."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tools.pretend.device import PretendDevice
from worker.bundle import fill as filling
from worker.bundle.recipe import Part
from worker.engine import quantise
from worker.engine.offload import stream_from_host
from worker.engine.quantise import NESTED_BLOCK, NF4_BLOCK, NF4_STATE, Precision

# Shape and dtype -> a tensor of whatever values.
Make = Callable[[tuple[int, ...], torch.dtype], Tensor]


def store(
    device: PretendDevice,
    part: Part,
    modules: nn.Module,
    precision: Precision,
    *,
    is_offloaded: bool = False,
) -> Any:
    """Give a part's modules, which have no memory, the tensors that a bundle has of them.

    As `worker.bundle.open` does, from building to `final`; one that is offloaded has them on the
    host.
    """
    if is_offloaded:
        _fill(make_on_host, part, modules, precision, torch.device("cpu"))
        final = part.modules.final(modules)
        assert part.modules.streamed is not None
        stream_from_host(final, part.modules.streamed(final), torch.device("cuda"))
        return final
    _fill(device.make, part, modules, precision, torch.device("cuda"))
    return part.modules.final(modules)


def make_on_host(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor on the host whose memory nobody has touched."""
    return torch.empty(shape, dtype=dtype)


def _fill(
    make: Make, part: Part, modules: nn.Module, precision: Precision, device: torch.device
) -> None:
    precision = part.choose_precision(precision)
    tensors: dict[str, Tensor] = {}
    for name, like in modules.named_parameters():
        if part.is_replaced(name) or not like.is_meta:
            continue
        shape = tuple(like.shape)
        if quantise.is_quantised(part.quantised, name, shape, precision):
            module = name.removesuffix(".weight")
            stored = make_stored(make, shape, precision)
            tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in stored.items()}
        else:
            dtype = torch.float32 if part.is_exact else torch.bfloat16
            tensors[name] = make(shape, dtype)
    with plain_weights():
        filling.fill(modules, tensors, precision, device, packed=device.type == "cpu")


def make_stored(make: Make, shape: tuple[int, ...], precision: Precision) -> dict[str, Tensor]:
    """Return what `worker.engine.quantise.quantise` returns for a weight [out, in]."""
    count = shape[0] * shape[1]
    if precision == "8bit":
        return {
            "weight": make(shape, torch.int8),
            "weight.scale": make(shape[:1], torch.float32),
        }
    blocks = count // NF4_BLOCK
    state = quantise._pack_nf4_state(shape, 0.0)  # noqa: SLF001 - what bitsandbytes packs
    return {
        "weight": make((count // 2, 1), torch.uint8),
        "weight.absmax": make((blocks,), torch.uint8),
        "weight.quant_map": make((16,), torch.float32),
        "weight.nested_absmax": make((-(-blocks // NESTED_BLOCK),), torch.float32),
        "weight.nested_quant_map": make((256,), torch.float32),
        f"weight.{NF4_STATE}": torch.frombuffer(bytearray(state), dtype=torch.uint8),
    }


@contextmanager
def plain_weights() -> Iterator[None]:
    """Let NF4 weights be plain parameters: bitsandbytes' own class of tensor is no fake."""
    from bitsandbytes.functional import QuantState  # noqa: PLC0415 - takes seconds to import
    from bitsandbytes.nn import Linear4bit  # noqa: PLC0415 - the same

    stock = quantise.make_linear

    def make_linear(
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        precision: Precision,
        device: torch.device,
        *,
        packed: bool,
    ) -> nn.Module:
        if precision != "4bit":
            return stock(parts, bias, precision, device, packed=packed)
        stats = {key.removeprefix("weight."): t for key, t in parts.items() if key != "weight"}
        state = QuantState.from_dict(stats, device=device)
        made: Any = Linear4bit(
            state.shape[1],
            state.shape[0],
            bias=bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        made.weight = nn.Parameter(parts["weight"], requires_grad=False)
        made.weight.quant_state = state
        made.weight.bnb_quantized = True
        if bias is not None:
            made.bias = nn.Parameter(bias, requires_grad=False)
        linear: nn.Module = made
        return linear

    with patch.object(filling, "make_linear", make_linear):
        yield
