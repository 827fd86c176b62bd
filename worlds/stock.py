"""An embedded checkpoint, open twice: by us and as the stock pipeline of a careful user."""

import warnings
from collections.abc import Mapping
from typing import Any, Final

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from worker.bundle.layout import name_adapter
from worker.families.clock import Clock
from worker.families.qwen_image.lightning import LIGHTNING
from worker.families.sharing import Sharing
from worker.seam import Unheard
from worker.tasks.picture import PictureWish
from worlds.prepared import CPU, folder_of, lightning_files, model, published

KINDS: Final[dict[str, Any]] = {
    "tiny-image": QwenImagePipeline,
    "tiny-edit": QwenImageEditPlusPipeline,
}
NO_LORAS: Final[Mapping[str, float]] = {}


class Pair:
    """One checkpoint, open twice: by us and as a stock pipeline."""

    def __init__(
        self,
        name: str,
        *,
        zero_cond_t: bool,
        pipeline: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        folder = folder_of(name)
        parts = published(name, dtype=dtype)
        kind = pipeline or KINDS[name]
        transformer = QwenImageTransformer2DModel.from_pretrained(
            folder / "transformer", zero_cond_t=zero_cond_t, dtype=dtype
        )
        assert transformer.config.zero_cond_t == zero_cond_t
        if parts.transformer.config.zero_cond_t != zero_cond_t:
            parts.transformer.zero_cond_t = zero_cond_t
            for block in parts.transformer.transformer_blocks:
                block.zero_cond_t = zero_cond_t
        self.stock: Any = kind.from_pretrained(folder, transformer=transformer, dtype=dtype)
        self.stock.set_progress_bar_config(disable=True)
        self.base = self.stock.scheduler
        self._patch_encoder()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of a second adapter next to the first
            for adapter, file in lightning_files(name).items():
                self.stock.load_lora_weights(file, adapter_name=adapter, use_safetensors=True)
        self.stock.disable_lora()
        self.ours = model(name, parts, kind.__name__)

    def _patch_encoder(self) -> None:
        """Fix a known bug of the stock pipeline: no mm_token_type_ids (diffusers #14194)."""
        encoder = self.stock.text_encoder
        forward = encoder.forward
        pad = self.stock.tokenizer.convert_tokens_to_ids("<|image_pad|>")

        def patched(**given: Any) -> Any:
            if given.get("pixel_values") is not None:
                given["mm_token_type_ids"] = (given["input_ids"] == pad).int()
            return forward(**given)

        encoder.forward = patched

    def stock_latents(
        self,
        generation: PictureWish,
        output: str = "latent",
        loras: Mapping[str, float] = NO_LORAS,
    ) -> Any:
        """Run the stock pipeline as a careful user would set it up.

        `loras` are the adapters that it has loaded, and their scales, next to Lightning.
        """
        if generation.lightning:
            self.stock.scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(LIGHTNING))
        else:
            self.stock.scheduler = self.base
        used = {name_adapter(generation.steps): 1.0} if generation.lightning else {}
        used |= loras
        if used:
            self.stock.enable_lora()
            self.stock.set_adapters(list(used), list(used.values()))
        else:
            self.stock.disable_lora()
        images: dict[str, Any] = {}
        if generation.references:
            # the first edition takes one picture; given a list, it forgets to resize it
            first = isinstance(self.stock, QwenImageEditPipeline)
            images["image"] = generation.references[0] if first else list(generation.references)
        return self.stock(
            **images,
            prompt=generation.prompt,
            negative_prompt=generation.negative_prompt,
            true_cfg_scale=generation.true_cfg_scale,
            width=generation.width,
            height=generation.height,
            num_inference_steps=generation.steps,
            generator=torch.Generator("cpu").manual_seed(generation.seed),
            output_type=output,
        ).images

    def our_latents(self, *generations: PictureWish) -> torch.Tensor:
        """Run our sampler on a batch."""
        return self.ours.make_latents(
            list(generations), Sharing([Unheard()] * len(generations), drops=True), Clock(CPU)
        )
