"""The parts of an Orpheus: how each is published, and what a bundle holds of it."""

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from worker.bundle.convert import Weights, cast_to_bf16
from worker.bundle.fill import make_empty
from worker.bundle.headers import Shard, merge
from worker.bundle.layout import MAPPED, WEIGHTS
from worker.bundle.recipe import Configuration, Modules, Part, Published, Replaced, Work
from worker.bundle.stream import ReadTensor, Transform
from worker.families.orpheus.codec import SnacDecoder, fold, name_tensor
from worker.families.orpheus.language import AUDIO_ROWS, HEAD_ROWS, STOP_ROW
from worker.families.orpheus.models import Speaking, TokenIds, read_speaking

EMBEDDING: Final = "model.embed_tokens.weight"
LM_HEAD: Final = "lm_head.weight"
# The embedding's rows of text, in the file that stays on the disk.
TEXT_TABLE: Final = "text"
BF16_BYTES: Final = 2


def read_ids(published: Published) -> TokenIds:
    """Return a published model's ids: those of its worker.json, else those of the released ones."""
    return read_speaking(published.facts, Speaking()).ids


def build_language(config: Configuration) -> Any:
    """Return the language model of a configuration, as transformers builds it."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - takes seconds to import

    with make_empty():
        return LlamaForCausalLM._from_config(  # noqa: SLF001 - the public way reads weights
            LlamaConfig.from_dict(dict(config)), dtype=torch.bfloat16
        )


def remove_tied(model: Any) -> Any:
    """Remove a head that is not published: accelerate's empty modules are tied by no tensor."""
    if model.config.tie_word_embeddings:
        del model.lm_head
    return model


def describe_language(model: Any) -> Configuration:
    """Return the configuration of a language model, with its defaults."""
    config: Configuration = model.config.to_dict()
    return config


def build_codec(config: Configuration) -> SnacDecoder:
    """Return the decoder of a configuration."""
    with make_empty():
        return SnacDecoder(config)


def describe_codec(codec: SnacDecoder) -> Configuration:
    """Return what the language model's numbers depend on."""
    return {"codes": codec.codes, "rate": codec.rate}


def describe_rows(published: Published) -> Mapping[str, Any]:
    """Return which rows of the embedding and the head are kept: part of a bundle's identity."""
    ids = read_ids(published)
    return {"first": ids.first, "codes": ids.codes, "stop": ids.stop}


def count_text_bytes(published: Published) -> int:
    """Return the bytes of the embedding of text, which stays on the disk."""
    return read_ids(published).first * _read_width(published) * BF16_BYTES


def count_audio_bytes(published: Published) -> int:
    """Return the bytes of the rows of audio: once, or twice where a head was published."""
    ids = read_ids(published)
    copies = 2 if LM_HEAD in merge(published.shards["language"]) else 1
    return (copies * (ids.end - ids.first) + 1) * _read_width(published) * BF16_BYTES


def _read_width(published: Published) -> int:
    return int(published.configs["language"]["hidden_size"])


class LanguageWeights:
    """What a shard of a language model becomes: its layers, and the rows that speech needs."""

    def __init__(self, work: Work) -> None:
        self._weights = Weights(work)
        self._ids = read_ids(work.published)
        self._has_head = LM_HEAD in merge(work.published.shards["language"])

    def __call__(self, shard: Shard, read: ReadTensor) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of the bundle's files for this shard, the text's rows on their own."""
        made = self._weights(shard, read)
        ids, weights = self._ids, made[WEIGHTS]
        audio = slice(ids.first, ids.end)
        if EMBEDDING in shard.header:
            table = cast_to_bf16(read(EMBEDDING))
            made[MAPPED] = {TEXT_TABLE: table[: ids.first]}
            weights[AUDIO_ROWS] = table[audio]
            if not self._has_head:
                weights[STOP_ROW] = table[ids.stop : ids.stop + 1]
        if LM_HEAD in shard.header:
            head = cast_to_bf16(read(LM_HEAD))
            weights[HEAD_ROWS] = head[audio]
            weights[STOP_ROW] = head[ids.stop : ids.stop + 1]
        return made


def make_language_transform(work: Work) -> Transform:
    """Return what makes a language model's files."""
    return LanguageWeights(work)


LANGUAGE: Final = Part(
    "language",
    Modules(build_language, remove_tied, describe_language),
    quantised=re.compile(
        r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
    ),
    replaced=Replaced(
        re.compile(rf"{re.escape(EMBEDDING)}|{re.escape(LM_HEAD)}"),
        describe_rows,
        count_text_bytes,
        make_language_transform,
        count_audio_bytes,
    ),
)
CODEC: Final = Part(
    "codec",
    Modules(build_codec, filled=describe_codec, final=fold),
    keep=name_tensor,
    is_shared=True,
    is_exact=True,  # in bf16 its sound is 39 dB over the error
    pickle="pytorch_model.bin",
)
TOKENIZER: Final = Part("tokenizer")
