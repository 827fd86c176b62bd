"""A Qwen-Image on the pretend device: the worker's own modules in their published sizes."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.real_shapes import shapes
from bench.real_shapes.shapes import Architecture
from tools.pretend.cases import FIRST_EDIT, IMAGE, Opened
from tools.pretend.device import PretendDevice
from tools.pretend.stored import store
from worker.bundle.layout import name_adapter
from worker.bundle.open import FusedAdapter
from worker.engine.lora import Adapters, ScaledLora
from worker.families.qwen_image import rows
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.forward import Forward
from worker.families.qwen_image.lightning import list_lightning_modules
from worker.families.qwen_image.model import QwenImage
from worker.families.qwen_image.modulation import STREAMS, RowModulation, RowPart, RowTable
from worker.families.qwen_image.recipe import RECIPE
from worker.loras.ready import ReadyLora
from worker.seam import Served
from worker.tasks.picture import PictureOffer
from worker.tasks.way import FROM_PICTURES, FROM_TEXT

STEPS = (8, 4)
RANK = 64  # of the published Lightning LoRAs


def shorten(architecture: Architecture, blocks: int, layers: int) -> Architecture:
    """Return an architecture of the same widths with fewer blocks and layers.

    What a picture takes beside the weights is that of all: a block's activations are freed before
    the next one's are made.
    """
    text = copy.deepcopy(architecture.text_encoder)
    text["text_config"] |= {
        "num_hidden_layers": layers,
        "layer_types": ["full_attention"] * layers,
        "max_window_layers": layers,
    }
    text["vision_config"] |= {"depth": layers, "fullatt_block_indexes": [layers - 1]}
    transformer = {**architecture.transformer, "num_layers": blocks}
    return Architecture(
        **{
            **{name: getattr(architecture, name) for name in architecture.__slots__},
            "transformer": transformer,
            "text_encoder": text,
        }
    )


def build(device: PretendDevice, architecture: Architecture, opened: Opened) -> QwenImage:
    """Return a model opened on the device, which must be entered."""
    is_edit = opened.pipeline != IMAGE
    configs = {
        "transformer": architecture.transformer_config(
            edit=is_edit and opened.pipeline != FIRST_EDIT
        ),
        "text_encoder": architecture.text_encoder,
        "vae": architecture.vae,
    }

    def build_bare(role: str) -> Any:
        modules = RECIPE.find_part(role).modules
        return modules.bare(modules.stock(copy.deepcopy(configs[role])))

    def fill(role: str, modules: Any) -> Any:
        is_offloaded = opened.is_offloaded and role == RECIPE.waiting
        part = RECIPE.find_part(role)
        return store(device, part, modules, opened.precision, is_offloaded=is_offloaded)

    transformer = build_bare("transformer")
    table = make_table(transformer, architecture)
    cuda = torch.device("cuda")
    modulation = RowModulation(transformer, table, cuda)
    fill("transformer", transformer)
    adapters: Adapters
    if opened.is_fused:
        adapters = FusedAdapter(transformer, name_adapter(STEPS[1]), modulation.fixed)
    else:
        adapters = Adapters(transformer, modulation.fixed)
        expected = list_lightning_modules(len(transformer.transformer_blocks))
        for steps in STEPS:
            adapters.attach(name_adapter(steps), make_lora(device, transformer), expected=expected)
    parts = Components(
        transformer=transformer,
        text_encoder=fill("text_encoder", build_bare("text_encoder")),
        vae=fill("vae", build_bare("vae")),
        tokenizer=shapes.tokenizer(),
        processor=shapes.processor(architecture) if is_edit else None,
        scheduler=architecture.scheduler,
        adapters=adapters,
        modulation=modulation,
        device=cuda,
        dtype=torch.bfloat16,
    )
    return QwenImage(
        parts,
        describe(architecture, opened),
        opened.pipeline,
        condition_area=architecture.condition_area,
    )


def forget(model: QwenImage) -> None:
    """Forget what earlier jobs left on the device: caches, positions, modulation rows."""
    parts = model._parts  # noqa: SLF001 - a worker keeps them
    model._cache.clear()  # noqa: SLF001 - the same
    parts.forward = Forward(parts.transformer)
    modulation: Any = parts.modulation
    modulation._loaded = None  # noqa: SLF001 - the same
    modulation._kept_adapted.clear()  # noqa: SLF001 - the same
    model._loras._guests.use({})  # noqa: SLF001 - the same
    model._loras.forget()  # noqa: SLF001 - the same


def describe(architecture: Architecture, opened: Opened) -> Served:
    """Return what a worker would serve of it."""
    offer = PictureOffer(
        steps=50,
        true_cfg_scale=4.0,
        negative_prompt=" ",
        lightning_steps=STEPS[1:] if opened.is_fused else STEPS,
        area=architecture.small**2,
        max_pixels=4 * architecture.small**2,
        max_references=3,
        sizes={},
    )
    task = FROM_TEXT if opened.pipeline == IMAGE else FROM_PICTURES
    return Served(architecture.name, "pretend", "none", opened.precision, "none", {task: offer})


def make_table(transformer: Any, architecture: Architecture) -> RowTable:
    """Return a table of modulation rows with one row that stands for all, on the CPU."""
    keys = rows.compute_keys(architecture.scheduler)
    blocks = len(transformer.transformer_blocks)
    width = 6 * transformer.inner_dim
    row = torch.zeros(1, 1, width, dtype=torch.bfloat16)
    zeros = blocks if transformer.zero_cond_t else 0
    part = RowPart(
        row.expand(len(keys), len(STREAMS) * blocks, width),
        torch.arange(len(STREAMS) * blocks),
        torch.zeros(zeros, width, dtype=torch.bfloat16),
        torch.arange(zeros),
    )
    return RowTable(keys, (part,))


def make_lora(device: PretendDevice, transformer: Any) -> dict[str, Tensor]:
    """Return a Lightning LoRA of a transformer on the device."""
    return make_pairs(device, transformer, len(transformer.transformer_blocks))


def bring_loras(device: PretendDevice, model: QwenImage, count: int) -> tuple[ReadyLora, ...]:
    """Attach LoRAs of every module of a block to a model, as jobs would that brought them."""
    loras: Any = model._loras  # noqa: SLF001 - a worker reads them from files
    transformer = model._parts.transformer  # noqa: SLF001 - the same
    found = []
    for number in range(count):
        lora = ReadyLora("lora", str(number), 1.0, Path(), None, is_callers=True)
        tensors = make_pairs(device, transformer, len(transformer.transformer_blocks))
        for name, place in model._parts.modulation.outside.items():  # noqa: SLF001 - the same
            tensors |= make_pair(device, name, place)
        scales = dict.fromkeys((key.rsplit(".lora_", 1)[0] for key in tensors), 1.0)
        loras._guests.attach(repr(lora.identity), ScaledLora(tensors, scales))  # noqa: SLF001 - the same
        loras._sizes[lora.identity] = 0  # noqa: SLF001 - the same
        found.append(lora)
    return tuple(found)


def make_pairs(device: PretendDevice, transformer: Any, blocks: int) -> dict[str, Tensor]:
    """Return A and B for all modules of so many blocks that Lightning reaches."""
    made: dict[str, Tensor] = {}
    for name in list_lightning_modules(blocks):
        linear = transformer.get_submodule(name)
        linear = getattr(linear, "base", linear)  # another adapter may be attached already
        made |= make_pair(device, name, linear)
    return made


def make_pair(device: PretendDevice, name: str, linear: Any) -> dict[str, Tensor]:
    """Return A and B for one module."""
    return {
        f"{name}.lora_A.weight": device.make((RANK, linear.in_features), torch.bfloat16),
        f"{name}.lora_B.weight": device.make((linear.out_features, RANK), torch.bfloat16),
    }
