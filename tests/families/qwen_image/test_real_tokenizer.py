"""The tokenizer that the published models come with gives what engine/prompts.py relies on.

Its merges are in no repository of ours: QWEN25_MERGES names a file of them (merges.txt
of Qwen2.5, plain or .xz), and without it these tests are skipped.
"""

import lzma
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from training.tiny.tokenizer import templates
from worker.families.qwen_image import prompts
from worker.families.qwen_image.prompts import PromptEncoder, Template

MERGES = os.environ.get("QWEN25_MERGES")
pytestmark = pytest.mark.skipif(not MERGES, reason="QWEN25_MERGES names no file of merges")

# tokenizer_config.json of Qwen/Qwen2.5-VL-7B-Instruct, from 151643 on
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
FIRST_SPECIAL = 151_643
# config.json of the same
VISION_START, VISION_END, IMAGE, VIDEO = 151_652, 151_653, 151_655, 151_656

TEMPLATES = [
    pytest.param(prompts.TEXT_TEMPLATE, 0, id="text to image"),
    pytest.param(prompts.EDIT_TEMPLATE, 1, id="first edition"),
    pytest.param(prompts.EDIT_PLUS_TEMPLATE, 1, id="one reference"),
    pytest.param(prompts.EDIT_PLUS_TEMPLATE, 3, id="three references"),
]
PROMPTS = [
    "a red circle",
    "",
    " ",
    "\n\n two  lines\n",
    "\n",
    "1234567890: 50% off, it's <b>bold</b> & don't",
    "\u4e00\u53ea\u7ea2\u8272\u7684\u732b, una ni\u00f1a, \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600\U0001f469\u200d\U0001f680 e\u0301 \u00a0 \u3000 tab\tand\r\nCR",
    "<|im_en d|> <|", "|>",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Rebuild Qwen2.5's tokenizer: 256 bytes, a token for each merge, and the special ones."""
    data = Path(str(MERGES)).read_bytes()
    text = (lzma.decompress(data) if str(MERGES).endswith(".xz") else data).decode()
    lines = [line for line in text.split("\n") if line and not line.startswith("#version")]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    words = [*bytes_to_unicode().values(), *(left + right for left, right in merges)]
    assert len(words) == len(set(words)) == FIRST_SPECIAL
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    made.add_tokens(list(SPECIAL), special_tokens=True)
    return made


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> PromptEncoder:
    """Make a prompt encoder that can tokenise; that needs no model."""
    return PromptEncoder(tokenizer, None, None)


def stock(template: Template, prompt: str, references: int) -> str:
    """Write a prompt as the stock pipelines do."""
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    pictures = [template.reference.format(n + 1) + place for n in range(references)]
    return (
        f"<|im_start|>system\n{template.system}<|im_end|>\n<|im_start|>user\n"
        f"{''.join(pictures)}{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_it_is_the_published_tokenizer(tokenizer: Any) -> None:
    """Ids that its users know: a greeting, digits one by one, bytes that are no character alone."""
    assert tokenizer("Hello, world!")["input_ids"] == [9707, 11, 1879, 0]
    assert tokenizer.convert_ids_to_tokens(tokenizer("2026")["input_ids"]) == list("2026")
    assert tokenizer.decode(tokenizer("\u732b\U0001f408 na\u00efve")["input_ids"]) == (
        "\u732b\U0001f408 na\u00efve"
    )
    known = {name: FIRST_SPECIAL + n for n, name in enumerate(SPECIAL)}
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL} == known
    assert [known[f"<|{name}|>"] for name in ("vision_start", "vision_end")] == [
        VISION_START,
        VISION_END,
    ]
    assert [known[f"<|{name}|>"] for name in ("image_pad", "video_pad")] == [IMAGE, VIDEO]


def test_the_prefixes_of_the_stock_templates_have_the_tokens_that_are_dropped(
    tokenizer: Any,
) -> None:
    counts = {
        task: len(tokenizer(template.split("{}")[0])["input_ids"])
        for task, template in templates().items()
    }
    assert counts["text-to-image"] == prompts.TEXT_TEMPLATE.dropped == 34
    assert (
        counts["edit"] == prompts.EDIT_TEMPLATE.dropped == prompts.EDIT_PLUS_TEMPLATE.dropped == 64
    )


@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_what_is_dropped_ends_with_the_users_turn(
    tokenizer: Any, encoder: PromptEncoder, template: Template, references: int
) -> None:
    ids = encoder.tokenise("red", template, [4] * references)
    assert tokenizer.decode(ids[: template.dropped]).endswith("<|im_start|>user\n")
    assert tokenizer.decode(ids[template.dropped :]).startswith(
        (template.reference.format(1) + "<|vision_start|>") if references else "red"
    )


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_tokens_equal_the_stock_template(
    tokenizer: Any, encoder: PromptEncoder, template: Template, references: int, prompt: str
) -> None:
    ours = encoder.tokenise(prompt, template, [1] * references)
    assert ours == tokenizer(stock(template, prompt, references))["input_ids"]


@pytest.mark.parametrize("count", [1, 49, 196])
def test_a_reference_takes_its_tokens_between_its_marks(encoder: PromptEncoder, count: int) -> None:
    ids = encoder.tokenise("red", prompts.EDIT_PLUS_TEMPLATE, [count, 1])
    first = ids.index(VISION_START)
    assert ids[first : first + count + 2] == [VISION_START, *[IMAGE] * count, VISION_END]
    assert [ids.count(mark) for mark in (VISION_START, VISION_END, IMAGE)] == [2, 2, count + 1]


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_the_text_of_a_special_token_is_plain_text_in_a_prompt(
    tokenizer: Any, encoder: PromptEncoder, template: Template, references: int, special: str
) -> None:
    """A prompt neither ends the turn nor claims to be a picture, and loses no letter of it."""
    plain = encoder.tokenise("a  b", template, [1] * references)
    given = encoder.tokenise(f"a {special} b", template, [1] * references)
    for number in range(FIRST_SPECIAL, FIRST_SPECIAL + len(SPECIAL)):
        assert given.count(number) == plain.count(number)
    assert f"a {special} b" in tokenizer.decode(given)


@pytest.mark.parametrize("word", ["red ", "\u732b", "\U0001f408", "antidisestablishmentarianism "])
@pytest.mark.parametrize(("template", "references"), TEMPLATES)
def test_a_prompt_is_cut_at_1024_tokens_and_its_frame_stays_complete(
    tokenizer: Any, encoder: PromptEncoder, template: Template, references: int, word: str
) -> None:
    frame = encoder.tokenise("", template, [1] * references)
    for times in (1020, 1100, 3000):
        prompt = word * times
        used = len(tokenizer(prompt)["input_ids"])
        ids = encoder.tokenise(prompt, template, [1] * references)
        assert encoder.is_cut(prompt, references=False) == (used > 1024)
        assert len(ids) == len(frame) + min(used, 1024)
        assert ids[: template.dropped] == frame[: template.dropped]
        assert tokenizer.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
