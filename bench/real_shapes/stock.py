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

from bench.real_shapes import ours, shapes, weights
from bench.real_shapes.job import Case
from bench.real_shapes.ours import Lent
from bench.real_shapes.shapes import Architecture
from worker.engine.device import synchronize
from worker.engine.quantise import Precision
from worker.families.qwen_image.lightning import LIGHTNING
from worker.tasks.picture import PictureWish

ADAPTER = "lightning"


def text_encoder(architecture: Architecture, precision: Precision, device: torch.device) -> Any:
    """Return the text encoder as published: with its lm_head, quantised as ours is."""
    made = shapes.text_encoder(architecture)
    return weights.build(made, device, precision, role="text_encoder")


class Stock:
    """One warm stock pipeline, a job at a time; phases are timed by wrapping its parts."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        edit: bool,
        precision: Precision,
        device: torch.device,
        steps: int,
        lent: Lent | None = None,
    ) -> None:
        self._device = device
        self._edit = edit
        self._marks: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        transformer = shapes.transformer(architecture, edit=edit)
        weights.build(transformer, device, precision, every_linear=True)
        if lent is None:
            encoder = text_encoder(architecture, precision, device)
            lent = Lent(encoder, ours.vae(architecture, device))
        self.lent = lent
        parts = {
            "scheduler": FlowMatchEulerDiscreteScheduler.from_config(dict(LIGHTNING)),
            "vae": lent.vae,
            "text_encoder": lent.text_encoder,
            "tokenizer": shapes.tokenizer(),
            "transformer": transformer,
        }
        if edit:
            # module constants that the pipeline reads at call time
            edit_plus.CONDITION_IMAGE_SIZE = architecture.condition_area
            edit_plus.VAE_IMAGE_SIZE = architecture.small**2
            parts["processor"] = shapes.processor(architecture)
        self.pipeline = (QwenImageEditPlusPipeline if edit else QwenImagePipeline)(**parts)
        self.pipeline.set_progress_bar_config(disable=True)
        state = weights.lightning(transformer, steps, device)
        self.pipeline.load_lora_into_transformer(
            {f"transformer.{name}": tensor for name, tensor in state.items()},
            transformer=transformer,
            adapter_name=ADAPTER,
        )
        # wrapped so that a phase's time is known, at two syncs more a job than without
        pipe = self.pipeline
        pipe.encode_prompt = self._timed("text", pipe.encode_prompt)
        self._encode, self._decode = lent.vae.encode, lent.vae.decode
        transformer.register_forward_pre_hook(self._first_forward)

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    def _timed(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            start = self._now()
            result = work(*arguments, **named)
            self._spent[phase] = self._spent.get(phase, 0.0) + (self._now() - start) * 1000
            return result

        return wrapped

    def _first_forward(self, *_: Any) -> None:
        self._marks.setdefault("denoise", self._now())

    def _decoded(self, *arguments: Any, **named: Any) -> Any:
        now = self._now()
        self._spent["denoise"] = (
            self._spent.get("denoise", 0.0) + (now - self._marks.pop("denoise")) * 1000
        )
        return self._timed("decode", self._decode)(*arguments, **named)

    def _call(self, wishes: list[PictureWish], **more: Any) -> Any:
        first = wishes[0]
        vae = self.pipeline.vae
        vae.encode, vae.decode = self._timed("reference", self._encode), self._decoded
        try:
            return self.pipeline(
                prompt=[g.prompt for g in wishes],
                **({"image": list(first.references)} if self._edit else {}),
                width=first.width,
                height=first.height,
                num_inference_steps=first.steps,
                true_cfg_scale=1.0,
                generator=[torch.Generator("cpu").manual_seed(g.seed) for g in wishes],
                **more,
            ).images
        finally:
            # the VAE may be shared: leave it as it was
            del vae.encode, vae.decode

    def make_latents(self, wishes: list[PictureWish]) -> torch.Tensor:
        """Return the final latents of a batch."""
        made: torch.Tensor = self._call(wishes, output_type="latent")
        self._marks.clear()
        self._spent.clear()
        return made

    def job(self, case: Case, wishes: list[PictureWish]) -> dict[str, float]:
        """Make the pictures of a job, PNGs and all; return milliseconds by phase.

        The stock edit pipeline takes one prompt, so a batch of edits runs one after the other.
        """
        del case
        self._marks, self._spent = {}, {}
        groups = [[g] for g in wishes] if self._edit else [wishes]
        images = [image for group in groups for image in self._call(group)]
        start = time.perf_counter()
        for image in images:
            image.save(io.BytesIO(), "PNG")
        return self._spent | {"png": (time.perf_counter() - start) * 1000}
