"""The language model as it speaks: transformers' layers, our own order of running them."""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention

from worker.engine.key_values import KeyValues
from worker.families.orpheus.models import TokenIds

# Our names of what is left of the embedding and the head: rows of codes, and of the stop.
AUDIO_ROWS: Final = "codes"
HEAD_ROWS: Final = "head"
STOP_ROW: Final = "stop"
MASKED: Final = float("-inf")


class Language(nn.Module):
    """A Llama without the rows that speech never needs.

    `model` has the layers and the last norm. `codes` [7 x codes, width] is the embedding of the
    audio, `head` the rows of the head for it, or None where those are the same, and `stop`
    [1, width] the head's row for the end. The embedding of text stays outside (`embed_text`).
    """

    def __init__(self, model: Any, ids: TokenIds, *, is_tied: bool) -> None:
        super().__init__()
        width, audio = model.config.hidden_size, ids.end - ids.first
        with torch.device("meta"):
            self.codes = nn.Parameter(torch.empty(audio, width))
            self.stop = nn.Parameter(torch.empty(1, width))
            self.head = None if is_tied else nn.Parameter(torch.empty(audio, width))
        del model.embed_tokens
        self.model = model
        self.ids = ids

    @property
    def is_tied(self) -> bool:
        """Whether the head's rows are those of the embedding."""
        return self.head is None

    def tie(self) -> bool:
        """Keep one of two equal tensors; return whether the head's rows are the embedding's."""
        if self.head is not None and torch.equal(self.head, self.codes):
            self.head = None
        return self.is_tied

    def make_cache(self, rows: int, length: int) -> KeyValues:
        """Return room for sequences of up to `length` tokens."""
        config = self.model.config
        return KeyValues(
            config.num_hidden_layers,
            rows,
            config.num_key_value_heads,
            length,
            config.head_dim,
            dtype=self.codes.dtype,
            device=self.codes.device,
        )

    def embed_codes(self, indices: Tensor) -> Tensor:
        """Return the embeddings [rows, 1, width] of tokens by their place after the first code."""
        return embedding(indices, self.codes)[:, None]

    def read(self, embedded: Tensor, cache: KeyValues, row: int) -> Tensor:
        """Read a prompt [1, tokens, width] into one row; return its last state [1, width]."""
        count = embedded.shape[1]
        positions = torch.arange(count, device=embedded.device)[None]

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.fill(layer, row, keys, values)
            return scaled_dot_product_attention(
                query, keys, values, is_causal=True, enable_gqa=True
            )

        return self._run(embedded, positions, attend)[:, -1]

    def go_on(self, embedded: Tensor, positions: Tensor, cache: KeyValues, length: int) -> Tensor:
        """Return the states [rows, width] after one more token of every row, [rows, 1, width].

        `positions` [rows] are where the tokens stand; none is at `length` or beyond.
        """
        places = torch.arange(length, device=embedded.device)
        mask = torch.zeros(len(positions), 1, 1, length, device=embedded.device)
        unseen = places[None] > positions[:, None]
        mask = mask.masked_fill(unseen[:, None, None], MASKED).to(embedded.dtype)

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.append(layer, positions, keys, values)
            kept, known = cache.read(layer, length)
            # the queries that share a key are queries of one head: no kernel for one token has both
            # a mask and keys that heads share, and without one they would be copied
            shared = query.reshape(len(query), keys.shape[1], -1, query.shape[-1])
            mixed = scaled_dot_product_attention(shared, kept, known, attn_mask=mask)
            return mixed.reshape(query.shape)

        return self._run(embedded, positions[:, None], attend)[:, 0]

    def score(self, states: Tensor, slot: int) -> Tensor:
        """Return the logits [rows, codes] of the codes of a slot, and last the stop's in slot 0."""
        first = slot * self.ids.codes
        rows = (self.codes if self.head is None else self.head)[first : first + self.ids.codes]
        scores = linear(states, rows)
        if slot:
            return scores
        return torch.cat([scores, linear(states, self.stop)], dim=-1)

    def _run(self, hidden: Tensor, positions: Tensor, attend: Any) -> Tensor:
        """Run every layer over [rows, tokens, width] at positions [rows, tokens]."""
        cosine, sine = self.model.rotary_emb(hidden, position_ids=positions)
        cosine, sine = cosine[:, None], sine[:, None]
        for index, layer in enumerate(self.model.layers):
            inner = _normalise(layer.input_layernorm, hidden)
            attention = layer.self_attn
            query, keys, values = (
                project(inner).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            turned = _rotate(torch.cat([query, keys], dim=1), cosine, sine)
            mixed = attend(index, *turned.split((query.shape[1], keys.shape[1]), dim=1), values)
            hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(_normalise(layer.post_attention_layernorm, hidden))
        return _normalise(self.model.norm, hidden)


def _normalise(norm: Any, x: Tensor) -> Tensor:
    """Return what a norm of transformers' gives; on CUDA by one kernel, where that runs eight.

    They are a third of a token's kernels: with them and with keys that are not copied, an H100
    reads a prompt in half the time and writes four passages in a ninth less, one in a fiftieth.
    """
    found: Tensor = normalise_at_once(norm, x) if x.is_cuda else norm(x)
    return found


def normalise_at_once(norm: Any, x: Tensor) -> Tensor:
    """Return what a LlamaRMSNorm gives, rounded once, where the module rounds twice."""
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of halves by its position's angle (arXiv 2104.09864, as Llama pairs them)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def embed_text(table: Tensor, ids: Sequence[int], device: torch.device) -> Tensor:
    """Return the embeddings [1, tokens, width] of text ids, of a table on the host, on a device."""
    return table[torch.tensor(list(ids))][None].to(device)
