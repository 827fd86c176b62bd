"""A bundle's folder -> what speaks: the language model and the codec on the device, text beside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from worker import log
from worker.bundle.layout import Damaged, read_bundle
from worker.bundle.open import Opening, Shared
from worker.bundle.plain import open_tokenizer
from worker.families.orpheus.codec import SnacDecoder
from worker.families.orpheus.language import HEAD_ROWS, Language
from worker.families.orpheus.models import Speaking, read_speaking
from worker.families.orpheus.parts import TEXT_TABLE
from worker.families.orpheus.recipe import SPEECH_RECIPE


@dataclass(slots=True)
class VoiceParts:
    """The open parts of one model; `text` is the embedding of its text ids, mapped on the host."""

    language: Language
    text: Tensor
    codec: SnacDecoder
    tokenizer: Any
    device: torch.device
    codec_device: torch.device


def open_bundle(
    folder: Path,
    device: torch.device,
    *,
    verify: Literal["sizes", "full"] = "sizes",
    waiting: torch.device | None = None,
    share: Shared | None = None,
    compiled_batch: int = 0,
    spare: int | None = None,
) -> VoiceParts:
    """Open a bundle; `waiting` is the device of the codec where that is another one.

    Nothing is compiled, and there are no LoRAs to merge. Raises Damaged, FileNotFoundError.
    """
    del compiled_batch, spare
    ids = read_speaking(read_bundle(folder).facts, Speaking()).ids
    opening = Opening(folder, SPEECH_RECIPE, device, verify=verify, waiting=waiting, share=share)
    with opening as parts:
        has_head = parts.has_tensor("language", HEAD_ROWS)
        language = Language(parts.build_bare("language").model, ids, is_tied=not has_head)
        parts.fill("language", language)
        text = _map_text(parts.list_mapped("language"), folder)
        codec = parts.open_module("codec")
        tokenizer = parts.open_files("tokenizer", open_tokenizer)
    if has_head:
        log.get().info("head compared with the embedding", equal=language.tie())
    return VoiceParts(language, text, codec, tokenizer, device, waiting or device)


def _map_text(files: list[Path], folder: Path) -> Tensor:
    """Return the embedding of text, mapped: of 788 MB, a prompt reads a few hundred kB."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            if TEXT_TABLE in file.keys():  # noqa: SIM118 - no mapping, but a file with such a method
                table: Tensor = file.get_tensor(TEXT_TABLE)
                return table
    raise Damaged(folder, "it has no embedding of text")
