"""A processor's files under the names that are known, and what a tokenizer must know."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from worker.errors import WeightsUnavailable
from worker.families.qwen_image import tokenizing
from worker.families.qwen_image.prompts import EDIT_TEMPLATE
from worker.weights.meaning import find_checkpoints

TOKENIZER = AutoTokenizer.from_pretrained(find_checkpoints() / "tiny" / "edit" / "tokenizer")


@pytest.mark.parametrize("kind", ["Image", "Video"])
@pytest.mark.parametrize("alias", ["Qwen2_5_VL{}Processor", "Qwen2VL{}ProcessorFast"])
def test_both_classes_get_the_names_that_are_known_wherever_they_stand(
    kind: str, alias: str
) -> None:
    """Only as the value of their own field, and only where that is the whole of it."""
    field, name = f"{kind.lower()}_processor_type", alias.format(kind)
    other = {"note": name, field: f"{name}2", "list": [name], "size": 3}
    given = {field: name, "inside": {field: name, "deeper": {field: name}}, "other": other}
    renamed: Any = json.loads(tokenizing.rename_classes("a.json", json.dumps(given).encode()))
    known = f"Qwen2VL{kind}Processor"
    expected = {field: known, "inside": {field: known, "deeper": {field: known}}, "other": other}
    assert renamed == expected
    numbered = json.dumps({field: [name]}).encode()
    assert json.loads(tokenizing.rename_classes("a.json", numbered)) == {field: [name]}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b'{"image_processor_type":   "ViTImageProcessor"}'),
        ("a.json", b'{"a": "\xff"}'),
        ("a.txt", b'{"image_processor_type": "Qwen2_5_VLImageProcessor"}'),
    ],
)
def test_any_other_file_is_what_it_was(name: str, data: bytes) -> None:
    assert tokenizing.rename_classes(name, data) == data


class Other:
    """The tokenizer without some of its words, or with one more."""

    def __init__(self, lacks: str = "", more: int = 0) -> None:
        known = TOKENIZER.get_vocab()
        self._known = {word: number for word, number in known.items() if word != lacks}
        self._known |= {"one more": more} if more else {}

    def get_vocab(self) -> dict[str, int]:
        """Return what it knows."""
        return self._known

    def __getattr__(self, name: str) -> Any:
        """Do the rest as it does."""
        return getattr(TOKENIZER, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Tokenise as it does."""
        return TOKENIZER(*given, **named)


def test_a_token_of_the_highest_number_that_the_text_encoder_holds_is_its_last() -> None:
    size = 1 << 20
    tokenizing._check_tokenizer(Other(more=size - 1), {"vocab_size": size}, EDIT_TEMPLATE)
    with pytest.raises(WeightsUnavailable, match=f"a token {size}, and text_encoder/ holds {size}"):
        tokenizing._check_tokenizer(Other(more=size), {"vocab_size": size}, EDIT_TEMPLATE)


@pytest.mark.parametrize("word", ["im_start", "im_end", "vision_start", "vision_end", "image_pad"])
def test_each_special_token_must_be_known(word: str) -> None:
    with pytest.raises(WeightsUnavailable, match=rf"does not know <\|{word}\|>"):
        tokenizing._check_tokenizer(
            Other(lacks=f"<|{word}|>"), {"vocab_size": 1 << 20}, EDIT_TEMPLATE
        )


@pytest.mark.parametrize("field", ["patch_size", "merge_size", "temporal_patch_size"])
def test_references_come_in_the_patches_of_the_vision_tower(field: str) -> None:
    class Qwen2VLImageProcessor(SimpleNamespace):
        """One of this name."""

    config = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 3}
    own = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 3}
    fits: Any = SimpleNamespace(image_processor=Qwen2VLImageProcessor(**own))
    tokenizing._check_processor(fits, config)
    other: Any = SimpleNamespace(image_processor=Qwen2VLImageProcessor(**{**own, field: 5}))
    with pytest.raises(WeightsUnavailable, match=f"a {field} of 5"):
        tokenizing._check_processor(other, config)
    with pytest.raises(WeightsUnavailable, match="has a NoneType where"):
        tokenizing._check_processor(SimpleNamespace(), config)
