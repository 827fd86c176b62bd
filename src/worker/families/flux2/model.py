"""FLUX.2: text-to-image, edits with weighed references, repainting, in the order it runs."""

import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from worker.bundle.kept_graphs import KeptGraphs
from worker.bundle.layout import Bundle
from worker.engine import device as devices
from worker.engine.begin import Beginning
from worker.engine.cache import TensorCache
from worker.engine.condition import denoise_from
from worker.engine.guests import GuestAdapters
from worker.engine.sampler import OnStep, sample_noise
from worker.engine.schedule import make_schedule
from worker.errors import BadPicture
from worker.families.adapting import WishedLoras
from worker.families.ahead import Resizing, gather_pictures, read_ahead
from worker.families.clock import Clock
from worker.families.drawing import (
    Encode,
    decode_picture,
    denoise_rows,
    encode_sources,
    list_texts,
    make_encode,
    make_pictures,
    make_warm_ups,
)
from worker.families.flux2.compiling import compile_norms, compile_rest
from worker.families.flux2.components import Flux2Parts
from worker.families.flux2.denoising import Conditions
from worker.families.flux2.forward import PicturePlace
from worker.families.flux2.framing import choose_framing, fit_reference
from worker.families.flux2.lora_names import list_joined
from worker.families.flux2.models import DEV
from worker.families.flux2.opening import open_bundle
from worker.families.flux2.prompts import DEV_TEMPLATE, KLEIN_TEMPLATE, TextEncoder
from worker.families.flux2.recipe import RECIPE
from worker.families.flux2.shares import make_shares
from worker.families.flux2.shift import compute_mu
from worker.families.flux2.vae import LatentVae
from worker.families.flux2.working import TOKENS
from worker.families.key import PictureKey
from worker.families.masking import make_masks
from worker.families.memory import Phases, check_freed
from worker.families.opener import Opener
from worker.families.pictures import describe
from worker.families.previews import Previews
from worker.families.references import ReferencePictures
from worker.families.sharing import Sharing
from worker.seam import Control, Outcome, Served
from worker.tasks.picture import PictureWish, offer_of

# Prompt embeddings are 8 MB (512 tokens x 7680 x bf16; dev's 16), reference latents 1 MB each.
CACHE_BYTES: Final = 96 << 20
# The place of the first reference, and from one to the next (diffusers' `_prepare_image_ids`).
PLACE: Final = 10


class Flux2:
    """One warm FLUX.2 model."""

    def __init__(
        self, components: Flux2Parts, served: Served, pipeline: str, kept: KeptGraphs | None = None
    ) -> None:
        self.served = served
        self._kept = kept
        self._area = offer_of(served).area
        self._parts = components
        self._prompts = TextEncoder(
            components.tokenizer,
            components.text_encoder,
            DEV_TEMPLATE if pipeline == DEV else KLEIN_TEMPLATE,
            components.device,
        )
        self._vae = LatentVae(components.vae)
        self._cache = TensorCache(CACHE_BYTES)
        self._loras = WishedLoras(
            components.adapters,
            GuestAdapters(components.transformer, components.adapters, {}),
            components.device,
            components.dtype,
            joined=list_joined(components.transformer.config),
        )
        self._reader = self._loras.reader
        cache, loras = self._cache, self._loras

        def forget() -> None:
            cache.clear()
            loras.forget()

        # not of this model: a cycle would keep its modules until they are collected
        self._phases = Phases(forget)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._parts.device

    def make_key(self, wish: PictureWish) -> PictureKey:
        """Return what other pictures must have too to share forwards with this one."""
        framings = [choose_framing(image, wish, self._area) for image in wish.references]
        return PictureKey(
            wish.task,
            wish.width,
            wish.height,
            wish.steps,
            wish.lightning,
            wish.true_cfg_scale,
            (TOKENS,) * len(list_texts(wish)),
            tuple((framing.scaled, framing.cropped) for framing in framings),
            tuple((lora.identity, lora.scale) for lora in wish.loras),
            begins=(wish.strength, wish.mask is not None),
            weights=wish.reference_weights,
            guidance=wish.guidance,
        )

    def read_ahead(self, wish: PictureWish) -> PictureWish:
        """Return a wish with its pictures resized and its LoRAs read; raises as LoraReader.read."""
        return read_ahead(wish, self._list_resizings(wish), self._reader)

    def _list_resizings(self, wish: PictureWish) -> Iterator[Resizing]:
        """Yield the pictures of a wish with the sizes at which the VAE has them."""
        for image in wish.references:
            yield image, choose_framing(image, wish, self._area).scaled
        if wish.source is not None:
            yield wish.source, (wish.width, wish.height)

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> Iterator[Outcome]:
        """Make pictures that have equal keys, and give each as soon as it is decoded.

        A phase that runs out of memory runs again with less, but for the steps of several pictures.
        Raises as `make_pictures`.
        """
        return make_pictures(self, wishes, controls)

    def warm(self) -> None:
        """Make pictures of the kinds that jobs will request, and compile what others will need.

        Raises as `make`.
        """
        with devices.translate_errors():
            compile_norms(self._parts.vae)
        make_warm_ups(self, self.served)
        with devices.translate_errors():
            compile_rest(self._parts)
        if self._kept is not None:
            self._kept.settle(is_compiled=self._parts.is_compiled)

    def release(self) -> None:
        """Drop the modules, free their memory and check it; the model cannot be used afterwards.

        A text encoder and VAE that another open model shares stay. Raises DeviceLost when
        something still refers to the transformer, which no other model uses.
        """
        self._cache.clear()
        transformer = weakref.ref(self._parts.transformer)
        del self._parts, self._prompts, self._vae, self._loras, self._phases
        check_freed(transformer)

    def make_latents(self, wishes: Sequence[PictureWish], sharing: Sharing, clock: Clock) -> Tensor:
        """Return the final packed latents [rows, tokens, channels] of wishes with equal keys.

        `sharing` says in which row a wish is, and which have none: those that ended.
        """
        first, parts = wishes[0], self._parts
        parts.forward.is_eager = bool(first.loras)
        loras = tuple(lora.identity for lora in first.loras)
        self._phases.run("loras", loras, lambda _: self._loras.use(None, first.loras))
        prompt, negative = self._phases.run("text", 0, lambda _: self._embed_all(wishes, clock))
        sharing.report("text", 1, 1)

        pictures = gather_pictures(wishes)
        encode = make_encode(self._vae, self._cache, pictures, self._phases, clock)
        references, places, counts = self._encode_references(wishes, pictures, encode)
        sources = encode_sources(wishes, encode)
        if references is not None or sources is not None:
            sharing.report("reference", 1, 1)
        height, width = self._measure(first)
        shape = (self._vae.channels, height, width)
        drawn = sample_noise([wish.seed for wish in wishes], shape, parts.dtype)
        noise = drawn.flatten(2).transpose(1, 2).contiguous()
        noise = noise.to(parts.device, non_blocking=True)
        beginning = None
        if sources is not None:
            masks = make_masks(wishes, self._vae.channels // 4, 2 * height, 2 * width, parts.device)
            beginning = Beginning(sources, noise, masks)
        conditions = Conditions(
            parts.forward,
            prompt,
            [(0, height, width), *places],
            negative,
            first.true_cfg_scale,
            references,
            self._make_guidance(wishes),
            self._make_shares(first, [TOKENS + height * width, *counts]),
        )

        previews = Previews(wishes, sharing, self._vae)

        def run_steps(on_step: OnStep) -> Tensor:
            steps = self._make_steps(first)
            return denoise_from(
                conditions,
                steps,
                noise,
                beginning=beginning,
                on_step=on_step,
                watch=previews.watch,
            )

        kind = (first.width * first.height, len(places))
        return denoise_rows(len(wishes), sharing, self._phases, clock, kind, run_steps)

    def decode(self, latents: Tensor, wish: PictureWish, clock: Clock) -> Image.Image | BadPicture:
        """Return the picture of one wish's latents, or why it is none."""
        return decode_picture(self._vae, latents, wish, self._phases, clock)

    def list_warnings(self, wish: PictureWish) -> tuple[str, ...]:
        """Return a warning for each text that was used and cut."""
        used = {name: self._prompts.count_used(text) for name, text in list_texts(wish).items()}
        return tuple(
            f"the {name} was cut at {count} tokens"
            for name, count in used.items()
            if count is not None
        )

    def find(self, wish: PictureWish) -> dict[str, Any]:
        """Return a wish's LoRAs as they were used, and how much noise it began with, if any."""
        found: dict[str, Any] = {"loras": self._loras.count(wish.loras)}
        if wish.source is not None:
            found["start_noise"] = round(float(self._make_steps(wish).sigmas[0]), 4)
        return found

    def _measure(self, wish: PictureWish) -> tuple[int, int]:
        """Return the (height, width) of a picture in tokens."""
        side = 2 * self._vae.scale
        return wish.height // side, wish.width // side

    def _make_steps(self, wish: PictureWish) -> Any:
        """Return the scheduler of a picture, from where it begins."""
        height, width = self._measure(wish)
        tokens = height * width
        return make_schedule(
            self._parts.scheduler,
            wish.steps,
            tokens,
            mu=compute_mu(tokens, wish.steps),
            strength=wish.strength or 1.0,
        )

    def _embed_all(
        self, wishes: Sequence[PictureWish], clock: Clock
    ) -> tuple[Tensor, Tensor | None]:
        """Return the prompts of wishes and, where CFG runs, their negative prompts."""
        prompt = torch.cat([self._embed(wish.prompt, clock) for wish in wishes])
        if "negative prompt" not in list_texts(wishes[0]):
            return prompt, None
        return prompt, torch.cat([self._embed(w.negative_prompt or "", clock) for w in wishes])

    def _embed(self, text: str, clock: Clock) -> Tensor:
        with clock.measure_phase("text"):
            key: Hashable = ("text", text)
            embeds = self._cache.get(key, lambda: self._prompts.encode(text))
        return embeds.to(self._parts.device, self._parts.dtype)

    def _encode_references(
        self, wishes: Sequence[PictureWish], pictures: ReferencePictures, encode: Encode
    ) -> tuple[Tensor | None, list[PicturePlace], list[int]]:
        """Return the packed latents [batch, tokens, channels] of all references that count.

        With their places and how many tokens each has. One of weight 0 is left out, and the others
        stay in their places.
        """
        first, side = wishes[0], 2 * self._vae.scale
        counted = [
            (number, choose_framing(image, first, self._area))
            for number, image in enumerate(first.references)
            if not first.reference_weights or first.reference_weights[number] > 0
        ]
        if not counted:
            return None, [], []
        # all are kept until each is encoded: a picture is known by its object
        framed = [
            [
                (fit_reference(w.references[number], framing, pictures), framing)
                for number, framing in counted
            ]
            for w in wishes
        ]
        rows = [
            torch.cat([encode(image, framing.cropped) for image, framing in row], dim=1)
            for row in framed
        ]
        places = [
            (PLACE * (number + 1), framing.cropped[1] // side, framing.cropped[0] // side)
            for number, framing in counted
        ]
        return torch.cat(rows), places, [height * width for _, height, width in places]

    def _make_shares(self, wish: PictureWish, tokens: Sequence[int]) -> Tensor | None:
        """Return what the weights of references add to the logits of the joint sequence."""
        weights = (1.0, *(weight for weight in wish.reference_weights if weight > 0))
        if len(weights) != len(tokens):  # none are given
            return None
        parts = self._parts
        channels = parts.transformer.config.attention_head_dim
        shares = make_shares(weights, tokens, channels, parts.dtype)
        return None if shares is None else shares.to(parts.device, non_blocking=True)

    def _make_guidance(self, wishes: Sequence[PictureWish]) -> Tensor | None:
        """Return the embedded guidance, float32 [batch], None where there is none."""
        if wishes[0].guidance is None:
            return None
        values = torch.full((len(wishes),), wishes[0].guidance)
        return values.to(self._parts.device, non_blocking=True)


def build(parts: Flux2Parts, served: Served, bundle: Bundle, kept: KeptGraphs | None) -> Flux2:
    """Return the model of a bundle's open parts."""
    return Flux2(parts, served, bundle.pipeline, kept)


OPENER: Final = Opener(RECIPE, describe, open_bundle, build)
make_ready = OPENER.make_ready
prepare = OPENER.prepare
