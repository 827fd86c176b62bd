"""One block of the transformer over diffusers' modules: two streams of tokens, or one."""

from typing import Any

import torch
from torch import Tensor

from worker.families.flux2.shares import attend
from worker.families.rotary import rotate


def run_double(
    block: Any,
    image: Tensor,
    text: Tensor,
    image_rows: Tensor,
    text_rows: Tensor,
    table: Tensor,
    shares: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the image and the text stream, both [batch, tokens, dim], after a double block.

    The rows [batch, 6 * dim] modulate each stream, `table` has the positions of the text's and then
    the pictures' tokens, `shares` is that of `attend`. In the order of operations of diffusers'
    Flux2TransformerBlock, so that results are equal to the last bit on a CPU.
    """
    shift, scale, gate, shift_after, scale_after, gate_after = _split(image_rows, 6)
    text_shift, text_scale, text_gate, *text_after = _split(text_rows, 6)
    shown_image = (1 + scale) * block.norm1(image) + shift
    shown_text = (1 + text_scale) * block.norm1_context(text) + text_shift
    heard_image, heard_text = _attend_both(block.attn, shown_image, shown_text, table, shares)
    image = image + gate * heard_image
    shown_image = block.norm2(image) * (1 + scale_after) + shift_after
    image = image + gate_after * _run_mlp(block.ff, shown_image)
    text = text + text_gate * heard_text
    shown_text = block.norm2_context(text) * (1 + text_after[1]) + text_after[0]
    text = text + text_after[2] * _run_mlp(block.ff_context, shown_text)
    return image, text


def run_single(
    block: Any, tokens: Tensor, rows: Tensor, table: Tensor, shares: Tensor | None
) -> tuple[Tensor]:
    """Return the joint stream [batch, tokens, dim] after a single block, the text's tokens first.

    The `rows` [batch, 3 * dim] modulate it; the others are those of `run_double`. In the order of
    operations of diffusers' Flux2SingleTransformerBlock.
    """
    shift, scale, gate = _split(rows, 3)
    shown = (1 + scale) * block.norm(tokens) + shift
    attention = block.attn
    inner = 3 * attention.inner_dim
    projected = attention.to_qkv_mlp_proj(shown)
    query, key, value = projected[..., :inner].chunk(3, dim=-1)
    heard = attend(
        rotate(attention.norm_q(_split_heads(query, attention)), table),
        rotate(attention.norm_k(_split_heads(key, attention)), table),
        _split_heads(value, attention),
        shares,
    )
    fed = attention.mlp_act_fn(projected[..., inner:])
    return (tokens + gate * attention.to_out(torch.cat([heard, fed], dim=-1)),)


def _attend_both(
    attention: Any, image: Tensor, text: Tensor, table: Tensor, shares: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what each stream gets from both."""
    query = torch.cat(
        [
            attention.norm_added_q(_split_heads(attention.add_q_proj(text), attention)),
            attention.norm_q(_split_heads(attention.to_q(image), attention)),
        ],
        dim=1,
    )
    key = torch.cat(
        [
            attention.norm_added_k(_split_heads(attention.add_k_proj(text), attention)),
            attention.norm_k(_split_heads(attention.to_k(image), attention)),
        ],
        dim=1,
    )
    value = torch.cat(
        [
            _split_heads(attention.add_v_proj(text), attention),
            _split_heads(attention.to_v(image), attention),
        ],
        dim=1,
    )
    heard = attend(rotate(query, table), rotate(key, table), value, shares)
    count = text.shape[1]
    return attention.to_out[0](heard[:, count:]), attention.to_add_out(heard[:, :count])


def _split_heads(flat: Tensor, attention: Any) -> Tensor:
    """Return [batch, tokens, heads, channels] of [batch, tokens, dim]."""
    return flat.view(*flat.shape[:-1], -1, attention.head_dim)


def _split(rows: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return the modulation of a stream in its parts, each [batch, 1, dim]."""
    return rows.unsqueeze(1).chunk(count, dim=-1)


def _run_mlp(layers: Any, x: Tensor) -> Tensor:
    """Return what an MLP makes of a stream."""
    fed: Tensor = layers.linear_out(layers.act_fn(layers.linear_in(x)))
    return fed
