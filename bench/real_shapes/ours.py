"""Our engine over random weights: lean transformer, modulation rows, no lm_head, adapters."""

import itertools
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from bench.real_shapes import shapes, weights
from bench.real_shapes.shapes import Architecture
from bench.real_shapes.warm import Warm
from worker.bundle.fill import fill
from worker.bundle.layout import name_adapter
from worker.engine.lora import Adapters
from worker.engine.quantise import Precision
from worker.families.qwen_image import rows
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.lightning import list_lightning_modules, make_lightning_schedule
from worker.families.qwen_image.model import QwenImage
from worker.families.qwen_image.modulation import (
    STREAMS,
    RowModulation,
    RowPart,
    RowTable,
    round_timesteps,
)
from worker.families.qwen_image.modules import NoHead, keep_frames
from worker.seam import Served
from worker.tasks.picture import PictureOffer

STEPS: Final = (8, 4)
PIPELINES: Final = {False: "QwenImagePipeline", True: "QwenImageEditPlusPipeline"}


@dataclass(frozen=True, slots=True)
class Lent:
    """What two models of one family have in common."""

    text_encoder: Any
    vae: Any


def row_table(transformer: Any, config: dict[str, Any], device: torch.device) -> RowTable:
    """Return the rows of Lightning's timesteps, from the very weights that the stock build has.

    One layer's weights exist at a time, and none when it returns; the blocks lose theirs.
    """
    steps = torch.cat([make_lightning_schedule(count, 4096).timesteps for count in STEPS])
    wanted = torch.unique(round_timesteps(steps).float()).to(torch.bfloat16)
    time_embedding = weights.made(transformer, device, {}, below=rows.PREFIX)
    blocks = transformer.transformer_blocks
    embedding = rows.TimeEmbedding(time_embedding, config, wanted, device)
    collector = rows.Collector(embedding, len(blocks), len(STREAMS) * len(blocks))
    for (index, block), stream in itertools.product(enumerate(blocks), STREAMS):
        name, layer = f"transformer_blocks.{index}.{stream}.1", getattr(block, stream)[1]
        weight = weights.value(layer, f"{name}.weight", layer.weight, device)
        bias = weights.value(layer, f"{name}.bias", layer.bias, device)
        collector.add(index, stream, weight, bias)
        setattr(block, stream, nn.Identity())
    held = collector.collect_tensors()
    part = RowPart(held[rows.ROWS], held["slots"], held["zero"], held["zero_blocks"])
    return RowTable(held["keys"], (part,))


def text_encoder(architecture: Architecture, precision: Precision, device: torch.device) -> Any:
    """Return the text encoder as a bundle opens it: quantised, without lm_head."""
    made = shapes.text_encoder(architecture)
    made.lm_head = NoHead()
    return weights.build(made, device, precision, role="text_encoder")


def vae(architecture: Architecture, device: torch.device) -> Any:
    """Return the VAE in bf16, as it is published."""
    made = shapes.vae(architecture)
    fill(made, weights.made(made, device, {}), "bf16", device)
    return made


def components(
    architecture: Architecture,
    *,
    edit: bool,
    precision: Precision,
    device: torch.device,
    steps: tuple[int, ...] = STEPS,
    lent: Lent | None = None,
) -> Components:
    """Return the open parts of one model, with a LoRA for each of `steps`.

    `lent` is another model's text encoder and VAE.
    """
    if lent is None:
        encoder = text_encoder(architecture, precision, device)
        lent = Lent(encoder, keep_frames(vae(architecture, device)))
    transformer = shapes.transformer(architecture, edit=edit)
    table = row_table(transformer, architecture.transformer_config(edit=edit), device)
    modulation = RowModulation(transformer, table, device)
    weights.build(transformer, device, precision)
    adapters = Adapters(transformer, modulation.fixed)
    expected = list_lightning_modules(len(transformer.transformer_blocks))
    for count in steps:
        state = weights.lightning(transformer, count, device)
        adapters.attach(name_adapter(count), state, expected=expected)
    return Components(
        transformer=transformer,
        text_encoder=lent.text_encoder,
        vae=lent.vae,
        tokenizer=shapes.tokenizer(),
        processor=shapes.processor(architecture),
        scheduler=architecture.scheduler,
        adapters=adapters,
        modulation=modulation,
        device=device,
        dtype=torch.bfloat16,
    )


def share(architecture: Architecture, parts: Components, *, edit: bool) -> Components:
    """Return the parts of the other task's model, with the very weights and LoRAs of `parts`.

    The two differ in zero_cond_t alone, and in the modulation's rows with it.
    """
    transformer = shapes.transformer(architecture, edit=edit)
    config = architecture.transformer_config(edit=edit)
    table = row_table(transformer, config, parts.device)
    modulation = RowModulation(transformer, table, parts.device)
    for name, child in parts.transformer.named_children():
        if name != "transformer_blocks":
            setattr(transformer, name, child)
    pairs = zip(transformer.transformer_blocks, parts.transformer.transformer_blocks, strict=True)
    for block, other in pairs:
        for name, child in other.named_children():
            if name not in STREAMS:
                setattr(block, name, child)
    return replace(parts, transformer=transformer, modulation=modulation)


def served(architecture: Architecture, *, edit: bool, precision: Precision) -> Served:
    """Return what a worker would serve of it."""
    offer = PictureOffer(
        steps=STEPS[0],
        true_cfg_scale=1.0,
        negative_prompt=" ",
        lightning_steps=STEPS,
        area=architecture.small**2,
        max_pixels=architecture.large**2,
        max_references=3,
        sizes={},
    )
    return Served(
        id=architecture.name,
        repository="bench/random",
        revision="random",
        precision=precision,
        licence="none",
        offers={"edit" if edit else "text-to-image": offer},
    )


def open_model(
    architecture: Architecture, parts: Components, *, edit: bool, precision: Precision
) -> Warm:
    """Return one warm model over its parts."""
    model = QwenImage(
        parts,
        served(architecture, edit=edit, precision=precision),
        PIPELINES[edit],
        condition_area=architecture.condition_area,
    )
    return Warm(model, parts)
