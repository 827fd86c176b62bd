"""The words of FLUX.2's edition of the little world: its own phrases, template and tokenizer."""

from collections.abc import Iterator
from typing import Any, Final

from training.tiny import phrases
from training.tiny.bpe import SPECIAL, train_tokenizer

# The heavier of two references is what the picture must show: weights are seen at once.
LIKE: Final = (
    "a picture like these",
    "draw a picture like image 1 and image 2",
    "show the same as these pictures",
    "a picture like image 1 and image 2",
)
# Qwen3's template for a user's turn, without tools: thinking is off where it is told to be.
TEMPLATE: Final = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)
THOUGHT: Final = ("<think>", "</think>")


def _texts() -> Iterator[str]:
    yield from ("user\n", "assistant\n", "system\n", "\n\n", "\n")
    yield from phrases.vocabulary()
    for phrase in LIKE:
        for word in phrase.split():
            yield from (word, " " + word, word.capitalize())


def build_tokenizer() -> Any:
    """Return a Qwen2Tokenizer with Qwen3's template: one token for each word of the world."""
    tokenizer = train_tokenizer(_texts(), SPECIAL, THOUGHT)
    tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = "right"
    return tokenizer


def fill(prompt: str) -> str:
    """Return the whole text that the text encoder reads for a prompt."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
