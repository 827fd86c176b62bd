"""What every family of pictures does around its transformer: made together, encoded, decoded."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import torch
from PIL import Image
from torch import Tensor

from worker.engine import device as devices
from worker.engine.cache import TensorCache
from worker.engine.decoded import make_picture
from worker.engine.sampler import OnStep
from worker.errors import BadPicture, Internal
from worker.families.clock import Clock
from worker.families.masking import find_original
from worker.families.memory import Phases
from worker.families.references import ReferencePictures
from worker.families.sharing import Sharing
from worker.media.picture import Picture
from worker.seam import Control, Made, Outcome, Served, Unheard, take_made
from worker.tasks.picture import PictureWish, offer_of, warm_up

# How often the longer prompt of a warm-up repeats the shorter: about 80 tokens.
WARM_LENGTH: Final = 16
# An output whose aspect is this close to a reference's (natural logarithm of the ratio) shares its
# size, so that an edit neither shifts nor zooms; rounding to 16 pixels alone moves 1024 by 0.016.
SAME_ASPECT: Final = 0.03


class PictureVae(Protocol):
    """A VAE as pictures are made with it: normalised and packed latents [batch, tokens, channels].

    `tiled` takes less memory and leaves faint seams.
    """

    def has_room(self, pixels: int) -> bool:
        """Return whether a picture can be encoded or decoded in one piece, as far as is known."""

    def encode(self, image: Image.Image, width: int, height: int, *, tiled: bool = False) -> Tensor:
        """Return the packed latents of a picture at a size."""

    def decode(self, tokens: Tensor, width: int, height: int, *, tiled: bool = False) -> Tensor:
        """Return the pixels [batch, 3, height, width] in [-1, 1] of packed latents."""


class Drawer(Protocol):
    """A model of a family, as far as pictures are made with it."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    def make_key(self, wish: PictureWish) -> Hashable:
        """Return what pictures must have in common to share forwards."""

    def make_latents(self, wishes: Sequence[PictureWish], sharing: Sharing, clock: Clock) -> Tensor:
        """Return the final packed latents [rows, tokens, channels] of wishes with equal keys."""

    def decode(self, latents: Tensor, wish: PictureWish, clock: Clock) -> Image.Image | BadPicture:
        """Return the picture of one wish's latents, or why it is none."""

    def list_warnings(self, wish: PictureWish) -> tuple[str, ...]:
        """Return what the caller of a wish should know about how it was made."""

    def find(self, wish: PictureWish) -> Mapping[str, Any]:
        """Return the fields of a wish that are known once it is made."""


def make_pictures(
    model: Drawer, wishes: Sequence[PictureWish], controls: Sequence[Control]
) -> Iterator[Outcome]:
    """Make pictures that have equal keys, and give each as soon as it is decoded.

    They are denoised together and decoded one after another, in the memory of one. Raises
    CudaOutOfMemory, DeviceLost, LoraNotApplied, or what the last control raised; Internal when the
    keys differ: the pictures would be wrong.
    """
    if len({model.make_key(wish) for wish in wishes}) > 1:
        raise Internal("pictures of different keys cannot share forwards")
    device, clock = model.device, Clock(model.device)
    sharing = Sharing(controls, drops=device.type == "cpu")
    # all of it: a compiled block has another graph for a tensor that was made outside
    with devices.translate_errors(), torch.inference_mode():
        devices.reset_peak(device)
        latents = model.make_latents(wishes, sharing, clock)
    for place, wish in enumerate(wishes):
        if (ended := sharing.find_end(place)) is not None:
            yield ended
            continue
        row = sharing.find_row(place)
        with devices.translate_errors():
            image = model.decode(latents[row : row + 1], wish, clock)
        if isinstance(image, BadPicture):
            yield image
            continue
        yield Made(
            Picture(image, wish.final, find_original(wish)),
            dict(clock.spent),
            peak_vram_mb=devices.read_peak_mb(device),
            warnings=model.list_warnings(wish),
            found=model.find(wish),
        )


def decode_picture(
    vae: PictureVae, latents: Tensor, wish: PictureWish, phases: Phases, clock: Clock
) -> Image.Image | BadPicture:
    """Return the picture of one wish's latents, or why it is none."""
    pixels = wish.width * wish.height

    def run(tiled: bool) -> Image.Image:
        with clock.measure_phase("decode"):
            return make_picture(*vae.decode(latents, wish.width, wish.height, tiled=tiled))

    try:
        return phases.run("decode", pixels, run, has_room=vae.has_room(pixels))
    except BadPicture as error:
        return error.with_traceback(None)


def denoise_rows(
    rows: int,
    sharing: Sharing,
    phases: Phases,
    clock: Clock,
    kind: Hashable,
    denoise: Callable[[OnStep], Tensor],
) -> Tensor:
    """Return the latents of rows that are denoised together; each hears its steps and may end.

    `denoise` begins with a scheduler of its own each time: one that was stopped half-way has
    counted its steps and cannot start again. One row that does not fit in memory runs again with
    less; several do not: their batch is halved where it was formed.
    """

    def finish_step(step: int, steps: int) -> Sequence[int] | None:
        sharing.report("denoise", step, steps)
        return sharing.drop_ended()

    def run() -> Tensor:
        with clock.measure_phase("denoise"):
            return denoise(finish_step)

    return run() if rows > 1 else phases.run("denoise", kind, lambda _: run())


# How a picture is encoded at a size (width, height): packed latents [1, tokens, channels].
Encode = Callable[[Image.Image, tuple[int, int]], Tensor]


def make_encode(
    vae: PictureVae, cache: TensorCache, pictures: ReferencePictures, phases: Phases, clock: Clock
) -> Encode:
    """Return what encodes the pictures of wishes that are made together, each once."""

    def encode(image: Image.Image, size: tuple[int, int]) -> Tensor:
        key = ("reference", pictures.digest(image), size)
        pixels = size[0] * size[1]

        def run(tiled: bool) -> Tensor:
            with clock.measure_phase("reference"):
                found = pictures.find(image, size)
                return cache.get(key, lambda: vae.encode(found, *size, tiled=tiled))

        return phases.run("reference", pixels, run, has_room=vae.has_room(pixels))

    return encode


def encode_sources(wishes: Sequence[PictureWish], encode: Encode) -> Tensor | None:
    """Return the packed latents [batch, tokens, channels] that pictures begin from, if any."""
    sources = [
        encode(wish.source, (wish.width, wish.height)) for wish in wishes if wish.source is not None
    ]
    return torch.cat(sources) if sources else None


def has_same_aspect(image: Image.Image, wish: PictureWish) -> bool:
    """Return whether a reference is encoded at the output's own size."""
    return abs(math.log(wish.width * image.height / wish.height / image.width)) < SAME_ASPECT


def make_warm_ups(model: Drawer, served: Served) -> None:
    """Make pictures of the kinds that jobs will request; raises as `make_pictures`."""
    for wish in list_warm_ups(served, has_gpu=model.device.type == "cuda"):
        for outcome in make_pictures(model, [wish], [Unheard()]):
            take_made(outcome)


def list_warm_ups(served: Served, *, has_gpu: bool) -> list[PictureWish]:
    """Return what a model makes before its first job.

    A GPU picks and loads kernels by size: there it is a prompt of another length too, and each of
    the other adapters.
    """
    first = warm_up(served)
    if not has_gpu:
        return [first]
    others = offer_of(served).lightning_steps[1:]
    return [
        first,
        replace(first, prompt=" ".join([first.prompt] * WARM_LENGTH)),
        *(replace(first, steps=steps) for steps in others),
    ]


def list_texts(wish: PictureWish) -> dict[str, str]:
    """Return the texts that a picture is made of, by what they are called."""
    texts = {"prompt": wish.prompt}
    if wish.negative_prompt is not None and wish.true_cfg_scale > 1:
        texts["negative prompt"] = wish.negative_prompt
    return texts
