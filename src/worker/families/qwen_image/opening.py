"""A bundle's folder -> the components of a warm model, its modulation as rows, all in bf16."""

from pathlib import Path
from typing import Literal

import torch

from worker.bundle.open import Opening, Shared
from worker.bundle.plain import open_processor, open_tokenizer
from worker.families.qwen_image import rows
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.merging import merge_adapters
from worker.families.qwen_image.modulation import RowModulation
from worker.families.qwen_image.recipe import RECIPE


def open_bundle(
    folder: Path,
    device: torch.device,
    *,
    verify: Literal["sizes", "full"] = "sizes",
    waiting: torch.device | None = None,
    share: Shared | None = None,
    compiled_batch: int = 0,
    spare: int | None = None,
) -> Components:
    """Open a bundle with its Lightning LoRAs attached.

    `waiting` is the device of the text encoder where it is another one (offload); models that are
    opened with one `share` have their text encoder and VAE in common. `compiled_batch` is that of
    `Components`. With `spare`, the bytes that jobs leave free, LoRAs are merged. Raises Damaged,
    LoraNotApplied, FileNotFoundError.
    """
    opening = Opening(
        folder,
        RECIPE,
        device,
        verify=verify,
        waiting=waiting,
        share=share,
    )
    with opening as parts:
        # These calls import for seconds, while the readers' threads work.
        transformer = parts.build_bare("transformer")
        modulation = RowModulation(
            transformer, rows.map_table(parts.list_mapped("transformer")), device
        )
        parts.fill("transformer", transformer)
        tokenizer = parts.open_files("tokenizer", open_tokenizer)
        processor = (
            parts.open_files("processor", open_processor) if parts.has_part("processor") else None
        )
        opened = Components(
            transformer=transformer,
            text_encoder=parts.open_module("text_encoder"),
            vae=parts.open_module("vae"),
            tokenizer=tokenizer,
            processor=processor,
            scheduler=parts.read_json("scheduler", "scheduler_config.json"),
            adapters=parts.open_adapters(transformer, modulation.fixed),
            modulation=modulation,
            device=device,
            dtype=torch.bfloat16,
            compiled_batch=compiled_batch,
        )
    if spare is not None:
        merge_adapters(opened, spare)
    return opened
