"""The names that the publisher's own code has for the blocks' Linears, by which most LoRAs go."""

from collections.abc import Mapping
from typing import Any, Final

# Of one block of each kind; the query, key and value of a stream are one Linear there
# (_convert_non_diffusers_flux2_lora_to_diffusers of diffusers).
DOUBLE: Final[Mapping[str, tuple[str, ...]]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
SINGLE: Final[Mapping[str, tuple[str, ...]]] = {
    "linear1": ("attn.to_qkv_mlp_proj",),
    "linear2": ("attn.to_out",),
}


def list_joined(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return, for a transformer's configuration, the publisher's names with ours for each."""
    kinds = (
        ("double_blocks", "transformer_blocks", config["num_layers"], DOUBLE),
        ("single_blocks", "single_transformer_blocks", config["num_single_layers"], SINGLE),
    )
    return {
        f"{theirs}.{block}.{name}": tuple(f"{ours}.{block}.{one}" for one in parts)
        for theirs, ours, blocks, names in kinds
        for block in range(blocks)
        for name, parts in names.items()
    }
