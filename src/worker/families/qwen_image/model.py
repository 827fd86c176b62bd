"""Qwen-Image 1.x: text-to-image and instruction edits with references, in the order it runs."""

import hashlib
import math
import time
import weakref
from collections.abc import Container, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from worker import log
from worker.bundle import repair
from worker.bundle.layout import Damaged, name_adapter
from worker.bundle.obtain import Obtained, obtain
from worker.bundle.open import make_shared
from worker.driver import Gpu
from worker.engine import device as devices
from worker.engine.cache import TensorCache
from worker.engine.decoded import make_picture
from worker.engine.sampler import make_noise
from worker.engine.schedule import make_schedule
from worker.errors import CudaOutOfMemory, DeviceLost, LoraNotApplied, UnfitHost
from worker.families import catalogue
from worker.families.describe import describe
from worker.families.qwen_image import prompts
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.denoising import Conditioning, LatentShape, denoise, stack
from worker.families.qwen_image.lightning import lightning
from worker.families.qwen_image.opening import open_bundle
from worker.families.qwen_image.prompts import PromptEncoder, Template
from worker.families.qwen_image.recipe import RECIPE
from worker.families.qwen_image.vae import Vae
from worker.media.picture import Picture
from worker.seam import Control, Made, Openable, Phase, Served, Unheard
from worker.settings import Settings
from worker.tasks.picture import PictureWish, offer_of, warm_up
from worker.weights.spec import ModelSpec

FIRST_EDIT: Final = "QwenImageEditPipeline"
# by diffusers' name of the pipeline class that the checkpoint was published for
TEMPLATES: Final[dict[str, Template]] = {
    "QwenImagePipeline": prompts.TEXT_TO_IMAGE,
    FIRST_EDIT: prompts.EDIT,
    "QwenImageEditPlusPipeline": prompts.EDIT_PLUS,
}
# pixels of a reference as the text encoder sees it (CONDITION_IMAGE_SIZE of diffusers' EditPlus)
CONDITION_AREA: Final = 384 * 384
# prompt embeddings are 7 MB at most (1024 tokens x 3584 x bf16), reference latents 0.5 MB each
CACHE_BYTES: Final = 64 << 20
# an output whose aspect is this close to a reference's (natural logarithm of the ratio) shares its
# size, so that an edit neither shifts nor zooms; rounding to 16 pixels alone moves 1024 by 0.016
SAME_ASPECT: Final = 0.03
# text encoders and VAEs that several open models have in common
_SHARED: Final = make_shared()


def sized(area: int, ratio: float) -> tuple[int, int]:
    """Return (width, height) of about `area` pixels at an aspect, in multiples of 32.

    The formula of diffusers' calculate_dimensions, at least one multiple each way.
    """
    width = math.sqrt(area * ratio)
    height = width / ratio
    return max(32, round(width / 32) * 32), max(32, round(height / 32) * 32)


@dataclass(slots=True)
class _Clock:
    """Milliseconds by phase; a phase ends when the device has finished it."""

    device: torch.device
    spent: dict[Phase, float]

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            devices.synchronize(self.device)
            elapsed = (time.perf_counter() - start) * 1000
            self.spent[name] = self.spent.get(name, 0.0) + elapsed


def _digest(images: Sequence[Image.Image]) -> str:
    """Identify references by their pixels."""
    digest = hashlib.blake2b()
    for image in images:
        digest.update(f"{image.mode}{image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


class QwenImage:
    """One warm Qwen-Image model."""

    def __init__(
        self,
        components: Components,
        served: Served,
        pipeline: str,
        *,
        condition_area: int = CONDITION_AREA,
    ) -> None:
        self.served = served
        self._area = offer_of(served).area
        self._parts = components
        self._pipeline = pipeline
        self._condition_area = condition_area
        self._prompts = PromptEncoder(
            components.tokenizer, components.processor, components.text_encoder
        )
        self._vae = Vae(components.vae)
        self._cache = TensorCache(CACHE_BYTES)

    def together(self, wish: PictureWish, other: PictureWish) -> bool:
        """Return False: every picture has its forwards to itself."""
        del wish, other
        return False

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> list[Made]:
        """Make pictures, one after another.

        Raises BadPicture, CudaOutOfMemory, DeviceLost, LoraNotApplied, or what a control raises.
        """
        return [self._made(*pair) for pair in zip(wishes, controls, strict=True)]

    def warm(self) -> None:
        """Make one picture of the kind that jobs will ask for; raises as `make`."""
        self.make([warm_up(self.served)], [Unheard()])

    def _made(self, wish: PictureWish, control: Control) -> Made:
        """Make one picture; after running out of memory once more, with its memory freed first."""
        try:
            return self._draw(wish, control)
        except CudaOutOfMemory:
            pass  # the failed attempt's tensors live in the exception: leave it before freeing
        self._cache.clear()
        devices.free_memory()
        self._vae.tile(on=True)
        try:
            return self._draw(wish, control)
        finally:
            self._vae.tile(on=False)
            devices.free_memory()

    def release(self) -> None:
        """Drop the modules, free their memory and check it; the model cannot be used afterwards.

        A text encoder and VAE that another open model shares stay. Raises DeviceLost when the
        transformer, which is nobody else's, is still held: the next model would not fit.
        """
        self._cache.clear()
        held = weakref.ref(self._parts.transformer)
        del self._parts, self._prompts, self._vae
        devices.free_memory()
        if held() is not None:
            raise DeviceLost(
                "the memory of a model that gave way was not freed; this worker will be replaced"
            )

    def reference_size(self, image: Image.Image, wish: PictureWish) -> tuple[int, int]:
        """Return the (width, height) at which a reference is encoded.

        The output's own where the aspects agree; else the reference's aspect at the model's area,
        as the stock pipeline does.
        """
        ratio = image.width / image.height
        if abs(math.log(wish.width / wish.height / ratio)) < SAME_ASPECT:
            return wish.width, wish.height
        return sized(self._area, ratio)

    def latents(self, wishes: Sequence[PictureWish], control: Control, clock: _Clock) -> Tensor:
        """Return the final packed latents [batch, tokens, channels] of a batch of wishes.

        They must agree in everything but prompt, references' pixels and seed.
        """
        first, parts = wishes[0], self._parts
        name = name_adapter(first.steps) if first.lightning else None
        if name is not None and name not in parts.adapters.attached:
            raise LoraNotApplied(f"no Lightning LoRA for {first.steps} steps is held")
        parts.adapters.use(name)

        prompt = stack([self._embed(w, w.prompt, clock) for w in wishes])
        negative = None
        if first.negative_prompt is not None and first.true_cfg_scale > 1:
            unwanted = first.negative_prompt
            negative = stack([self._embed(w, unwanted, clock) for w in wishes])
        control.report("text", 1, 1)

        references, shapes = self._references(wishes, control, clock)
        step = self._vae.scale
        height, width = first.height // step, first.width // step
        start = make_noise(
            [w.seed for w in wishes], self._vae.channels, height, width, parts.dtype
        ).to(parts.device)
        tokens = start.shape[1]
        steps = (
            lightning(first.steps, tokens)
            if first.lightning
            else make_schedule(parts.scheduler, first.steps, tokens)
        )
        with clock.phase("denoise"):
            return denoise(
                parts.transformer,
                parts.modulation,
                steps,
                start,
                prompt,
                [(1, height // 2, width // 2), *shapes],
                negative=negative,
                true_cfg_scale=first.true_cfg_scale,
                references=references,
                on_step=lambda done, of: control.report("denoise", done, of),
            )

    def _draw(self, wish: PictureWish, control: Control) -> Made:
        clock = _Clock(self._parts.device, {})
        devices.reset_peak(self._parts.device)
        with devices.translate_errors():
            latents = self.latents([wish], control, clock)
            with clock.phase("decode"):
                pixels = self._vae.decode(latents, wish.width, wish.height)
                image = make_picture(pixels[0])
        return Made(
            Picture(image, wish.final),
            clock.spent,
            peak_vram_mb=devices.read_peak_mb(self._parts.device),
            warnings=self._cut(wish),
        )

    def _cut(self, wish: PictureWish) -> tuple[str, ...]:
        """Say which of the texts that were used is longer than what was used of it."""
        texts = {"prompt": wish.prompt}
        if wish.negative_prompt is not None and wish.true_cfg_scale > 1:
            texts["negative prompt"] = wish.negative_prompt
        return tuple(
            f"the {name} was cut at {prompts.MAX_TOKENS} tokens"
            for name, text in texts.items()
            if self._prompts.is_cut(text, references=bool(wish.references))
        )

    def _embed(self, wish: PictureWish, text: str, clock: _Clock) -> Conditioning:
        shown = self._shown(wish.references)
        key: Hashable = ("text", text, _digest(shown))
        with clock.phase("text"):
            embeds = self._cache.get(
                key, lambda: self._prompts.encode(text, TEMPLATES[self._pipeline], shown)
            )
        return Conditioning(embeds.to(self._parts.device, self._parts.dtype))

    def _shown(self, references: Sequence[Image.Image]) -> list[Image.Image]:
        """Resize references to what the text encoder shall see."""
        area = self._area if self._pipeline == FIRST_EDIT else self._condition_area
        return [
            image.resize(sized(area, image.width / image.height), Image.Resampling.LANCZOS)
            for image in references
        ]

    def _references(
        self, wishes: Sequence[PictureWish], control: Control, clock: _Clock
    ) -> tuple[Tensor | None, list[LatentShape]]:
        """Return all references' packed latents [batch, tokens, channels] and their shapes."""
        first = wishes[0]
        if not first.references:
            return None, []
        sizes = [self.reference_size(image, first) for image in first.references]

        def encoded(image: Image.Image, size: tuple[int, int]) -> Tensor:
            key = ("reference", _digest([image]), size)
            return self._cache.get(key, lambda: self._vae.encode(image, *size))

        rows = []
        with clock.phase("reference"):
            for wish in wishes:
                pairs = zip(wish.references, sizes, strict=True)
                rows.append(torch.cat([encoded(*pair) for pair in pairs], dim=1))
        control.report("reference", 1, 1)
        unit = self._vae.scale * 2
        return torch.cat(rows), [(1, height // unit, width // unit) for width, height in sizes]


def ready(
    spec: ModelSpec, settings: Settings, gpu: Gpu | None, *, taken: Container[str] = ()
) -> Openable:
    """Bring a model's bundle to this machine and return how to open it.

    `gpu` is None on a CPU. A bundle that calls its model by one of the `taken` names keeps the name
    that MODEL gave it. Raises WeightsUnavailable, VolumeFull, LoraNotApplied, InvalidSettings.
    """
    devices.limit_threads(_device(gpu))
    obtained = obtain(spec, RECIPE, settings, gpu, catalogue.CATALOGUE)
    found = obtained.spec
    served = describe(
        replace(found, name=spec.name) if found.name in taken else found,
        settings,
        revision=obtained.bundle.revision,
        precision=obtained.bundle.precision,
        lightning=obtained.lightning,
        memory=gpu.total if gpu else None,
    )
    return Openable(
        served,
        obtained.parts,
        lambda: _opened(spec, obtained, served, settings, gpu),
        obtained.facts,
    )


def _device(gpu: Gpu | None) -> torch.device:
    return torch.device("cuda" if gpu else "cpu")


def prepare(spec: ModelSpec, settings: Settings, gpu: Gpu | None) -> Path:
    """Bring a model's bundle to this machine and return its folder; raises as `ready`."""
    devices.limit_threads(_device(gpu))
    return obtain(spec, RECIPE, settings, gpu, catalogue.CATALOGUE).folder


def _opened(
    spec: ModelSpec, obtained: Obtained, served: Served, settings: Settings, gpu: Gpu | None
) -> QwenImage:
    """Open a bundle: a damaged one once more after mending, one too large with less on the GPU."""
    start = time.monotonic()
    device = _device(gpu)
    try:
        parts = _placed(obtained.folder, device, settings, offload=obtained.offload)
    except Damaged as damage:
        repair.start(damage, settings.home)
        obtained = obtain(spec, RECIPE, settings, gpu, catalogue.CATALOGUE, repair=True)
        try:
            parts = _placed(obtained.folder, device, settings, offload=obtained.offload)
        except Damaged as still:
            raise repair.make_error(still) from damage
    repair.finish(obtained.folder, settings.home)
    log.get().info(
        "model open",
        model=served.id,
        precision=served.precision,
        seconds=round(time.monotonic() - start, 2),
    )
    return QwenImage(
        parts,
        served,
        obtained.bundle.pipeline,
        condition_area=obtained.bundle.facts.get("condition_area", CONDITION_AREA),
    )


def _placed(folder: Path, device: torch.device, settings: Settings, *, offload: bool) -> Components:
    """Open a bundle on the device; out of memory, once more with the text encoder on the CPU.

    Raises Damaged, LoraNotApplied, UnfitHost.
    """
    host = torch.device("cpu")
    for away in (host,) if offload else (None, host):
        try:
            return open_bundle(
                folder, device, verify=settings.verify, text_encoder_device=away, share=_SHARED
            )
        except torch.OutOfMemoryError:
            devices.free_memory()
            log.get().warning("out of memory while opening", text_encoder="cpu" if away else "gpu")
    raise UnfitHost(
        "the GPU has too little memory for the model even with its text encoder on the CPU: set"
        " PRECISION_MODE=4bit, or choose a pool with more memory"
    )
