"""FLUX.2's published sizes, or the embedded checkpoint's for a quick run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from worker.families.flux2.working import LARGE_EDITION, SMALL_EDITION, Edition

FLUX_CHECKPOINT: Final = Path(__file__).resolve().parents[2] / "checkpoints" / "tiny" / "flux"
KLEINS: Final[Mapping[str, Edition]] = {
    "flux-2-klein-4b": SMALL_EDITION,
    "flux-2-klein-9b": LARGE_EDITION,
}
ROLES: Final = ("transformer", "text_encoder", "vae")


@dataclass(frozen=True, slots=True)
class Klein:
    """What is built of one: its configurations by role; `edition` is None for the embedded one.

    There are no published tokenizer files here, so the embedded checkpoint's serves: every prompt
    is padded to the same length.
    """

    name: str
    edition: Edition | None
    configs: Mapping[str, dict[str, Any]]

    @property
    def out_layers(self) -> tuple[int, ...]:
        """After which layers of the text encoder a prompt is taken."""
        layers: int = self.configs["text_encoder"]["num_hidden_layers"]
        return tuple(layers // 4 * n for n in (1, 2, 3))


def find_klein(name: str, *, is_tiny: bool) -> Klein:
    """Return a published size by its name, or the embedded checkpoint's instead."""
    if is_tiny:
        configs = {role: _read(f"{role}/config.json") for role in ROLES}
        return Klein("tiny", None, configs)
    edition = KLEINS[name]
    return Klein(name, edition, describe_parts(edition, is_dev=False))


def describe_parts(edition: Edition, *, is_dev: bool) -> dict[str, dict[str, Any]]:
    """Return the configurations of a size's parts with weights."""
    return {
        "transformer": {
            "num_layers": edition.double,
            "num_single_layers": edition.single,
            "num_attention_heads": edition.heads,
            "joint_attention_dim": 3 * edition.hidden,
            "guidance_embeds": is_dev,
        },
        "text_encoder": describe_text_encoder(edition, is_dev=is_dev),
        "vae": {},
    }


def describe_text_encoder(edition: Edition, *, is_dev: bool) -> dict[str, Any]:
    """Return the configuration of a size's text encoder."""
    text = {
        "hidden_size": edition.hidden,
        "intermediate_size": edition.intermediate,
        "num_hidden_layers": edition.layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": edition.words,
    }
    if not is_dev:
        return {**text, "architectures": ["Qwen3ForCausalLM"]}
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {**text, "model_type": "mistral"},
        "vision_config": {**vision, "num_attention_heads": 1, "model_type": "pixtral"},
    }


def read_scheduler() -> dict[str, Any]:
    """Return the configuration of the schedule."""
    return _read("scheduler/scheduler_config.json")


def read_tokenizer() -> Any:
    """Return the embedded checkpoint's tokenizer, with its chat template."""
    return AutoTokenizer.from_pretrained(FLUX_CHECKPOINT / "tokenizer", local_files_only=True)


def _read(path: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FLUX_CHECKPOINT / path).read_text())
    return {key: part for key, part in value.items() if not key.startswith("_")}
