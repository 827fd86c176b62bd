"""The model as it is trained: prompts and pictures to velocities, with few of the padding's tokens.

A pipeline pads every prompt to 512 tokens and attends to all of them, where the longest prompt has
some thirty. Here the words and a few places of the padding are computed, drawn anew at each call,
and the keys of those places count for all: ln(rest / drawn) is added to their logits. With every
place drawn it is the pipeline's own function.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from training.tiny import world
from training.tiny.flux.shapes import TEXT_LAYERS, TEXT_LENGTH
from training.tiny.flux.tables import NONE

GRID: Final = world.SIDE // 16  # tokens along a side of a picture
TOKENS: Final = GRID * GRID
APART: Final = 10  # T of the first reference, and between two


@functools.cache
def image_places(slots: int, device: torch.device) -> Tensor:
    """Return the ids (36 + R * 36, 4) of a picture and, behind it, of R references."""
    return torch.cat([place(APART * i) for i in range(1 + slots)]).to(device)


def place(t: int) -> Tensor:
    """Return the ids (36, 4) of a picture's tokens at a place T of the sequence."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    ids = torch.zeros(TOKENS, 4)
    ids[:, 0], ids[:, 1], ids[:, 2] = t, rows.flatten(), columns.flatten()
    return ids


@dataclass(frozen=True, slots=True)
class Given:
    """What a batch is drawn from.

    `embeds` (B, L, 384) with text ids (L, 4); `references` (B, R * 36, 64) normalised and packed
    with their image ids behind the picture's; `bias` (B, 1, 1, L + 36 + R * 36) is added to logits.
    """

    embeds: Tensor
    text_ids: Tensor
    references: Tensor
    image_ids: Tensor
    bias: Tensor


class Flow(nn.Module):
    """A text encoder and a transformer, trained together."""

    def __init__(self, text_encoder: Any, transformer: Any, *, bf16: bool) -> None:
        super().__init__()
        self.text_encoder, self.transformer, self.bf16 = text_encoder, transformer, bf16

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        found: torch.device = self.transformer.x_embedder.weight.device
        return found

    def learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained: all but the last layer of the text encoder and its final norm."""
        unused = (f"text_encoder.model.layers.{max(TEXT_LAYERS)}.", "text_encoder.model.norm.")
        for name, weight in self.named_parameters():
            if not name.startswith(unused):
                yield name, weight

    def autocast(self) -> torch.autocast:
        """Return the context of its products: bf16, where that is asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def read(self, ids: Tensor, real: Tensor, drawn: int) -> tuple[Tensor, Tensor, float]:
        """Return embeddings (B, T + drawn, 384) of words (B, T), their places, the padding's logit.

        A place of the padding sees the words and no padding, as behind the pipeline's mask.
        """
        model, length = self.text_encoder.model, ids.shape[1]
        rest = TEXT_LENGTH - length
        few = torch.randperm(rest, device=ids.device)[:drawn].sort().values + length
        places = torch.cat((torch.arange(length, device=ids.device), few))
        padding = ids.new_full((len(ids), len(few)), self.text_encoder.config.pad_token_id)
        seen = torch.cat((real, torch.zeros_like(padding, dtype=torch.bool)), dim=1)
        mask = (places[:, None] >= places[None, :]) & seen[:, None]
        x = model.embed_tokens(torch.cat((ids, padding), dim=1))
        turns = model.rotary_emb(x, places[None])
        outputs = []
        for layer in model.layers[: max(TEXT_LAYERS)]:
            x = layer(x, attention_mask=mask[:, None], position_embeddings=turns)
            outputs.append(x)
        embeds = torch.cat([outputs[i - 1] for i in TEXT_LAYERS], dim=-1)
        return embeds, places, math.log(rest / len(few))

    def condition(
        self, ids: Tensor, real: Tensor, references: Tensor, logits: Tensor, drawn: int
    ) -> Given:
        """Return what a batch is drawn from.

        Words (B, T) and which are real; references (B, R, 36, 64) and what is added to the logits
        of each one's keys (B, R); how many places of the padding are drawn.
        """
        with self.autocast():
            embeds, places, padding = self.read(ids, real, drawn)
        slots = references.shape[1]
        text_ids = places.new_zeros(len(places), 4, dtype=torch.float32)
        text_ids[:, 3] = places
        image_ids = image_places(slots, ids.device)
        free = embeds.new_zeros(len(ids), len(places) + TOKENS)
        free[:, ids.shape[1] : len(places)] = padding
        bias = torch.cat((free, logits.repeat_interleave(TOKENS, dim=1)), dim=1)
        return Given(embeds, text_ids, references.flatten(1, 2), image_ids, bias[:, None, None])

    def forward(self, noisy: Tensor, t: Tensor, given: Given) -> Tensor:
        """Return the velocity (B, 36, 64) of noisy (B, 36, 64) at times t (B,) in 0..1."""
        kind = torch.bfloat16 if self.bf16 else torch.float32
        with self.autocast():
            out: Tensor = self.transformer(
                hidden_states=torch.cat((noisy, given.references), dim=1),
                timestep=t,
                encoder_hidden_states=given.embeds,
                txt_ids=given.text_ids,
                img_ids=given.image_ids,
                joint_attention_kwargs={"attention_mask": given.bias.clamp_min(NONE).to(kind)},
                return_dict=False,
            )[0]
        return out[:, :TOKENS].float()
