"""A Qwen2 tokenizer for the little world: one token per word, bytes for everything else."""

from collections.abc import Iterator
from typing import Any

from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import QwenImageEditPlusPipeline

from training.tiny.bpe import SPECIAL, train_tokenizer
from training.tiny.phrases import vocabulary

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
