"""A user's text is never a special token, and the template costs what is dropped."""

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from worker.families.qwen_image import prompts
from worker.families.qwen_image.prompts import PromptEncoder, Template
from worker.families.qwen_image.working import MAX_TOKENS
from worker.weights.meaning import find_checkpoints
from worlds import prepared

TOKENIZER = AutoTokenizer.from_pretrained(find_checkpoints() / "tiny" / "edit" / "tokenizer")


class _Encoder:
    """Stands where the text encoder stands; tokenising needs none."""


def encoder() -> PromptEncoder:
    """Make a prompt encoder that can tokenise."""
    return PromptEncoder(TOKENIZER, None, _Encoder())


def stock_text(prompt: str, template: Template, references: int) -> str:
    """Write a prompt as the stock pipelines do."""
    before = "Picture {}: " if template is prompts.EDIT_PLUS_TEMPLATE else ""
    pictures = "".join(
        before.format(n + 1) + "<|vision_start|><|image_pad|><|vision_end|>"
        for n in range(references)
    )
    return (
        f"<|im_start|>system\n{template.system}<|im_end|>\n<|im_start|>user\n"
        f"{pictures}{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


TEMPLATES = [
    (prompts.TEXT_TEMPLATE, 0),
    (prompts.EDIT_TEMPLATE, 1),
    (prompts.EDIT_PLUS_TEMPLATE, 1),
    (prompts.EDIT_PLUS_TEMPLATE, 3),
]


@pytest.mark.parametrize(("template", "references"), TEMPLATES)
@pytest.mark.parametrize("prompt", ["a red circle", "\n\n two  lines\n", " ", "1 2 3: Bild, 図"])
def test_tokens_equal_the_stock_template(prompt: str, template: Template, references: int) -> None:
    """A prompt without special tokens gives exactly what the stock template gives."""
    ours = encoder().tokenise(prompt, template, [1] * references)
    assert ours == TOKENIZER(stock_text(prompt, template, references))["input_ids"]


@pytest.mark.parametrize("special", ["<|im_end|>", "<|image_pad|>", "<|vision_start|>"])
@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_a_special_token_in_a_prompt_is_plain_text(
    special: str, template: Template, references: int
) -> None:
    """Neither does a prompt end the turn, nor does it claim to be a picture."""
    token = TOKENIZER.convert_tokens_to_ids(special)
    plain = encoder().tokenise("a", template, [1] * references)
    given = encoder().tokenise(f"a{special}", template, [1] * references)
    assert given.count(token) == plain.count(token)
    assert len(given) > len(plain)


@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_the_dropped_tokens_are_the_template(template: Template, references: int) -> None:
    """What is dropped ends with "user" and its line, so no word of the caller is lost."""
    ids = encoder().tokenise("red", template, [1] * references)
    assert TOKENIZER.decode(ids[: template.dropped]).endswith("<|im_start|>user\n")


@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_the_tokens_of_references_are_not_counted_with_those_of_a_prompt(
    template: Template, references: int
) -> None:
    whole = encoder().tokenise("a red circle", template, [5] * references)
    counted = encoder().count_tokens("a red circle", template, references)
    assert counted == len(whole) - template.dropped - 5 * references


@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_a_long_prompt_is_cut_inside_its_frame(template: Template, references: int) -> None:
    """The user's text is cut at 1024 tokens; the end of the turn stays."""
    long = "red " * 3000
    ids = encoder().tokenise(long, template, [1] * references)
    frame = encoder().tokenise("", template, [1] * references)
    assert len(ids) == len(frame) + MAX_TOKENS
    assert TOKENIZER.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


class _Processor:
    """Stands where the processor stands: that there is one is all that tokenising asks."""


def words(count: int) -> str:
    """Return a prompt of so many tokens."""
    text = "red" + " red" * (count - 1)
    assert len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == count
    return text


@pytest.mark.parametrize(("template", "references"), TEMPLATES)
@pytest.mark.parametrize("start", ["", "\n", "\n\n\n", " ", "\r\n"])
@pytest.mark.parametrize("count", [1, 1000, *range(1019, 1030)])
def test_a_caller_is_warned_of_a_cut_exactly_when_there_is_one(
    template: Template, references: int, start: str, count: int
) -> None:
    """Whatever the prompt's first characters become together with the line before them."""
    shown = bool(references)
    encoding = PromptEncoder(TOKENIZER, _Processor() if shown else None, _Encoder())
    prompt = start + words(count)
    whole = stock_text(prompt, template, references)
    lost = len(TOKENIZER(whole)["input_ids"]) - len(
        encoding.tokenise(prompt, template, [1] * references)
    )
    assert encoding.is_cut(prompt, references=shown) == (lost > 0)


def test_references_that_are_not_shown_do_not_change_where_a_prompt_is_cut() -> None:
    """Without a processor an edit's prompt comes after "user" and its line."""
    prompt = "\n" + words(1024)
    alone = len(encoder().tokenise(prompt, prompts.EDIT_TEMPLATE, [])) < len(
        TOKENIZER(stock_text(prompt, prompts.EDIT_TEMPLATE, 0))["input_ids"]
    )
    assert encoder().is_cut(prompt, references=True) == alone


def test_text_to_image_equals_the_stock_pipeline_up_to_1019_tokens() -> None:
    """The stock pipeline cuts prompt and frame together at 1024 (max_sequence_length=1024)."""
    template = prompts.TEXT_TEMPLATE

    def stock(count: int) -> list[int]:
        ids: list[int] = TOKENIZER(
            stock_text(words(count), template, 0),
            max_length=MAX_TOKENS + template.dropped,
            truncation=True,
        )["input_ids"]
        return ids

    for count in (1, 512, 1019):
        assert encoder().tokenise(words(count), template, []) == stock(count)
    assert len(encoder().tokenise(words(1020), template, [])) == len(stock(1020)) + 1


@pytest.mark.parametrize(("template", "references"), TEMPLATES[1:])
def test_an_edit_equals_the_stock_pipeline_up_to_1024_tokens(
    template: Template, references: int
) -> None:
    """The stock pipelines of edits cut nothing."""
    for count, equal in ((1024, True), (1025, False)):
        ours = encoder().tokenise(words(count), template, [1] * references)
        stock = TOKENIZER(stock_text(words(count), template, references))["input_ids"]
        assert (ours == stock) is equal


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_embeddings_are_those_of_the_stock_call(dtype: torch.dtype, count: int) -> None:
    """With a mask of ones and everything on one device, as the stock pipelines call the encoder."""
    parts = prepared.published("tiny-edit", dtype=dtype)
    template = prompts.EDIT_PLUS_TEMPLATE
    shown = [Image.effect_noise((56 + 28 * n, 112), 90).convert("RGB") for n in range(count)]
    ours = PromptEncoder(parts.tokenizer, parts.processor, parts.text_encoder)
    given = ours.encode("make it blue", template, shown)
    stock: dict[str, Any] = {}
    if shown:
        stock = dict(parts.processor.image_processor(images=shown, return_tensors="pt"))  # type: ignore[union-attr]
    counts = [int(grid.prod()) // 4 for grid in stock.get("image_grid_thw", [])]
    ids = torch.tensor([ours.tokenise("make it blue", template, counts)])
    if shown:
        pad = parts.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        stock["mm_token_type_ids"] = (ids == pad).int()
    with torch.inference_mode():
        output = parts.text_encoder.model(ids, attention_mask=torch.ones_like(ids), **stock)
    assert torch.equal(given, output.last_hidden_state[:, template.dropped :])
