"""Write the tiny checkpoint as two complete diffusers folders, from given or random parts.

    python -m training.tiny.make checkpoints/tiny [--seed 0]

Without training the weights are random: they make pictures of coloured noise, never a grey one.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from training.tiny import architecture
from training.tiny.flat_vae import initialise
from training.tiny.tokenizer import build_tokenizer

LIGHTNING = {steps: f"lightning/tiny-Lightning-{steps}steps.safetensors" for steps in (4, 8)}
LORA_SCALE = 0.02


@dataclass(frozen=True, slots=True)
class Parts:
    """What both folders are made of; `lightning` maps a step count to its LoRA."""

    tokenizer: Any
    text_encoder: Any
    vae: Any
    transformer: Any
    lightning: Mapping[int, Mapping[str, Tensor]]


def random_parts(seed: int) -> Parts:
    """Return untrained parts: latents of unit spread, LoRAs that change every module they name."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text_encoder = architecture.build_text_encoder(tokenizer)
    vae = architecture.build_vae()
    initialise(vae, seed)
    transformer = architecture.build_transformer(zero_cond_t=True)
    loras = {n: architecture.random_lora(transformer, seed + n, LORA_SCALE) for n in LIGHTNING}
    return Parts(tokenizer, text_encoder, vae, transformer, loras)


def _processor(tokenizer: Any) -> Any:
    smallest, largest = architecture.PROCESSOR_PIXELS
    pixels = {"min_pixels": smallest, "max_pixels": largest}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
    )


def _transformer(weights: Mapping[str, Tensor], *, zero_cond_t: bool) -> Any:
    model = architecture.build_transformer(zero_cond_t=zero_cond_t)
    model.load_state_dict(dict(weights))
    return model.to(torch.bfloat16)


def write(folder: Path, parts: Parts) -> None:
    """Write `folder`/image and `folder`/edit in bf16: the same weights, each with its own config.

    The edit variant sets zero_cond_t: its reference tokens are modulated as at timestep 0. A
    text-to-image pass has no such tokens, so one training serves both.
    """
    weights = parts.transformer.state_dict()
    shared = {
        "scheduler": FlowMatchEulerDiscreteScheduler(**architecture.SCHEDULER),
        "vae": parts.vae.to(torch.bfloat16),
        "text_encoder": parts.text_encoder.to(torch.bfloat16),
        "tokenizer": parts.tokenizer,
    }
    image: Any = QwenImagePipeline(**shared, transformer=_transformer(weights, zero_cond_t=False))
    edit: Any = QwenImageEditPlusPipeline(
        **shared,
        transformer=_transformer(weights, zero_cond_t=True),
        processor=_processor(parts.tokenizer),
    )
    about = {
        "area": architecture.AREA,
        "condition_area": architecture.CONDITION_AREA,
        "lightning": {str(steps): name for steps, name in LIGHTNING.items()},
    }
    for name, pipeline in (("image", image), ("edit", edit)):
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        pipeline.save_pretrained(target)
        for steps, file in LIGHTNING.items():
            (target / file).parent.mkdir(exist_ok=True)
            half = {
                k: v.detach().to("cpu", torch.bfloat16) for k, v in parts.lightning[steps].items()
            }
            save_file(half, target / file, metadata={"format": "pt"})
        for written in target.rglob("*.safetensors"):
            written.chmod(0o644)
        (target / "worker.json").write_text(json.dumps(about, indent=2) + "\n")


def main() -> None:
    """Write folders with random weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.folder, random_parts(options.seed))
    total = sum(f.stat().st_size for f in options.folder.rglob("*") if f.is_file())
    print(f"{options.folder}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
