"""Qwen-Image 1.x: text-to-image and instruction edits with references, in the order it runs."""

import math
import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from worker.bundle.kept_graphs import KeptGraphs
from worker.bundle.layout import Bundle, name_adapter
from worker.engine import device as devices
from worker.engine.begin import Beginning
from worker.engine.cache import TensorCache
from worker.engine.guests import GuestAdapters
from worker.engine.sampler import OnStep, make_noise
from worker.engine.schedule import make_schedule
from worker.errors import BadPicture, LoraNotApplied
from worker.families.adapting import WishedLoras
from worker.families.ahead import Resizing, gather_pictures, read_ahead
from worker.families.clock import Clock
from worker.families.drawing import (
    Encode,
    decode_picture,
    denoise_rows,
    encode_sources,
    has_same_aspect,
    list_texts,
    make_encode,
    make_pictures,
    make_warm_ups,
)
from worker.families.key import PictureKey
from worker.families.masking import make_masks
from worker.families.memory import Phases, check_freed
from worker.families.opener import Opener
from worker.families.pictures import describe
from worker.families.previews import Previews
from worker.families.qwen_image import prompts
from worker.families.qwen_image.compiling import compile_rest
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.denoising import Conditioning, LatentShape, denoise, stack
from worker.families.qwen_image.lightning import make_lightning_schedule
from worker.families.qwen_image.opening import open_bundle
from worker.families.qwen_image.prompts import PromptEncoder, Template
from worker.families.qwen_image.recipe import RECIPE
from worker.families.qwen_image.vae import Vae
from worker.families.qwen_image.working import MAX_TOKENS
from worker.families.references import ReferencePictures
from worker.families.sharing import Sharing
from worker.seam import Control, Outcome, Served
from worker.tasks.picture import PictureWish, offer_of

FIRST_EDIT: Final = "QwenImageEditPipeline"
# by diffusers' name of the pipeline class that the checkpoint was published for
TEMPLATES: Final[dict[str, Template]] = {
    "QwenImagePipeline": prompts.TEXT_TEMPLATE,
    FIRST_EDIT: prompts.EDIT_TEMPLATE,
    "QwenImageEditPlusPipeline": prompts.EDIT_PLUS_TEMPLATE,
}
# pixels of a reference as the text encoder sees it (CONDITION_IMAGE_SIZE of diffusers' EditPlus)
CONDITION_AREA: Final = 384 * 384
# prompt embeddings are 7 MB at most (1024 tokens x 3584 x bf16), reference latents 0.5 MB each
CACHE_BYTES: Final = 64 << 20


def fit_area(area: int, ratio: float) -> tuple[int, int]:
    """Return (width, height) of about `area` pixels at an aspect, in multiples of 32.

    The formula of diffusers' calculate_dimensions, at least one multiple each way.
    """
    width = math.sqrt(area * ratio)
    height = width / ratio
    return max(32, round(width / 32) * 32), max(32, round(height / 32) * 32)


class QwenImage:
    """One warm Qwen-Image model."""

    def __init__(
        self,
        components: Components,
        served: Served,
        pipeline: str,
        *,
        condition_area: int = CONDITION_AREA,
        kept: KeptGraphs | None = None,
    ) -> None:
        self.served = served
        self._kept = kept
        self._area = offer_of(served).area
        self._parts = components
        self._pipeline = pipeline
        self._condition_area = condition_area
        self._prompts = PromptEncoder(
            components.tokenizer,
            components.processor,
            components.text_encoder,
            components.device,
        )
        self._vae = Vae(components.vae)
        self._cache = TensorCache(CACHE_BYTES)
        self._loras = WishedLoras(
            components.adapters,
            GuestAdapters(
                components.transformer, components.adapters, components.modulation.outside
            ),
            components.device,
            components.dtype,
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
        template, shown = TEMPLATES[self._pipeline], len(wish.references)
        return PictureKey(
            wish.task,
            wish.width,
            wish.height,
            wish.steps,
            wish.lightning,
            wish.true_cfg_scale,
            tuple(
                self._prompts.count_tokens(text, template, shown)
                for text in list_texts(wish).values()
            ),
            tuple(
                (self.choose_reference_size(image, wish), self._choose_shown_size(image))
                for image in wish.references
            ),
            tuple((lora.identity, lora.scale) for lora in wish.loras),
            begins=(wish.strength, wish.mask is not None),
        )

    def read_ahead(self, wish: PictureWish) -> PictureWish:
        """Return a wish with its pictures resized and its LoRAs read; raises as LoraReader.read."""
        return read_ahead(wish, self._list_resizings(wish), self._reader)

    def _list_resizings(self, wish: PictureWish) -> Iterator[Resizing]:
        """Yield the pictures of a wish with the sizes at which its prompt and the VAE have them."""
        for image in wish.references:
            yield image, self._choose_shown_size(image)
            yield image, self.choose_reference_size(image, wish)
        if wish.source is not None:
            yield wish.source, (wish.width, wish.height)

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> Iterator[Outcome]:
        """Make pictures that have equal keys, and give each as soon as it is decoded.

        A phase that runs out of memory runs again with less, but for the steps of several pictures.
        Raises as `make_pictures`, and LoraNotApplied.
        """
        return make_pictures(self, wishes, controls)

    def warm(self) -> None:
        """Make pictures of the kinds that jobs will request, and compile what others will need.

        Raises as `make`.
        """
        make_warm_ups(self, self.served)
        with devices.translate_errors():
            compile_rest(self._parts)
        if self._kept is not None:
            self._kept.settle(is_compiled=self._parts.forward.is_compiled)

    def release(self) -> None:
        """Drop the modules, free their memory and check it; the model cannot be used afterwards.

        A text encoder and VAE that another open model shares stay. Raises DeviceLost when
        something still refers to the transformer, which no other model uses.
        """
        self._cache.clear()
        transformer = weakref.ref(self._parts.transformer)
        del self._parts, self._prompts, self._vae, self._loras, self._phases
        check_freed(transformer)

    def choose_reference_size(self, image: Image.Image, wish: PictureWish) -> tuple[int, int]:
        """Return the (width, height) at which a reference is encoded.

        The output's own where the aspects agree; else the reference's aspect at the model's area,
        as the stock pipeline does.
        """
        if has_same_aspect(image, wish):
            return wish.width, wish.height
        return fit_area(self._area, image.width / image.height)

    def make_latents(self, wishes: Sequence[PictureWish], sharing: Sharing, clock: Clock) -> Tensor:
        """Return the final packed latents [rows, tokens, channels] of wishes with equal keys.

        `sharing` says in which row a wish is, and which have none: those that ended.
        """
        first, parts = wishes[0], self._parts
        name = name_adapter(first.steps) if first.lightning else None
        if name is not None and name not in parts.adapters.attached:
            raise LoraNotApplied(f"no Lightning LoRA for {first.steps} steps is loaded")
        parts.forward.is_eager = bool(first.loras)
        kind = tuple(lora.identity for lora in first.loras)
        self._phases.run("loras", kind, lambda _: self._loras.use(name, first.loras))

        pictures = gather_pictures(wishes)
        prompt, negative = self._phases.run(
            "text", len(first.references), lambda _: self._embed_all(wishes, pictures, clock)
        )
        sharing.report("text", 1, 1)

        encode = make_encode(self._vae, self._cache, pictures, self._phases, clock)
        references, shapes = self._encode_references(wishes, encode)
        sources = encode_sources(wishes, encode)
        if references is not None or sources is not None:
            sharing.report("reference", 1, 1)
        height, width = self._measure_latents(first)
        noise = make_noise(
            [w.seed for w in wishes], self._vae.channels, height, width, parts.dtype
        ).to(parts.device, non_blocking=True)
        beginning = None
        if sources is not None:
            repainted = make_masks(wishes, self._vae.channels, height, width, parts.device)
            beginning = Beginning(sources, noise, repainted)

        previews = Previews(wishes, sharing, self._vae)

        def run_steps(on_step: OnStep) -> Tensor:
            return denoise(
                parts.forward,
                parts.modulation,
                self._make_steps(first),
                noise,
                prompt,
                [(1, height // 2, width // 2), *shapes],
                beginning=beginning,
                negative=negative,
                true_cfg_scale=first.true_cfg_scale,
                references=references,
                on_step=on_step,
                watch=previews.watch,
            )

        kind = (first.width * first.height, len(shapes))
        return denoise_rows(len(wishes), sharing, self._phases, clock, kind, run_steps)

    def _measure_latents(self, wish: PictureWish) -> tuple[int, int]:
        """Return the (height, width) of a picture's latents."""
        return wish.height // self._vae.scale, wish.width // self._vae.scale

    def _make_steps(self, wish: PictureWish) -> Any:
        """Return the scheduler of a picture, from where it begins."""
        height, width = self._measure_latents(wish)
        tokens, strength = height * width // 4, wish.strength or 1.0
        if wish.lightning:
            return make_lightning_schedule(wish.steps, tokens, strength)
        return make_schedule(self._parts.scheduler, wish.steps, tokens, strength=strength)

    def find(self, wish: PictureWish) -> dict[str, Any]:
        """Return a wish's LoRAs as they were used, and how much noise it began with, if any."""
        found: dict[str, Any] = {"loras": self._loras.count(wish.loras)}
        if wish.source is not None:
            found["start_noise"] = round(float(self._make_steps(wish).sigmas[0]), 4)
        return found

    def decode(self, latents: Tensor, wish: PictureWish, clock: Clock) -> Image.Image | BadPicture:
        """Return the picture of one wish's latents, or why it is none."""
        return decode_picture(self._vae, latents, wish, self._phases, clock)

    def list_warnings(self, wish: PictureWish) -> tuple[str, ...]:
        """Return a warning for each text that was used and cut."""
        return tuple(
            f"the {name} was cut at {MAX_TOKENS} tokens"
            for name, text in list_texts(wish).items()
            if self._prompts.is_cut(text, references=bool(wish.references))
        )

    def _embed_all(
        self, wishes: Sequence[PictureWish], pictures: ReferencePictures, clock: Clock
    ) -> tuple[Conditioning, Conditioning | None]:
        """Return the prompts of wishes and, where CFG runs, their negative prompts."""
        embedded = [
            [self._embed(wish, text, pictures, clock) for text in list_texts(wish).values()]
            for wish in wishes
        ]
        prompt, *negative = [stack(texts) for texts in zip(*embedded, strict=True)]
        return prompt, next(iter(negative), None)

    def _embed(
        self, wish: PictureWish, text: str, pictures: ReferencePictures, clock: Clock
    ) -> Conditioning:
        def encode() -> Tensor:
            shown = [
                pictures.resize(image, self._choose_shown_size(image)) for image in wish.references
            ]
            return self._prompts.encode(text, TEMPLATES[self._pipeline], shown)

        with clock.measure_phase("text"):
            key: Hashable = ("text", text, tuple(map(pictures.digest, wish.references)))
            embeds = self._cache.get(key, encode)
        return Conditioning(embeds.to(self._parts.device, self._parts.dtype))

    def _choose_shown_size(self, image: Image.Image) -> tuple[int, int]:
        """Return the (width, height) at which the text encoder sees a reference."""
        area = self._area if self._pipeline == FIRST_EDIT else self._condition_area
        return fit_area(area, image.width / image.height)

    def _encode_references(
        self, wishes: Sequence[PictureWish], encode: Encode
    ) -> tuple[Tensor | None, list[LatentShape]]:
        """Return all references' packed latents [batch, tokens, channels] and their shapes."""
        first = wishes[0]
        if not first.references:
            return None, []
        sizes = [self.choose_reference_size(image, first) for image in first.references]
        rows = []
        for wish in wishes:
            pairs = zip(wish.references, sizes, strict=True)
            encoded = [encode(image, size) for image, size in pairs]
            rows.append(torch.cat(encoded, dim=1))
        unit = self._vae.scale * 2
        return torch.cat(rows), [(1, height // unit, width // unit) for width, height in sizes]


def build(parts: Components, served: Served, bundle: Bundle, kept: KeptGraphs | None) -> QwenImage:
    """Return the model of a bundle's open parts."""
    area = bundle.facts.get("condition_area", CONDITION_AREA)
    return QwenImage(parts, served, bundle.pipeline, condition_area=area, kept=kept)


OPENER: Final = Opener(RECIPE, describe, open_bundle, build)
make_ready = OPENER.make_ready
prepare = OPENER.prepare
