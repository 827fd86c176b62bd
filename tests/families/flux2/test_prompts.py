"""Prompts are the stock pipelines' tokens; the user's text is cut, never what follows it."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, PixtralImageProcessor, PixtralProcessor

from worker.bundle.plain import open_tokenizer
from worker.families.flux2.prompts import (
    DEV_TEMPLATE,
    KLEIN_TEMPLATE,
    ChatTemplate,
    TextEncoder,
)
from worker.families.flux2.published import open_published
from worker.seam import Unheard, take_made
from worlds.small_flux import Kind
from worlds.stock_flux import CPU, FluxPair
from worlds.wishes import WISH

TEMPLATES: dict[Kind, ChatTemplate] = {"klein": KLEIN_TEMPLATE, "dev": DEV_TEMPLATE}


@pytest.fixture(scope="module", params=["klein", "dev"])
def opened(request: pytest.FixtureRequest, publish: Callable[[Kind], Path]) -> tuple[Any, Any]:
    """A tokenizer with its template, and the encoder of prompts over it."""
    kind: Kind = request.param
    parts = open_published(publish(kind), dtype=torch.float32, device=CPU)
    template = TEMPLATES[kind]
    return parts.tokenizer, TextEncoder(parts.tokenizer, parts.text_encoder, template)


@pytest.mark.parametrize("prompt", ["", "a", "two\n\nlines", "  spaces ", "a small red circle"])
def test_tokens_are_those_of_the_tokenizer_s_own_template(
    opened: tuple[Any, Any], prompt: str
) -> None:
    tokenizer, encoder = opened
    template = DEV_TEMPLATE if tokenizer.bos_token else KLEIN_TEMPLATE
    assert encoder.tokenise(prompt) == template.apply(tokenizer, prompt)


def test_dev_s_tokens_are_those_of_its_published_processor(
    publish: Callable[[Kind], Path], tmp_path: Path
) -> None:
    """Its tokenizer/ is a processor's, and names the class of another kind of tokenizer."""
    images = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = open_tokenizer(publish("dev") / "tokenizer")
    tokenizer.add_tokens(images, special_tokens=True)
    template = tokenizer.chat_template
    PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=template).save_pretrained(
        tmp_path
    )
    place = tmp_path / "tokenizer_config.json"
    config = json.loads(place.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}
    place.write_text(json.dumps(config))
    stock = AutoProcessor.from_pretrained(tmp_path)
    encoder = TextEncoder(open_tokenizer(tmp_path), None, DEV_TEMPLATE)
    for prompt in ("", "a small red circle", "  two\n\nlines "):
        expected = stock.apply_chat_template(
            format_input([prompt]),
            add_generation_prompt=False,
            tokenize=True,
            return_dict=True,
            padding="max_length",
            truncation=True,
            max_length=512,
        )
        ours = encoder.tokenise(prompt)
        missing = 512 - len(ours)
        assert expected["input_ids"][0, missing:].tolist() == ours
        assert expected["attention_mask"][0].tolist() == [0] * missing + [1] * len(ours)


@pytest.mark.parametrize("word", ["<|im_end|>", "<|im_start|>system", "[/INST]", "<|endoftext|>"])
def test_a_user_s_text_is_never_a_special_token(opened: tuple[Any, Any], word: str) -> None:
    """Not the end of the turn, nor anything else that the template has tokens for."""
    tokenizer, encoder = opened
    special = set(tokenizer.added_tokens_decoder)
    plain, given = (
        [one for one in encoder.tokenise(text) if one in special] for text in ("a", f"a {word} b")
    )
    assert given == plain


def test_a_tokenizer_that_marks_every_text_marks_none_of_a_prompt_s(
    opened: tuple[Any, Any],
) -> None:
    """As Mistral's own does, by a token before each: the template has them already."""
    tokenizer, encoder = opened
    template = DEV_TEMPLATE if tokenizer.bos_token else KLEIN_TEMPLATE
    marked = copy.deepcopy(tokenizer)
    mark = marked.convert_ids_to_tokens(marked.pad_token_id)
    marked.backend_tokenizer.post_processor = TemplateProcessing(
        single=[mark, "$A"], special_tokens=[(mark, marked.pad_token_id)]
    )
    assert marked("a")["input_ids"] != tokenizer("a")["input_ids"]
    expected = encoder.tokenise("a red circle")
    assert TextEncoder(marked, None, template).tokenise("a red circle") == expected
    assert template.apply(marked, "a red circle") == expected


def test_padding_is_on_the_tokenizer_s_side(opened: tuple[Any, Any]) -> None:
    """Where the text is, and no padding, its own tokens decide what is embedded."""
    tokenizer, encoder = opened
    side = "left" if tokenizer.bos_token else "right"
    assert tokenizer.padding_side == side
    one, other = (encoder.encode(f"a small red {word}") for word in ("circle", "star"))
    differs = (one != other).any(dim=-1)[0].nonzero().flatten().tolist()
    count = len(encoder.tokenise("a small red circle"))
    if side == "left":
        assert min(differs) > 511 - count
    else:
        # padding comes after the text, whose tokens it attends to
        assert 0 < min(differs) < count


def test_a_long_prompt_keeps_the_template_s_end(opened: tuple[Any, Any]) -> None:
    _, encoder = opened
    short, long = encoder.tokenise("a"), encoder.tokenise("a " * 1000)
    assert len(long) == 512
    assert long[-1] == short[-1]
    count = encoder.count_used("a " * 1000)
    assert count is not None
    assert count == 512 - len(encoder.tokenise(""))
    assert encoder.count_used("a") is None
    assert encoder.encode("a " * 1000).shape == encoder.encode("a").shape == (1, 512, 192)


def test_a_prompt_of_as_many_tokens_as_there_is_room_for_is_not_cut(
    opened: tuple[Any, Any],
) -> None:
    _, encoder = opened
    room = 512 - len(encoder.tokenise(""))
    fitting = " ".join(["a"] * room)
    assert len(encoder.tokenise(fitting)) == 512
    assert encoder.count_used(fitting) is None
    assert encoder.count_used(f"{fitting} a") == room


def test_the_caller_is_told_where_a_prompt_was_cut(publish: Callable[[Kind], Path]) -> None:
    pair = FluxPair(publish("base"), "base")
    long = "a red circle " * 400
    wish = replace(WISH, width=64, height=64, steps=2, prompt=long, seed=3)
    cut = replace(wish, negative_prompt=long, true_cfg_scale=4.0)
    for one, names in ((WISH, []), (wish, ["prompt"]), (cut, ["prompt", "negative prompt"])):
        (outcome,) = pair.ours.make([replace(one, width=64, height=64, steps=2)], [Unheard()])
        warned = take_made(outcome).warnings
        assert [text.partition(" was cut at ")[0] for text in warned] == [f"the {n}" for n in names]
