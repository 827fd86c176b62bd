"""What a careful user of diffusers sets up: the stock pipeline, same precision, LoRA as adapter."""

import io
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from torch import nn

from bench.real_shapes import measure, ours, shapes, weights
from bench.real_shapes.job import Case
from bench.real_shapes.measure import Spent
from bench.real_shapes.shapes import Architecture
from worker.engine.device import reset_peak, synchronize
from worker.engine.lora import LoraLinear
from worker.engine.quantise import Precision
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.lightning import LIGHTNING
from worker.tasks.picture import PictureWish

ADAPTER = "lightning"


class _Head(nn.Module):
    """Hold an lm_head of random weights for a text encoder that has none."""

    def __init__(self, encoder: Any, device: torch.device) -> None:
        super().__init__()
        config = encoder.config.text_config
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device="meta")
        weights.fill_plain(self, device)


def make_transformer(
    architecture: Architecture,
    parts: Components,
    *,
    edit: bool,
    precision: Precision,
) -> Any:
    """Return the published transformer over the Linears of ours, which stay without LoRA in it.

    Only the modulation of the blocks is made: the weights that ours has as rows.
    """
    transformer = shapes.transformer(architecture, edit=edit)
    found = dict(parts.transformer.named_modules())
    for path, module in list(transformer.named_modules()):
        own = found.get(path)
        if next(module.children(), None) is not None or own is None:
            continue
        own = own.base if isinstance(own, LoraLinear) else own
        parent, _, leaf = path.rpartition(".")
        setattr(transformer.get_submodule(parent), leaf, own)
    return weights.build(transformer, parts.device, precision, every_linear=True)


class Stock:
    """One warm stock pipeline, a job at a time; phases are timed by wrapping its parts.

    `draw` makes the pictures of wishes with it, `draw_latents` what they are decoded from. Where it
    is `alone`, a batch is made one by one.
    """

    def __init__(
        self,
        pipeline: Any,
        draw: Callable[[list[PictureWish]], list[Any]],
        draw_latents: Callable[[list[PictureWish]], torch.Tensor],
        device: torch.device,
        *,
        alone: bool,
    ) -> None:
        self.pipeline = pipeline
        self._draw, self._draw_latents = draw, draw_latents
        self._device, self._alone = device, alone
        self._marks: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self._peaks: dict[str, int] = {}
        pipeline.set_progress_bar_config(disable=True)
        # wrapped so that a phase's time is known, at two syncs more a job than without
        pipeline.encode_prompt = self._timed("text", pipeline.encode_prompt)
        vae = pipeline.vae
        vae.encode = self._timed("reference", vae.encode)
        self._decode, vae.decode = vae.decode, self._decoded
        pipeline.transformer.register_forward_pre_hook(self._first_forward)

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    def _timed(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            start = self._now()
            reset_peak(self._device)
            result = work(*arguments, **named)
            self._end(phase, start)
            return result

        return wrapped

    def _end(self, phase: str, start: float) -> None:
        self._spent[phase] = self._spent.get(phase, 0.0) + (self._now() - start) * 1000
        self._peaks[phase] = max(self._peaks.get(phase, 0), measure.peak(self._device))

    def _first_forward(self, *_: Any) -> None:
        if "denoise" not in self._marks:
            self._marks["denoise"] = self._now()
            reset_peak(self._device)

    def _decoded(self, *arguments: Any, **named: Any) -> Any:
        self._end("denoise", self._marks.pop("denoise"))
        return self._timed("decode", self._decode)(*arguments, **named)

    def make_latents(self, wishes: list[PictureWish]) -> torch.Tensor:
        """Return the final latents of a batch."""
        made = self._draw_latents(wishes)
        self._marks.clear()
        return made

    def job(self, case: Case, wishes: list[PictureWish]) -> Spent:
        """Make the pictures of a job, PNGs and all; return what each phase took."""
        del case
        self._marks, self._spent, self._peaks = {}, {}, {}
        groups = [[g] for g in wishes] if self._alone else [wishes]
        images = [image for group in groups for image in self._draw(group)]
        start = time.perf_counter()
        for image in images:
            image.save(io.BytesIO(), "PNG")
        return Spent(self._spent | {"png": (time.perf_counter() - start) * 1000}, self._peaks)


def make_stock(
    architecture: Architecture,
    parts: Components,
    *,
    edit: bool,
    precision: Precision,
    steps: int,
) -> Stock:
    """Return the stock pipeline with the weights of `parts`, ours, so that both fit on one device.

    That of edits takes one prompt, so a batch of them runs one after the other.
    """
    device = parts.device
    transformer = make_transformer(architecture, parts, edit=edit, precision=precision)
    # As published: with the lm_head that ours leaves out.
    encoder, head = parts.text_encoder, _Head(parts.text_encoder, device).lm_head
    given = {
        "scheduler": FlowMatchEulerDiscreteScheduler.from_config(dict(LIGHTNING)),
        "vae": ours.vae(architecture, device),
        "text_encoder": encoder,
        "tokenizer": parts.tokenizer,
        "transformer": transformer,
    }
    if edit:
        # module constants that the pipeline reads at call time
        edit_plus.CONDITION_IMAGE_SIZE = architecture.condition_area
        edit_plus.VAE_IMAGE_SIZE = architecture.small**2
        given["processor"] = parts.processor
    pipeline: Any = (QwenImageEditPlusPipeline if edit else QwenImagePipeline)(**given)
    state = weights.lightning(transformer, steps, device)
    pipeline.load_lora_into_transformer(
        {f"transformer.{name}": tensor for name, tensor in state.items()},
        transformer=transformer,
        adapter_name=ADAPTER,
    )

    def draw(wishes: list[PictureWish], **more: Any) -> Any:
        first = wishes[0]
        before, encoder.lm_head = encoder.lm_head, head
        try:
            return pipeline(
                prompt=[g.prompt for g in wishes],
                **({"image": list(first.references)} if edit else {}),
                width=first.width,
                height=first.height,
                num_inference_steps=first.steps,
                true_cfg_scale=1.0,
                generator=[torch.Generator("cpu").manual_seed(g.seed) for g in wishes],
                **more,
            ).images
        finally:
            encoder.lm_head = before

    def draw_latents(wishes: list[PictureWish]) -> torch.Tensor:
        made: torch.Tensor = draw(wishes, output_type="latent")
        return made

    return Stock(pipeline, draw, draw_latents, device, alone=edit)
