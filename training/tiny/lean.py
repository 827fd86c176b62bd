"""The transformer's forward pass for training: the same function of the same parameters, faster.

References are modulated at t = 0: one row, not one per sample, and sliced, not selected;
rotary embeddings are real numbers, which can be compiled; attention is two matrix products, as the
fused kernel's backward pass in bf16 is slow on a CPU. A test checks that both forwards agree.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch source uses
from torch import Tensor

Turn = tuple[Tensor, Tensor]
Turns = tuple[Turn, Turn]  # of the text, of the image
Pair = tuple[Any, Any]  # of the text, of the image


def _turn(x: Tensor, turn: Turn) -> Tensor:
    """Rotate pairs of (B, S, heads, dim) by (S, 1, dim / 2) cosines and sines."""
    cos, sin = turn
    left, right = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack((left * cos - right * sin, left * sin + right * cos), dim=-1).flatten(-2)


def _joint(
    projections: Pair, norms: Pair, streams: tuple[Tensor, Tensor], heads: int, turns: Turns
) -> Tensor:
    """Return queries or keys (B, heads, L + S, dim) of text and image, normed and rotated."""
    parts = []
    for project, norm, x, turn in zip(projections, norms, streams, turns, strict=True):
        split = project(x).float().unflatten(-1, (heads, -1))
        scale = torch.rsqrt(split.square().mean(-1, keepdim=True) + norm.eps)
        parts.append(_turn(split * scale * norm.weight, turn))
    return torch.cat(parts, dim=1).transpose(1, 2)


def _mlp(feed_forward: Any, x: Tensor) -> Tensor:
    first, last = feed_forward.net[0].proj, feed_forward.net[2]
    out: Tensor = last(F.gelu(first(x), approximate="tanh"))
    return out


def _modulated(x: Tensor, target: Tensor, still: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return normed x after shift and scale, and the gate.

    The first `kept` tokens use `target`, the rest `still`. x (B, S, D); target (B, 3 D); still
    (1, 3 D).
    """
    rest = x.shape[1] - kept
    rows = target[:, None].expand(-1, kept, -1)
    if rest:
        rows = torch.cat((rows, still[:, None].expand(len(x), rest, -1)), dim=1)
    shift, scale, gate = rows.chunk(3, dim=-1)
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift, gate


def block(
    module: Any,
    x: Tensor,
    y: Tensor,
    temb: Tensor,
    bias: Tensor,
    kept: int,
    turns: Turns,
) -> tuple[Tensor, Tensor]:
    """Return image tokens x (B, S, D) and text tokens y (B, L, D) after one block.

    temb (B + 1, D) has each sample's time and, last, t = 0; bias (B, 1, 1, L + S) is added to the
    attention scores.
    """
    a = module.attn
    both = module.img_mod(temb).float()
    words = module.txt_mod(temb[:-1]).float()
    (i1, i2), (z1, z2) = both[:-1].chunk(2, dim=-1), both[-1:].chunk(2, dim=-1)
    t1, t2 = words.chunk(2, dim=-1)
    length = y.shape[1]

    xm, xg = _modulated(x, i1, z1, kept)
    ym, yg = _modulated(y, t1, t1[:1], length)
    q = _joint((a.add_q_proj, a.to_q), (a.norm_added_q, a.norm_q), (ym, xm), a.heads, turns)
    k = _joint((a.add_k_proj, a.to_k), (a.norm_added_k, a.norm_k), (ym, xm), a.heads, turns)
    v = torch.cat((a.add_v_proj(ym), a.to_v(xm)), dim=1)
    v = v.reshape(len(v), -1, a.heads, v.shape[2] // a.heads)
    scores = (q * a.scale) @ k.transpose(-1, -2)
    mixed = ((scores.float() + bias).softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
    x = x + xg * a.to_out[0](mixed[:, length:])
    y = y + yg * a.to_add_out(mixed[:, :length])

    xm, xg = _modulated(x, i2, z2, kept)
    x = x + xg * _mlp(module.img_mlp, xm)
    ym, yg = _modulated(y, t2, t2[:1], length)
    y = y + yg * _mlp(module.txt_mlp, ym)
    return x, y


def _real(freqs: Tensor) -> Turn:
    """Return the (S, 1, dim / 2) cosines and sines of complex (S, dim / 2) rotations."""
    return freqs.real[:, None].clone(), freqs.imag[:, None].clone()


class Conditions(NamedTuple):
    """The inputs of a group of B pictures.

    embeds (B, L, D); words (B, L), False for padding; references (B, R, 64) or None; img_shapes.
    """

    embeds: Tensor
    words: Tensor
    references: Tensor | None
    shapes: list[list[tuple[int, int, int]]]


class Lean:
    """Call a QwenImageTransformer2DModel with zero_cond_t the faster way."""

    def __init__(self, transformer: Any, *, compiled: bool = False, bf16: bool = False) -> None:
        self.transformer, self.bf16 = transformer, bf16
        if compiled:  # three tasks, with and without gradients, with and without a LoRA
            torch._dynamo.config.recompile_limit = 32  # noqa: SLF001 - its only name
        self.block = torch.compile(block, dynamic=False) if compiled else block

    def __call__(self, noisy: Tensor, t: Tensor, given: Conditions) -> Tensor:
        """Return the predicted velocity (B, N, 64) of noisy (B, N, 64) at times t (B,) in 0..1."""
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.bf16):
            return self._forward(noisy, t, given)

    def _forward(self, noisy: Tensor, t: Tensor, given: Conditions) -> Tensor:
        m = self.transformer
        tokens = noisy
        if given.references is not None:
            tokens = torch.cat((noisy, given.references), dim=1)
        x = m.img_in(tokens).float()
        y = m.txt_in(m.txt_norm(given.embeds.float())).float()
        temb = m.time_text_embed(torch.cat((t, t.new_zeros(1))), x).float()
        bias = F.pad((~given.words).float() * -1e9, (0, x.shape[1]))[:, None, None]
        image, text = m.pos_embed(given.shapes, max_txt_seq_len=y.shape[1], device=x.device)
        turns = _real(text), _real(image)
        kept = noisy.shape[1]
        for module in m.transformer_blocks:
            x, y = self.block(module, x, y, temb, bias, kept, turns)
        out: Tensor = m.proj_out(m.norm_out(x[:, :kept], temb[:-1]))
        return out.float()
