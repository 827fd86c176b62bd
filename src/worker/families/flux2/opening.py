"""A bundle's folder -> the components of a warm model, all in bf16."""

from pathlib import Path
from typing import Literal

import torch

from worker.bundle.open import Opening, Shared
from worker.bundle.plain import open_tokenizer
from worker.families.flux2.components import Flux2Parts
from worker.families.flux2.recipe import RECIPE


def open_bundle(
    folder: Path,
    device: torch.device,
    *,
    verify: Literal["sizes", "full"] = "sizes",
    waiting: torch.device | None = None,
    share: Shared | None = None,
    compiled_batch: int = 0,
    spare: int | None = None,
) -> Flux2Parts:
    """Open a bundle.

    `waiting` is the device of the text encoder where it is another one (offload); models that are
    opened with one `share` have their text encoder and VAE in common. `compiled_batch` is that of
    `Flux2Parts`. Nothing is merged, so `spare` is not used. Raises Damaged, FileNotFoundError.
    """
    del spare
    opening = Opening(
        folder,
        RECIPE,
        device,
        verify=verify,
        waiting=waiting,
        share=share,
    )
    with opening as parts:
        transformer = parts.open_module("transformer")
        return Flux2Parts(
            transformer=transformer,
            text_encoder=parts.open_module("text_encoder"),
            vae=parts.open_module("vae"),
            tokenizer=parts.open_files("tokenizer", open_tokenizer),
            scheduler=parts.read_json("scheduler", "scheduler_config.json"),
            adapters=parts.open_adapters(transformer),
            device=device,
            dtype=torch.bfloat16,
            compiled_batch=compiled_batch,
        )
