"""A model's tokenizer and processor: opened from small files, and tried before a bundle is made."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from worker.bundle.plain import open_processor, open_tokenizer, try_opening
from worker.errors import WeightsUnavailable
from worker.families.qwen_image.prompts import EDIT_TEMPLATE, TEXT_TEMPLATE, PromptEncoder, Template

# Qwen2.5-VL's processors are Qwen2-VL's, whose classes transformers 5 knows by one name each: the
# "Fast" one of transformers 4 is the only one there is, and leads to no video processor.
ALIAS: Final = re.compile(r"Qwen2(?:_5_)?VL((?:Image|Video)Processor)(?:Fast)?")
TYPES: Final = ("image_processor_type", "video_processor_type")
SPECIAL: Final = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)


def rename_classes(name: str, data: bytes) -> bytes:
    """Return a processor's small file with Qwen2-VL's classes under the names that are known."""
    if not name.endswith(".json") or not ALIAS.search(data.decode(errors="replace")):
        return data
    return json.dumps(_rename(json.loads(data)), indent=2).encode()


def _rename(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: ALIAS.sub(r"Qwen2VL\1", entry)
        if key in TYPES and isinstance(entry, str) and ALIAS.fullmatch(entry)
        else _rename(entry)
        for key, entry in value.items()
    }


def check(
    small: Mapping[str, Mapping[str, bytes]], config: Mapping[str, Any], *, edits: bool
) -> None:
    """Open the tokenizer and, for a model that edits, the processor; check that they fit the rest.

    `small` maps a component to its small files, `config` is the text encoder's with its defaults.
    Raises WeightsUnavailable.
    """
    tokenizer = try_opening("tokenizer", small["tokenizer"], open_tokenizer, "Qwen2.5-VL")
    _check_tokenizer(tokenizer, config, EDIT_TEMPLATE if edits else TEXT_TEMPLATE)
    if edits:
        processor = try_opening("processor", small["processor"], open_processor, "Qwen2.5-VL")
        _check_processor(processor, config)


def _check_tokenizer(tokenizer: Any, config: Mapping[str, Any], template: Template) -> None:
    """Check that the tokens of the template are those that a Qwen-Image was trained to drop."""
    known = tokenizer.get_vocab()
    unknown = [word for word in SPECIAL if word not in known]
    if unknown:
        raise WeightsUnavailable(f"tokenizer/ does not know {unknown[0]}: it is of another model")
    tokens = PromptEncoder(tokenizer, None, None).tokenise("", template, ())
    found = len(tokens) - 1 - tokens[::-1].index(known["<|im_end|>"])  # what ends the user's turn
    if found != template.dropped:
        raise WeightsUnavailable(
            f"tokenizer/ gives {found} tokens for the template's beginning, where Qwen2.5-VL's"
            f" gives {template.dropped}: it is of another model"
        )
    highest = max(known.values())
    if highest >= config["vocab_size"]:
        raise WeightsUnavailable(
            f"tokenizer/ has a token {highest}, and text_encoder/ holds {config['vocab_size']}"
        )


def _check_processor(processor: Any, config: Mapping[str, Any]) -> None:
    """Check that references come in the patches that the vision tower takes."""
    images = getattr(processor, "image_processor", None)
    kind = type(images).__name__
    if not kind.startswith("Qwen2VLImageProcessor"):
        raise WeightsUnavailable(
            f"processor/ has a {kind} where Qwen2.5-VL has a Qwen2VLImageProcessor"
        )
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        if (own := getattr(images, ours)) != (expected := config[theirs]):
            raise WeightsUnavailable(
                f"processor/ has a {ours} of {own}, and text_encoder/ takes {expected}"
            )
