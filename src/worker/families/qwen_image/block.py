"""One block of the transformer over diffusers' modules: joint attention, an MLP per stream."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worker.families.rotary import rotate

Tables = tuple[Tensor, Tensor]


def run_block(
    block: Any,
    image: Tensor,
    text: Tensor,
    temb: Tensor,
    tables: Tables,
    mask: Tensor | None,
    target: int,
) -> tuple[Tensor, Tensor]:
    """Return the image and the text stream, both [batch, tokens, dim], after one block.

    `temb` [batch, dim] is the timestep's embedding, or [2 * batch, dim] with that of 0 after it:
    then the image tokens from `target` on, those of references, are modulated by 0. `tables` are
    the positions of the pictures' tokens and of the text's (rope.py); `mask` bool [batch, 1, 1,
    text + image tokens] is None when all count. In the order of operations of diffusers'
    QwenImageTransformerBlock, so that results are equal to the last bit on a CPU.
    """
    batch = image.shape[0]
    image_rows = block.img_mod(temb).unsqueeze(1).chunk(6, dim=-1)
    text_rows = block.txt_mod(temb[:batch]).unsqueeze(1).chunk(6, dim=-1)

    shown_image = _scale(block.img_norm1(image), image_rows[:2], target)
    shown_text = _scale(block.txt_norm1(text), text_rows[:2], target)
    heard_image, heard_text = _attend(block.attn, shown_image, shown_text, tables, mask)
    image = _add(image, heard_image, image_rows[2], target)
    text = _add(text, heard_text, text_rows[2], target)

    shown_image = _scale(block.img_norm2(image), image_rows[3:5], target)
    image = _add(image, block.img_mlp(shown_image), image_rows[5], target)
    shown_text = _scale(block.txt_norm2(text), text_rows[3:5], target)
    text = _add(text, block.txt_mlp(shown_text), text_rows[5], target)
    return image, text


def _attend(
    attention: Any, image: Tensor, text: Tensor, tables: Tables, mask: Tensor | None
) -> Tables:
    """Return what each stream gets from both, the text's tokens before the pictures'."""
    image_positions, text_positions = tables

    def split(flat: Tensor) -> Tensor:
        return flat.view(*flat.shape[:-1], attention.heads, -1)

    query = torch.cat(
        [
            rotate(attention.norm_added_q(split(attention.add_q_proj(text))), text_positions),
            rotate(attention.norm_q(split(attention.to_q(image))), image_positions),
        ],
        dim=1,
    )
    key = torch.cat(
        [
            rotate(attention.norm_added_k(split(attention.add_k_proj(text))), text_positions),
            rotate(attention.norm_k(split(attention.to_k(image))), image_positions),
        ],
        dim=1,
    )
    value = torch.cat([split(attention.add_v_proj(text)), split(attention.to_v(image))], dim=1)
    joint = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
    )
    heard = joint.transpose(1, 2).flatten(2)
    count = text.shape[1]
    return (
        attention.to_out[0](heard[:, count:].contiguous()),
        attention.to_add_out(heard[:, :count].contiguous()),
    )


def _scale(x: Tensor, rows: Tables, target: int) -> Tensor:
    """Return x * (1 + scale) + shift, the rows being shift and scale."""
    return _modulate(lambda part, shift, scale: part * (1 + scale) + shift, (x,), rows, target)


def _add(x: Tensor, y: Tensor, gate: Tensor, target: int) -> Tensor:
    """Return x + gate * y."""
    return _modulate(lambda part, add, one: part + one * add, (x, y), (gate,), target)


def _modulate(
    compute: Callable[..., Tensor],
    streams: tuple[Tensor, ...],
    rows: tuple[Tensor, ...],
    target: int,
) -> Tensor:
    """Compute on streams [batch, tokens, dim] with the rows [batch, 1, dim] of each token.

    With twice as many rows, the first half is for the tokens before `target`, the second for those
    after it. Compiled, every token chooses its row within the kernel; otherwise that would be a
    tensor of the stream's size per row, so that the sequence is split instead.
    """
    batch = streams[0].shape[0]
    if rows[0].shape[0] == batch:
        return compute(*streams, *rows)
    halves = [row[:batch] for row in rows], [row[batch:] for row in rows]
    if torch.compiler.is_compiling():
        tokens = torch.arange(streams[0].shape[1], device=streams[0].device)
        is_target = (tokens < target)[:, None]
        return compute(
            *streams, *(torch.where(is_target, *pair) for pair in zip(*halves, strict=True))
        )
    cuts = [one[:, :target] for one in streams], [one[:, target:] for one in streams]
    return torch.cat([compute(*cut, *half) for cut, half in zip(cuts, halves, strict=True)], dim=1)
