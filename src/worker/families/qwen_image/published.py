"""A published diffusers folder -> components, unchanged: the reference for bundles."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from worker.engine import lora_file
from worker.engine.lora import Adapters
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.lightning import list_lightning_modules
from worker.families.qwen_image.modulation import WeightModulation


class PublishedVae:
    """diffusers' VAE, made for video, as a model runs it (`Frames`); `vae` is its own module."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.config = vae, vae.config
        self.dtype: torch.dtype = vae.dtype
        self.device: torch.device = vae.device

    def encode(self, pixels: Tensor, *, tiled: bool = False) -> Tensor:
        """Return the means of the latents of pixels."""
        self._tile(on=tiled)
        latents: Tensor = self.vae.encode(pixels[:, :, None]).latent_dist.mode()
        return latents[:, :, 0]

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """Return the pixels of latents."""
        self._tile(on=tiled)
        pixels: Tensor = self.vae.decode(latents[:, :, None]).sample
        return pixels[:, :, 0]

    def _tile(self, *, on: bool) -> None:
        if on:
            self.vae.enable_tiling()
        else:
            self.vae.disable_tiling()


def attach_lightning(
    adapters: Adapters, files: Mapping[str, Path], *, blocks: int, parts: Components
) -> None:
    """Attach Lightning LoRAs (adapter name -> file) in the components' dtype, on their device.

    Raises LoraNotApplied when one does not reach exactly the modules it must.
    """
    for name, file in files.items():
        state = {
            key: tensor.to(parts.device, parts.dtype)
            for key, tensor in lora_file.read(
                file, adapters.modules, lora_file.read_config(file)
            ).items()
        }
        adapters.attach(name, state, expected=list_lightning_modules(blocks))


def open_published(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    lightning: Mapping[str, Path] | None = None,
) -> Components:
    """Open a diffusers folder with from_pretrained, all weights in place, in one dtype.

    `lightning` maps adapter names to LoRA files. Raises LoraNotApplied.
    """

    def build_module(kind: Any, part: str) -> Any:
        opened = kind.from_pretrained(folder / part, dtype=dtype, local_files_only=True)
        return opened.to(device).eval()

    transformer = build_module(QwenImageTransformer2DModel, "transformer")
    processor = None
    if (folder / "processor").is_dir():
        processor = AutoProcessor.from_pretrained(folder / "processor", local_files_only=True)
    parts = Components(
        transformer=transformer,
        text_encoder=build_module(Qwen2_5_VLForConditionalGeneration, "text_encoder"),
        vae=PublishedVae(build_module(AutoencoderKLQwenImage, "vae")),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        processor=processor,
        scheduler=json.loads((folder / "scheduler" / "scheduler_config.json").read_text()),
        adapters=Adapters(transformer),
        modulation=WeightModulation(),
        device=device,
        dtype=dtype,
    )
    attach_lightning(
        parts.adapters, lightning or {}, blocks=len(transformer.transformer_blocks), parts=parts
    )
    return parts
