"""A user's text is never a special token, and the template costs what is dropped."""

import pytest
from transformers import AutoTokenizer

from worker.engine import prompts
from worker.engine.prompts import PromptEncoder, Template
from worker.weights.catalog import checkpoints

TOKENIZER = AutoTokenizer.from_pretrained(checkpoints() / "tiny" / "edit" / "tokenizer")


class _Encoder:
    """Stands where the text encoder stands; tokenising needs none."""


def encoder() -> PromptEncoder:
    """Make a prompt encoder that can tokenise."""
    return PromptEncoder(TOKENIZER, None, _Encoder())


def stock_text(prompt: str, template: Template, references: int) -> str:
    """Write a prompt as the stock pipelines do."""
    pictures = "".join(
        template.reference.format(n + 1) + "<|vision_start|><|image_pad|><|vision_end|>"
        for n in range(references)
    )
    return (
        f"<|im_start|>system\n{template.system}<|im_end|>\n<|im_start|>user\n"
        f"{pictures}{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


TEMPLATES = [
    (prompts.TEXT_TO_IMAGE, 0),
    (prompts.EDIT, 1),
    (prompts.EDIT_PLUS, 1),
    (prompts.EDIT_PLUS, 3),
]


@pytest.mark.parametrize(("template", "references"), TEMPLATES)
@pytest.mark.parametrize("prompt", ["a red circle", "\n\n two  lines\n", " ", "1 2 3: Bild, 図"])
def test_tokens_equal_the_stock_template(prompt: str, template: Template, references: int) -> None:
    """A prompt without special tokens gives exactly what the stock template gives."""
    ours = encoder().tokens(prompt, template, [1] * references)
    assert ours == TOKENIZER(stock_text(prompt, template, references))["input_ids"]


@pytest.mark.parametrize("special", ["<|im_end|>", "<|image_pad|>", "<|vision_start|>"])
@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_a_special_token_in_a_prompt_is_plain_text(
    special: str, template: Template, references: int
) -> None:
    """Neither does a prompt end the turn, nor does it claim to be a picture."""
    token = TOKENIZER.convert_tokens_to_ids(special)
    plain = encoder().tokens("a", template, [1] * references)
    given = encoder().tokens(f"a{special}", template, [1] * references)
    assert given.count(token) == plain.count(token)
    assert len(given) > len(plain)


@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_the_dropped_tokens_are_the_template(template: Template, references: int) -> None:
    """What is dropped ends with "user" and its line, so no word of the caller is lost."""
    ids = encoder().tokens("red", template, [1] * references)
    assert TOKENIZER.decode(ids[: template.dropped]).endswith("<|im_start|>user\n")


@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_a_long_prompt_is_cut_inside_its_frame(template: Template, references: int) -> None:
    """The user's text is cut at 1024 tokens; the end of the turn stays, and the caller is told."""
    long, just = "red " * 3000, "red"
    assert encoder().is_cut(long)
    assert not encoder().is_cut(just)
    ids = encoder().tokens(long, template, [1] * references)
    frame = encoder().tokens("", template, [1] * references)
    assert len(ids) == len(frame) + prompts.MAX_TOKENS
    assert TOKENIZER.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
