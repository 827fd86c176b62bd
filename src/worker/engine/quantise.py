"""Weights in fewer bits: which ones, how they are stored, and the Linears that use them."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.setting_values import PRECISIONS as PRECISIONS  # noqa: PLC0414 - what is quantised is asked here
from worker.setting_values import Precision as Precision  # noqa: PLC0414 - the same

# Weights per block of bitsandbytes' NF4, and maxima per block of its second quantisation.
NF4_BLOCK: Final = 64
NESTED_BLOCK: Final = 256
# On a CPU with AVX512-BF16 bitsandbytes packs 32 rows at a time and divides columns into blocks.
PACKED_ROWS: Final = 32
# Weights quantised in one call; a row and its blocks stay together.
CHUNK_WEIGHTS: Final = 1 << 22
# Weights that are unpacked once on a CPU, 2 MB each: those of the embedded models, whose products
# take 55 us so and 142 us packed (128 x 128, 72 tokens; 98 us as bitsandbytes repacks them for
# AVX512-BF16, which gives other bits).
SMALL_WEIGHT: Final = 1 << 20
NF4_STATE: Final = "quant_state.bitsandbytes__nf4"


def is_quantised(
    names: re.Pattern[str] | None, name: str, shape: Sequence[int], precision: Precision
) -> bool:
    """Return whether a tensor is stored in fewer bits at `precision`, if `names` match its name.

    A weight [out, in] stays bf16 unless out is a multiple of 32 and in of 64: bitsandbytes refuses
    it on CPUs with AVX512-BF16.
    """
    if precision == "bf16" or names is None or not names.fullmatch(name):
        return False
    return shape[0] % PACKED_ROWS == 0 and shape[1] % NF4_BLOCK == 0


def count_stored_bytes(shape: Sequence[int], precision: Precision) -> int:
    """Return the bytes that a weight of `shape` takes, on disk and on the device.

    NF4, for a shape that `is_quantised` accepts: half a byte per weight, one byte per block of 64,
    a float32 per 256 blocks, and its tables. 8bit: a byte per weight and a float32 per row.
    """
    count = 1
    for size in shape:
        count *= size
    if precision == "bf16":
        return 2 * count
    if precision == "8bit":
        return count + 4 * shape[0]
    blocks = count // NF4_BLOCK
    tables = 16 * 4 + 256 * 4 + len(_pack_nf4_state(shape, 0.0))
    return count // 2 + blocks + 4 * -(-blocks // NESTED_BLOCK) + tables


def quantise(weight: Tensor, precision: Precision, device: torch.device) -> dict[str, Tensor]:
    """Quantise `weight` [out, in] on `device` into tensors on the CPU, keyed by suffix.

    4bit: bitsandbytes NF4 with double quantisation, under the keys of its own state dicts, so that
    other loaders read the files. 8bit: int8 in [-127, 127] and a float32 scale [out], one per row.
    """
    if precision == "4bit":
        return _quantise_nf4(weight, device)
    if precision == "8bit":
        return _quantise_int8(weight.to(device))
    raise ValueError("bf16 weights are not quantised")


def _quantise_nf4(weight: Tensor, device: torch.device) -> dict[str, Tensor]:
    from bitsandbytes import functional as bnb  # noqa: PLC0415 - only a 4-bit model pays its import

    # Chunk by chunk: on a CPU bitsandbytes takes 24 bytes per weight while it works. Blocks are
    # independent, and their maxima are quantised together, so the result equals that of one call.
    chunks = [
        bnb.quantize_4bit(
            rows.to(device, torch.bfloat16).contiguous(),
            blocksize=NF4_BLOCK,
            quant_type="nf4",
        )
        for rows in torch.split(weight, max(1, CHUNK_WEIGHTS // weight.shape[1]))
    ]
    maxima = torch.cat([state.absmax for _, state in chunks])
    offset = maxima.mean()
    nested, second = bnb.quantize_blockwise(maxima - offset, blocksize=NESTED_BLOCK)
    state = bnb.QuantState(
        absmax=nested,
        shape=weight.shape,
        dtype=torch.bfloat16,
        blocksize=NF4_BLOCK,
        code=chunks[0][1].code,
        quant_type="nf4",
        offset=offset,
        state2=second,
    )
    parts: dict[str, Tensor] = {"weight": torch.cat([packed for packed, _ in chunks]).cpu()}
    for key, value in state.as_dict(packed=True).items():
        parts[f"weight.{key}"] = value.cpu().contiguous()
    return parts


def _pack_nf4_state(shape: Sequence[int], offset: float) -> bytes:
    """Return what bitsandbytes packs alongside the tensors; used for its size."""
    facts: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": NF4_BLOCK,
        "dtype": "bfloat16",
        "shape": list(shape),
        "nested_blocksize": NESTED_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": offset,
    }
    return json.dumps(facts).encode()


def _quantise_int8(weight: Tensor) -> dict[str, Tensor]:
    rows = weight.float()
    scale = rows.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny) / 127
    levels = (rows / scale[:, None]).round_().to(torch.int8)
    return {"weight": levels.cpu(), "weight.scale": scale.cpu()}


class Linear8bit(nn.Linear):
    """A Linear of int8 weights and one scale per row; activations keep bf16 and its range.

    bitsandbytes' LLM.int8 casts activations to fp16, whose range image models exceed. Integers up
    to 127 are exact in bf16, so the product is that of bf16 weights rounded to 8 bits.
    """

    scale: Tensor

    def __init__(self, levels: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        out_features, in_features = levels.shape
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.weight = nn.Parameter(levels, requires_grad=False)
        self.register_buffer("scale", scale)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out] in x's dtype; the scaling is done in float32."""
        y = functional.linear(x, self.weight.to(x.dtype))
        # Each pass converts as it reads and writes: 12 bytes per value instead of 28, same bits.
        scaled = torch.empty_like(y)
        bias: Tensor | None = self.bias
        if bias is None:
            return torch.mul(y, self.scale, out=scaled)
        return torch.add(y * self.scale, bias, out=scaled)


def make_linear(
    parts: Mapping[str, Tensor],
    bias: Tensor | None,
    precision: Precision,
    device: torch.device,
    *,
    packed: bool = False,
) -> nn.Linear:
    """Make the Linear that computes with what `quantise` returned.

    `parts` may be on `device` already, except NF4's packed state, which stays on the CPU. A small
    4-bit weight is unpacked on a CPU, unless it is to stay `packed`: the products are those of the
    packed one, to the last bit.
    """
    if precision == "8bit":
        return Linear8bit(parts["weight"].to(device), parts["weight.scale"].to(device), bias)
    if precision != "4bit":
        raise ValueError("bf16 weights are not quantised")
    from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: PLC0415 - only a 4-bit model pays its import

    stats = {key.removeprefix("weight."): t for key, t in parts.items() if key != "weight"}
    shape = json.loads(bytes(stats[NF4_STATE].tolist()))["shape"]
    module: Any = Linear4bit(
        shape[1],
        shape[0],
        bias=bias is not None,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
        device="meta",
    )
    module.weight = Params4bit.from_prequantized(
        parts["weight"], stats, device=device, module=module
    )
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    if device.type == "cpu" and math.prod(shape) <= SMALL_WEIGHT and not packed:
        return _unpack(module)
    # With AVX512-BF16 bitsandbytes would repack every weight in the first forward pass: half of the
    # time to a first picture, for products that take as long (0.07 s either way, 12288 x 3072).
    module.support_avx512bf16_for_cpu = False
    made: nn.Linear = module
    return made


def _unpack(packed: Any) -> nn.Linear:
    """Return a bf16 Linear with the weight that a 4-bit one would unpack for each product."""
    from bitsandbytes import functional as bnb  # noqa: PLC0415 - only a 4-bit model pays its import

    made = nn.Linear(packed.in_features, packed.out_features, device="meta")
    weight = bnb.dequantize_4bit(packed.weight.data, packed.weight.quant_state)
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = packed.bias
    return made
