"""A published model with random weights: sharded diffusers folders of any width and depth."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.real_shapes import shapes, weights
from bench.real_shapes.shapes import CHECKPOINT, Architecture
from worker.bundle.tensors import read_file_header

CPU: Final = torch.device("cpu")
LORA: Final = "Lightning-{}steps.safetensors"
FILES: Final = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def few_blocks(blocks: int, layers: int) -> Architecture:
    """Return Qwen-Image's architecture at full width with fewer blocks and layers."""
    full = shapes.full()
    text = dict(full.text_encoder)
    kinds = text["text_config"]["layer_types"][:layers]
    depth = {"num_hidden_layers": layers, "layer_types": kinds, "max_window_layers": layers}
    text["text_config"] = text["text_config"] | depth
    text["vision_config"] = text["vision_config"] | {"depth": layers, "fullatt_block_indexes": [0]}
    return replace(
        full,
        name=f"Qwen-Image with {blocks} of 60 blocks and {layers} of 28 layers",
        transformer=full.transformer | {"num_layers": blocks},
        text_encoder=text,
    )


def narrow(dim: int, blocks: int) -> Architecture:
    """Return the embedded checkpoint's architecture with a wider and shorter transformer."""
    tiny = shapes.tiny()
    changed = {"num_layers": blocks, "num_attention_heads": dim // 32, "attention_head_dim": 32}
    return replace(tiny, name=f"width {dim}", transformer=tiny.transformer | changed)


def publish(
    folder: Path, architecture: Architecture, *, edit: bool, shard_bytes: int, steps: int = 8
) -> Path:
    """Write a published model of random bf16 weights with a Lightning LoRA; return its folder.

    A shard is closed once it has `shard_bytes`; files are named as on the hub.
    """
    shutil.copytree(CHECKPOINT / "tokenizer", folder / "tokenizer")
    shutil.copytree(CHECKPOINT / "scheduler", folder / "scheduler")
    if edit:
        shutil.copytree(CHECKPOINT / "processor", folder / "processor")
    kind = "QwenImageEditPlusPipeline" if edit else "QwenImagePipeline"
    _json(folder / "model_index.json", {"_class_name": kind})
    _json(folder / "worker.json", {"condition_area": architecture.condition_area})
    transformer = shapes.transformer(architecture, edit=edit)
    config = {"_class_name": "QwenImageTransformer2DModel"}
    config |= architecture.transformer_config(edit=edit)
    _component(folder / "transformer", transformer, config, shard_bytes)
    text = shapes.text_encoder(architecture)
    _component(folder / "text_encoder", text, architecture.text_encoder, shard_bytes)
    config = {"_class_name": "AutoencoderKLQwenImage", **architecture.vae}
    _component(folder / "vae", shapes.vae(architecture), config, shard_bytes)
    lora: dict[str, Tensor] = {}
    for name, tensor in weights.lightning(transformer, steps, CPU).items():
        lora[name.replace("lora_A", "lora_down").replace("lora_B", "lora_up")] = tensor
        if "lora_A" in name:
            rank = torch.tensor(float(len(tensor)), dtype=torch.bfloat16)
            lora[name.replace("lora_A.weight", "alpha")] = rank
    save_file(lora, folder / LORA.format(steps))
    return folder


def _component(folder: Path, model: nn.Module, config: dict[str, Any], shard_bytes: int) -> None:
    folder.mkdir(parents=True)
    _json(folder / "config.json", config)
    stem = FILES[folder.name]
    shard: dict[str, Tensor] = {}
    parts: list[Path] = []

    def close() -> None:
        parts.append(folder / f"{len(parts)}.part")
        save_file(shard, parts[-1])
        shard.clear()

    for name, tensor in _published(model):
        shard[name] = tensor
        if sum(t.numel() * t.element_size() for t in shard.values()) >= shard_bytes:
            close()
    if shard:
        close()
    placed: dict[str, str] = {}
    for index, part in enumerate(parts, 1):
        tail = f"-{index:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
        target = part.rename(folder / f"{stem}{tail}.safetensors")
        placed |= dict.fromkeys(read_file_header(target), target.name)
    if len(parts) > 1:
        _json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": placed})


def _published(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter's random values under its published name."""
    for path, owner in model.named_modules():
        for leaf, like in owner.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            tensor = weights.value(owner, name, like, CPU)
            yield (
                name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
                tensor,
            )


def _json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
