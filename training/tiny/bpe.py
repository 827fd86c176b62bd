"""A byte-level BPE of the Qwen kind, with one token for every word that it is trained on."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

SPECIAL = (
    *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start"),
    *("box_end", "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad"),
    *("image_pad", "video_pad"),
)


def train_tokenizer(texts: Iterator[str], special: Sequence[str], added: Sequence[str] = ()) -> Any:
    """Train a byte-level BPE until every word of `texts` is one token; return a Qwen2Tokenizer.

    `special` are names of special tokens, written between "<|" and "|>"; `added` are whole tokens
    that are not special.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 16,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token="<|im_end|>",  # noqa: S106 - a special token, not a secret
        model_max_length=4096,
    )
    tokens = [AddedToken(f"<|{name}|>", special=True, normalized=False) for name in special]
    tokenizer.add_tokens(tokens, special_tokens=True)
    if added:
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in added])
    return tokenizer
