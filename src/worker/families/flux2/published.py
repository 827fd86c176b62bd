"""A published diffusers folder -> components, in one dtype: the reference for bundles."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import AutoTokenizer, Mistral3ForConditionalGeneration, Qwen3ForCausalLM

from worker.engine.lora import Adapters
from worker.families.flux2.components import Flux2Parts
from worker.families.flux2.modules import MISTRAL, strip_text_encoder


def open_published(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Flux2Parts:
    """Open a diffusers folder with from_pretrained, its text encoder cut, in one dtype."""

    def build_module(kind: Any, part: str) -> Any:
        opened = kind.from_pretrained(folder / part, dtype=dtype, local_files_only=True)
        return opened.to(device).eval()

    described = json.loads((folder / "text_encoder" / "config.json").read_text())
    is_mistral = MISTRAL in described["architectures"]
    encoder = Mistral3ForConditionalGeneration if is_mistral else Qwen3ForCausalLM
    transformer = build_module(Flux2Transformer2DModel, "transformer")
    return Flux2Parts(
        transformer=transformer,
        text_encoder=strip_text_encoder(build_module(encoder, "text_encoder")),
        vae=build_module(AutoencoderKLFlux2, "vae"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        scheduler=json.loads((folder / "scheduler" / "scheduler_config.json").read_text()),
        adapters=Adapters(transformer),
        device=device,
        dtype=dtype,
    )
