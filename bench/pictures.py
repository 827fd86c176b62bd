"""Pictures made both ways: by our engine from a bundle, and by diffusers as its users set it up."""

import gc
import re
from pathlib import Path
from typing import Any, Final

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from torch import nn
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from worker.families.qwen_image.components import Components
from worker.families.qwen_image.lightning import LIGHTNING, LIGHTNING_MODULES
from worker.families.qwen_image.model import QwenImage
from worker.media.picture import Picture
from worker.seam import Served, Unheard, take_made
from worker.tasks.picture import PictureOffer, PictureWish

# What users of the 4-bit recipes quantise: every Linear of the blocks except the first img_mod.
USUAL: Final = {
    "transformer": re.compile(r"transformer_blocks\.(?!0\.img_mod).*"),
    "text_encoder": re.compile(r"model\.language_model\.layers\..*"),
}


def engine(parts: Components, side: int, steps: int) -> QwenImage:
    """Return the worker's engine over open components."""
    offer = PictureOffer(
        steps=steps,
        true_cfg_scale=1.0,
        negative_prompt=" ",
        lightning_steps=(steps,),
        area=side * side,
        max_pixels=side * side,
        max_references=0,
        sizes={},
    )
    served = Served(
        id="model",
        repository="bench/model",
        revision="local",
        precision="4bit",
        licence="",
        offers={"text-to-image": offer},
    )
    return QwenImage(parts, served, "QwenImagePipeline")


def ours(model: QwenImage, prompt: str, side: int, steps: int, seed: int = 0) -> Image.Image:
    """Make one Lightning picture with the worker's engine."""
    wish = PictureWish(
        task="text-to-image",
        prompt=prompt,
        negative_prompt=None,
        references=(),
        width=side,
        height=side,
        steps=steps,
        true_cfg_scale=1.0,
        lightning=True,
        seed=seed,
    )
    (made,) = map(take_made, model.make([wish], [Unheard()]))
    assert isinstance(made.piece, Picture)
    return made.piece.image


def loaded(published: Path) -> Any:
    """Load the pipeline in bf16 with from_pretrained."""
    kept = {"local_files_only": True}
    vae = AutoencoderKLQwenImage.from_pretrained(
        published / "vae", torch_dtype=torch.bfloat16, **kept
    )
    text_encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        published / "text_encoder", dtype=torch.bfloat16, **kept
    )
    transformer = QwenImageTransformer2DModel.from_pretrained(
        published / "transformer", torch_dtype=torch.bfloat16, **kept
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(LIGHTNING)),
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=AutoTokenizer.from_pretrained(published / "tokenizer", **kept),
        transformer=transformer.eval(),
    )


def quantised(pipeline: Any) -> None:
    """Quantise a pipeline to NF4 in place, as diffusers' and transformers' loaders do on a GPU.

    They refuse a CPU, although bitsandbytes itself works there: here each Linear is replaced by a
    Linear4bit that quantises the weight it is given.
    """
    for role, pattern in USUAL.items():
        model: nn.Module = getattr(pipeline, role)
        for name, module in list(model.named_modules()):
            if not isinstance(module, nn.Linear) or not pattern.fullmatch(name):
                continue
            small = Linear4bit(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                device="meta",
            )
            small.weight = Params4bit(module.weight.data, quant_type="nf4", module=small)
            small.bias = module.bias
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, small.to("cpu").eval())
            del module
        gc.collect()


def with_lora(pipeline: Any, file: Path) -> None:
    """Attach a Lightning LoRA with peft; raises RuntimeError unless it reaches every module."""
    pipeline.load_lora_weights(
        file.parent, weight_name=file.name, adapter_name="lightning", use_safetensors=True
    )
    reached = sum(hasattr(module, "lora_A") for module in pipeline.transformer.modules())
    expected = len(LIGHTNING_MODULES) * len(pipeline.transformer.transformer_blocks)
    if reached != expected:
        raise RuntimeError(f"the LoRA reached {reached} of {expected} modules")


def theirs(pipeline: Any, prompt: str, side: int, steps: int, seed: int = 0) -> Image.Image:
    """Make one picture with the stock pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        made: Image.Image = pipeline(
            prompt=prompt,
            width=side,
            height=side,
            num_inference_steps=steps,
            true_cfg_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
    return made
