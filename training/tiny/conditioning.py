"""Prompt embeddings for training: the Qwen2.5-VL language model with the template's prefix shared.

The 34 or 64 tokens before a prompt are the same in every sample, so they run once per step. The
result equals the model's own last hidden states, cut where the pipelines cut; a test checks it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.tiny import phrases, world
from training.tiny.architecture import PROCESSOR_PIXELS
from training.tiny.tokenizer import PREFIX_TOKENS, templates

PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
GRID = round(PROCESSOR_PIXELS[1] ** 0.5) // 28  # tokens along a side of a square reference
TOKENS = GRID * GRID


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend with grouped keys: two matrix products, whose backward pass is fast in bf16 too."""
    k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    mixed: Tensor = (scores.float() + mask).softmax(-1) @ v
    return mixed


def _layer(
    layer: Any, head: Tensor, tail: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor
) -> tuple[Tensor, Tensor]:
    attention, p = layer.self_attn, head.shape[1]
    cos, sin = (part.reshape(1, 1, -1, part.shape[-1]) for part in turn)

    def heads(project: nn.Module, x: Tensor) -> Tensor:
        split: Tensor = project(x).unflatten(-1, (-1, attention.head_dim))
        return split.transpose(1, 2)

    def kept(x: Tensor, where: slice) -> tuple[Tensor, Tensor, Tensor]:
        x = layer.input_layernorm(x)
        q, k = heads(attention.q_proj, x), heads(attention.k_proj, x)
        here = cos[:, :, where], sin[:, :, where]
        return _turn(q, *here), _turn(k, *here), heads(attention.v_proj, x)

    q1, k1, v1 = kept(head, slice(0, p))
    q2, k2, v2 = kept(tail, slice(p, None))
    batch = (len(tail), -1, -1, -1)
    keys, values = torch.cat((k1.expand(batch), k2), 2), torch.cat((v1.expand(batch), v2), 2)
    mixed1 = _attend(q1, k1, v1, mask[:p, :p])
    mixed2 = _attend(q2, keys, values, mask[p:])
    done = []
    for x, mixed in ((head, mixed1), (tail, mixed2)):
        y = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        done.append(y + layer.mlp(layer.post_attention_layernorm(y)))
    return done[0], done[1]


class Conditioner:
    """Turn prompts, with vision embeddings of their references, into prompt embeddings."""

    def __init__(
        self, text_encoder: Any, tokenizer: Any, *, compiled: bool = False, bf16: bool = False
    ) -> None:
        self.model = text_encoder.model.language_model
        self.tokenizer = tokenizer
        self.image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.padding = tokenizer.pad_token_id
        self.templates = templates()
        self.bf16 = bf16
        self.layer = torch.compile(_layer, dynamic=False) if compiled else _layer
        self.longest = {
            0: self._longest(phrases.PROMPTS, 0),
            1: self._longest(tuple(p for part in phrases.EDITS.values() for p in part), 1),
            2: self._longest(phrases.EXCHANGES, 2),
        }

    def _longest(self, group: Sequence[str], pictures: int) -> int:
        """Return the number of tokens of a group's longest prompt, including a full stop."""
        scene = world.Scene("red", "star", "blue", "large", "center")
        words = [phrases.instruct(scene, scene, "shape", phrase).prompt for phrase in group]
        return max(len(self.ids(word + ".", pictures)[0]) for word in words)

    def padded(self, prompts: Sequence[str], pictures: int) -> tuple[list[list[int]], int, Tensor]:
        """Return equally long token ids, the prefix's length, and a mask of the real tokens.

        The length fits all prompts of the world. The mask (B, L - prefix) is False for padding,
        which comes last: the model is causal, so no prompt sees it.
        """
        rows = [self.ids(prompt, pictures)[0] for prompt in prompts]
        length = max(self.longest[pictures], *map(len, rows))
        prefix = PREFIX_TOKENS["edit" if pictures else "text-to-image"]
        real = torch.tensor([[i < len(row) for i in range(prefix, length)] for row in rows])
        return [row + [self.padding] * (length - len(row)) for row in rows], prefix, real

    def ids(self, prompt: str, pictures: int) -> tuple[list[int], int]:
        """Return all token ids of the filled template, and how many of them are the prefix."""
        task = "edit" if pictures else "text-to-image"
        before = "".join(PICTURE.format(i + 1) for i in range(pictures))
        before = before.replace("<|image_pad|>", "<|image_pad|>" * TOKENS)
        text = self.templates[task].format(before + prompt)
        return self.tokenizer(text).input_ids, PREFIX_TOKENS[task]

    def positions(self, ids: list[int]) -> Tensor:
        """Return (3, 1, L): time, row and column for image tokens, one count for text."""
        out: list[tuple[int, int, int]] = []
        count, i = 0, 0
        while i < len(ids):
            if ids[i] == self.image:
                out += [(count, count + n // GRID, count + n % GRID) for n in range(TOKENS)]
                count, i = count + GRID, i + TOKENS
            else:
                out.append((count, count, count))
                count, i = count + 1, i + 1
        return torch.tensor(out).T[:, None]

    def __call__(self, ids: list[list[int]], prefix: int, vision: Tensor | None) -> Tensor:
        """Return (B, L - prefix, D) for B prompts of (padded) length L in the same template.

        `vision` is (B, pictures * TOKENS, D), the vision tower's output for the references.
        """
        with torch.autocast(self.model.embed_tokens.weight.device.type, torch.bfloat16, self.bf16):
            return self._forward(ids, prefix, vision)

    def _forward(self, ids: list[list[int]], prefix: int, vision: Tensor | None) -> Tensor:
        embed = self.model.embed_tokens
        device = embed.weight.device
        tokens = torch.tensor(ids, device=device)
        head, tail = embed(tokens[:1, :prefix]), embed(tokens[:, prefix:])
        if vision is not None:
            tail = tail.masked_scatter((tokens[:, prefix:] == self.image)[..., None], vision)
        places = self.positions(ids[0]).to(device)
        cos, sin = self.model.rotary_emb(tail, places)
        length = tail.shape[1]
        whole = prefix + length
        mask = torch.full((whole, whole), -1e9, device=device).triu(1)
        for layer in self.model.layers:
            head, tail = self.layer(layer, head, tail, (cos, sin), mask)
        out: Tensor = self.model.norm(tail)
        return out
