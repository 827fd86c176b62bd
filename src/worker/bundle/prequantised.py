"""Weights that were published already quantised: recognised by their files before a download."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch

from worker.bundle.tensors import NAMES, Header
from worker.errors import WeightsUnavailable
from worker.weights.spec import ModelSpec

# What a bundle is made from: numbers that keep their meaning when cast to bf16. Integers and floats
# of fewer than 16 bits are codes, which only their own scales and tables turn into weights.
PLAIN_FORMATS: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CONFIGURED: Final = ("quantization_config", "compression_config")
# Where a composite configuration has the parts of a text encoder.
NESTED: Final = ("text_config", "vision_config")
LONGEST_WORD: Final = 40

# Names that a quantiser gives to the tensors beside its weights -> the quantiser's name.
BESIDE: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    (
        "bitsandbytes 4-bit",
        re.compile(
            r"\.(?:nested_)?(?:absmax|quant_map)|\.quant_state\.bitsandbytes__\w+|\.quant_storage"
        ),
    ),
    ("bitsandbytes 8-bit", re.compile(r"\.(?:SCB|weight_format)")),
    ("Nunchaku SVDQuant", re.compile(r"\.(?:wscales|wcscales|wtscale|smooth_factor\w*)")),
    ("GPTQ or AWQ", re.compile(r"\.(?:qweight|qzeros|g_idx|scales)")),
    ("quanto", re.compile(r"\.(?:weight\._(?:data|scale|shift)|output_scale)")),
    ("torchao", re.compile(r"\.(?:\w*weight:[\w:.]+|_weight_\w+)")),
    ("compressed-tensors", re.compile(r"\.weight_(?:packed|shape|global_scale|zero_point)")),
    ("HQQ", re.compile(r"\.W_q(?:\..*)?")),
    ("SDNQ", re.compile(r"\.(?:svd_up|svd_down|quantized_weight\w*)")),
    (
        "scaled",
        re.compile(
            r"(?:\.|^)(?:weight_scale(?:_inv|_2)?|weight\.scale\w*|scale_weight|scale_input"
            r"|input_scale|scaled_fp8|scale|zero_point|zeros|comfy_quant|weight_quantizer\..*)"
        ),
    ),
)
METHODS: Final = {
    "awq": "AWQ",
    "bitsandbytes_4bit": "bitsandbytes 4-bit",
    "bitsandbytes_8bit": "bitsandbytes 8-bit",
    "fbgemm_fp8": "FBGEMM fp8",
    "gguf": "GGUF",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "sdnq": "SDNQ",
}
# Fields of a configuration that name its number format.
WIDTHS: Final = ("bnb_4bit_quant_type", "weights_dtype", "weights", "quant_type", "fmt")
BITS: Final = ("bits", "w_bit", "nbits", "weight_bits")


def find_declared(config: Mapping[str, Any]) -> str | None:
    """Name the quantisation that a configuration declares; None when it declares none."""
    parts = (config, *(config.get(name) for name in NESTED))
    for part in parts:
        for key in CONFIGURED:
            if isinstance(part, Mapping) and (declared := part.get(key)):
                return _name_method(declared)
    return None


def _name_method(declared: Any) -> str:
    if not isinstance(declared, Mapping):
        return "a method without a name"
    name = declared.get("quant_method") or declared.get("quant_backend")
    if not isinstance(name, str) or not name:
        return "several methods" if declared.get("quant_mapping") else "a method without a name"
    inner = declared.get("quant_kwargs")
    facts = {**declared, **inner} if isinstance(inner, Mapping) else declared
    word = METHODS.get(name.lower(), name[:LONGEST_WORD])
    if name.lower() == "bitsandbytes":
        word += " 8-bit" if facts.get("load_in_8bit") else " 4-bit"
    numbers = [v[:LONGEST_WORD] for key in WIDTHS if isinstance(v := facts.get(key), str) and v]
    numbers += [f"{v}-bit" for key in BITS if isinstance(v := facts.get(key), int)]
    if "8-bit" in word or not numbers:
        return word
    return f"{word} ({numbers[0]})"


def find_stored(header: Header, kept: Iterable[str], beside: Sequence[str]) -> str | None:
    """Name the number format of weights that no bundle is made from; None when all are plain.

    `kept` are the tensors that a bundle keeps, `beside` those that no module has.
    """
    label = next(
        (word for word, pattern in BESIDE if any(_is_at_end(pattern, name) for name in beside)),
        None,
    )
    formats: dict[str, str] = {}
    for name in (*kept, *beside):
        if header[name].dtype not in PLAIN_FORMATS:
            formats.setdefault(NAMES[header[name].dtype], name)
    if not formats:
        return label
    words = " and ".join(_name_plainly(written) for written in sorted(formats))
    first = f"{words}, as {formats[min(formats)]}"
    return f"{label}: {first}" if label else first


def _is_at_end(pattern: re.Pattern[str], name: str) -> bool:
    match = pattern.search(name)
    return match is not None and match.end() == len(name)


def _name_plainly(written: str) -> str:
    """Return a format's name in the words that its publishers use."""
    if written.startswith("F8_"):
        return f"fp8 ({written})"
    if written in ("I8", "U8"):
        return f"int8 ({written})" if written == "I8" else f"packed bytes ({written})"
    return written


def make_refusal(where: str, what: str, spec: ModelSpec) -> WeightsUnavailable:
    """Return the error for a part of a model, `where`, whose weights are in `what`."""
    other = spec.listing.instead
    advice = f"set MODEL={other}" if other else "name the repository that it was made from"
    return WeightsUnavailable(
        f"{where} was published already quantised or in another number format: {what}. This worker"
        " quantises by itself, as PRECISION_MODE says, from weights in BF16, F32 or F16: " + advice
    )
