"""A Qwen2 tokenizer for the little world: one token per word, bytes for everything else."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import QwenImageEditPlusPipeline
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from training.tiny.phrases import vocabulary

SPECIAL = (
    *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start"),
    *("box_end", "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad"),
    *("image_pad", "video_pad"),
)
PREFIX_TOKENS = {"text-to-image": 34, "edit": 64}  # what the pipelines cut off


def templates() -> dict[str, str]:
    """Return the prompt templates of the two stock pipelines, by task."""
    nothing = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "transformer"))
    image: Any = QwenImagePipeline(**nothing)
    edit: Any = QwenImageEditPlusPipeline(**nothing, processor=None)
    return {"text-to-image": image.prompt_template_encode, "edit": edit.prompt_template_encode}


def _texts() -> Iterator[str]:
    for template in templates().values():
        for part in template.replace("{}", "").split("<|"):
            yield part.split("|>")[-1]
    yield from vocabulary()
    yield from (f"Picture {i}: " for i in range(1, 4))


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


def build_tokenizer() -> Any:
    """Return the tokenizer of the two stock pipelines' templates.

    Raises ValueError unless the prefixes of the two templates have 34 and 64 tokens.
    """
    tokenizer = train_tokenizer(_texts(), SPECIAL)
    for task, template in templates().items():
        count = len(tokenizer(template.split("{}")[0]).input_ids)
        if count != PREFIX_TOKENS[task]:
            raise ValueError(f"the {task} prefix has {count} tokens, not {PREFIX_TOKENS[task]}")
    return tokenizer
