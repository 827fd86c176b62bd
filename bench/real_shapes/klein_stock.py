"""What a careful user of diffusers sets up for FLUX.2 klein: the stock pipeline, same precision."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

from bench.real_shapes import klein, weights
from bench.real_shapes.klein import Klein
from bench.real_shapes.stock import Stock
from worker.engine.quantise import Precision
from worker.families.flux2.components import Flux2Parts
from worker.families.flux2.modules import build_text_encoder, build_vae, find_language_model
from worker.families.flux2.recipe import RECIPE
from worker.tasks.picture import PictureWish


def complete_text_encoder(size: Klein, parts: Flux2Parts, precision: Precision) -> Any:
    """Return the published text encoder over the layers of ours, which runs three quarters of it.

    The last layers and norm are made; the head is the table of embeddings.
    """
    made = build_text_encoder(size.configs["text_encoder"])
    theirs, model = find_language_model(parts.text_encoder), find_language_model(made)
    norm = model.norm
    weights.share_leaves(model, theirs)
    model.norm = norm  # ours has none
    made.lm_head.weight = theirs.embed_tokens.weight
    return weights.build(made, parts.device, precision, role="text_encoder", recipe=RECIPE)


def make_klein_stock(size: Klein, parts: Flux2Parts, precision: Precision) -> Stock:
    """Return the stock pipeline with the weights of `parts`, ours, so that both fit on one device.

    Its transformer is the very one of ours, run by diffusers.
    """
    device = parts.device
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(klein.read_scheduler()),
        # its own, since a pipeline's is wrapped
        vae=weights.build(
            build_vae(size.configs["vae"]), device, "bf16", role="vae", recipe=RECIPE
        ),
        text_encoder=complete_text_encoder(size, parts, precision),
        tokenizer=parts.tokenizer,
        transformer=parts.transformer,
        is_distilled=True,
    )

    def draw(wishes: list[PictureWish], **more: Any) -> Any:
        (wish,) = wishes
        return pipeline(
            prompt=wish.prompt,
            image=list(wish.references) or None,
            width=wish.width,
            height=wish.height,
            num_inference_steps=wish.steps,
            guidance_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(wish.seed),
            text_encoder_out_layers=size.out_layers,
            **more,
        ).images

    def draw_latents(wishes: list[PictureWish]) -> torch.Tensor:
        found: list[torch.Tensor] = []

        def keep(_pipe: Any, _step: int, _t: Any, given: dict[str, Any]) -> dict[str, Any]:
            found.append(given["latents"])
            return given

        # those that are packed and normalised, as ours are
        draw(wishes, output_type="latent", callback_on_step_end=keep)
        return found[-1]

    return Stock(pipeline, draw, draw_latents, device, alone=True)
