"""The architectures: Qwen-Image's own sizes, or the embedded checkpoint's for a quick run."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from worker.bundle.fill import make_empty

CHECKPOINT: Final = Path(__file__).resolve().parents[2] / "checkpoints" / "tiny" / "edit"
# transformer/config.json of Qwen-Image and its editions; zero_cond_t is Edit-2511's
TRANSFORMER: Final[dict[str, Any]] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "axes_dims_rope": (16, 56, 56),
}
# text_encoder/config.json: Qwen2.5-VL-7B
LANGUAGE: Final[dict[str, Any]] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "layer_types": ["full_attention"] * 28,
    "max_window_layers": 28,
    "rope_parameters": {
        "mrope_section": [16, 24, 24],
        "rope_theta": 1000000.0,
        "rope_type": "default",
    },
}
VISION: Final[dict[str, Any]] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
# preprocessor_config.json of Qwen2.5-VL-7B, in pixels
PROCESSED: Final = {"shortest_edge": 56 * 56, "longest_edge": 12845056}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is built: configurations, and the sizes in pixels at which it is measured.

    There are no published tokenizer files here, so the embedded checkpoint's serves, whose ids the
    configuration of the text encoder names; its template has the published number of tokens.
    """

    name: str
    transformer: dict[str, Any]
    text_encoder: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    small: int
    large: int
    condition_area: int
    processed: dict[str, int] | None

    def transformer_config(self, *, edit: bool) -> dict[str, Any]:
        """Return the transformer's configuration as one edition has it."""
        return {**self.transformer, "zero_cond_t": edit}


def _json(path: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((CHECKPOINT / path).read_text())
    return {key: held for key, held in value.items() if not key.startswith("_")}


def full() -> Architecture:
    """Return Qwen-Image's own sizes: 20.4 B, 8.3 B and 0.13 B parameters."""
    text = copy.deepcopy(_json("text_encoder/config.json"))
    text["text_config"] |= LANGUAGE
    text["vision_config"] |= VISION
    text["vision_config"].pop("rope_parameters", None)
    vae = AutoencoderKLQwenImage().config
    plain = {key: value for key, value in vae.items() if not key.startswith("_")}
    scheduler = _json("scheduler/scheduler_config.json")
    return Architecture(
        "Qwen-Image", TRANSFORMER, text, plain, scheduler, 1024, 1328, 384 * 384, PROCESSED
    )


def tiny() -> Architecture:
    """Return the embedded checkpoint's sizes, for a CPU."""
    return Architecture(
        "tiny",
        _json("transformer/config.json"),
        _json("text_encoder/config.json"),
        _json("vae/config.json"),
        _json("scheduler/scheduler_config.json"),
        *(96, 128, 96 * 96, None),
    )


def transformer(architecture: Architecture, *, edit: bool) -> Any:
    """Return the transformer without storage."""
    with make_empty():
        made = QwenImageTransformer2DModel.from_config(architecture.transformer_config(edit=edit))
    return made.eval()


def text_encoder(architecture: Architecture) -> Any:
    """Return the text encoder without storage."""
    config = Qwen2_5_VLConfig.from_dict(copy.deepcopy(architecture.text_encoder))
    with make_empty():
        made = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)  # noqa: SLF001 - as bundle.open does
    return made.eval()


def vae(architecture: Architecture) -> Any:
    """Return the VAE without storage."""
    with make_empty():
        made = AutoencoderKLQwenImage.from_config(architecture.vae)
    return made.eval()


def tokenizer() -> Any:
    """Return the embedded checkpoint's tokenizer."""
    return AutoTokenizer.from_pretrained(CHECKPOINT / "tokenizer", local_files_only=True)


def processor(architecture: Architecture) -> Any:
    """Return the processor, resizing references as the architecture's own does."""
    made = AutoProcessor.from_pretrained(CHECKPOINT / "processor", local_files_only=True)
    if architecture.processed is not None:
        made.image_processor.size = dict(architecture.processed)
    return made
