"""The embedded models on the CUDA device and on the CPU, and pictures compared with each other."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from worker import preflight, settings
from worker.boot import import_family
from worker.driver import Gpu
from worker.families.catalogue import CATALOGUE
from worker.families.flux2.model import Flux2
from worker.families.opener import Opener
from worker.families.qwen_image.model import QwenImage
from worker.families.recognise import recognise
from worker.media.picture import Picture
from worker.seam import Openable, Outcome, Unheard, take_made
from worker.settings import Settings
from worker.tasks.picture import PictureWish
from worker.weights.spec import ModelSpec

PROMPTS: Final = ("a red circle", "a blue square", "a green circle", "a red square")
EQUAL: Final = 99.0  # what equal pictures count in a mean of decibels
FLUX: Final = "tiny-flux"
Drawing = QwenImage | Flux2


class Studio:
    """Open the embedded models, each kind once; a device has a home with bundles of its own."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self.device = device
        self._models: dict[tuple[str, ...], Drawing] = {}

    def read_settings(self, precision: str, device: torch.device, **more: str) -> Settings:
        """Return a worker's settings for the embedded models, nothing compiled unless asked."""
        return settings.read(
            {
                "MODEL_DIR": str(self._folder / device.type),
                "MIN_STORAGE_FREE_GB": "0",
                "PRECISION_MODE": precision,
                "LIGHTNING_STEPS": "8,4",
                "COMPILE": "off",
                **more,
            }
        )

    def make_ready(
        self, name: str, precision: str = "bf16", device: torch.device | None = None, **more: str
    ) -> Openable:
        """Prepare an embedded model's bundle for a device, where it is not."""
        place = self.device if device is None else device
        given = self.read_settings(precision, place, **more)
        return find_opener(name).make_ready(find_spec(name, given), given, find_gpu(place))

    def find_bundle(self, name: str, precision: str = "bf16") -> Path:
        """Return the folder of an embedded model's bundle for the device, which is prepared."""
        given = self.read_settings(precision, self.device)
        spec, gpu = find_spec(name, given), find_gpu(self.device)
        return find_opener(name).prepare(spec, given, gpu)

    def open(
        self, name: str, precision: str = "bf16", device: torch.device | None = None, **more: str
    ) -> Drawing:
        """Return an open model; the same one for the same request."""
        place = self.device if device is None else device
        key = (name, precision, place.type, repr(sorted(more.items())))
        if key not in self._models:
            self._models[key] = self.open_again(name, precision, place, **more)
        return self._models[key]

    def open_again(
        self, name: str, precision: str = "bf16", device: torch.device | None = None, **more: str
    ) -> Drawing:
        """Return a model that nothing else uses."""
        model = self.make_ready(name, precision, device, **more).open()
        assert isinstance(model, Drawing)
        return model


def find_spec(name: str, given: Settings) -> ModelSpec:
    """Return what an embedded model is made from, as a start finds it."""
    (found,) = CATALOGUE.resolve((name,), given, has_gpu=True)
    return recognise(found, given, CATALOGUE)


def find_opener(name: str) -> Opener[Any]:
    """Return how the models of an embedded model's family are opened."""
    (row,) = (one for one in CATALOGUE.rows if one.name == name)
    opener: Opener[Any] = import_family(row.family).OPENER
    return opener


def find_gpu(device: torch.device) -> Gpu | None:
    """Return the GPU as the worker finds it, None for a CPU."""
    if device.type != "cuda":
        return None
    gpu = preflight.find_usable_gpu()
    assert gpu is not None, "torch has a CUDA device, and the worker finds none"
    return gpu


def make_reference(seed: int, side: int = 64) -> Image.Image:
    """Return a reference that no seed from 0 to 3 shares."""
    slope = Image.linear_gradient("L").resize((side, side))
    return Image.merge("RGB", (slope, slope.rotate(90), slope.rotate(180))).rotate(90 * seed)


def make_wish(prompt: str = PROMPTS[0], seed: int = 0, **more: Any) -> PictureWish:
    """Return a wish of 4 Lightning steps at 64x64, changed by what is given."""
    plain = PictureWish(
        prompt=prompt,
        negative_prompt=None,
        task="edit" if more.get("references") else "text-to-image",
        seed=seed,
        steps=4,
        true_cfg_scale=1.0,
        lightning=True,
        references=(),
        width=64,
        height=64,
    )
    return replace(plain, **more)


def make_wishes(name: str) -> list[PictureWish]:
    """Return four wishes of equal keys for an embedded model."""
    return [
        make_wish(
            prompt,
            seed,
            references=() if name == "tiny-image" else (make_reference(seed),),
            lightning=name != FLUX,
        )
        for seed, prompt in enumerate(PROMPTS)
    ]


def guide(wish: PictureWish) -> PictureWish:
    """Return a wish that runs without Lightning, with true CFG."""
    return replace(wish, lightning=False, steps=6, true_cfg_scale=3.0, negative_prompt="dark")


def weigh(wish: PictureWish) -> PictureWish:
    """Return a wish with another reference, of which its own counts four times as much."""
    return replace(
        wish,
        references=(*wish.references, make_reference(wish.seed + 1)),
        reference_weights=(2.0, 0.5),
    )


def change(name: str, wish: PictureWish) -> PictureWish:
    """Return a wish that runs in the other way that an embedded model has: CFG, or weights."""
    return weigh(wish) if name == FLUX else guide(wish)


def take_image(outcome: Outcome) -> Image.Image:
    """Return the picture of an outcome; raises what it is otherwise."""
    piece = take_made(outcome).piece
    assert isinstance(piece, Picture)
    return piece.image


def make_images(model: Drawing, wishes: Sequence[PictureWish]) -> list[Image.Image]:
    """Return the pictures of wishes that are made together."""
    return [take_image(one) for one in model.make(wishes, [Unheard()] * len(wishes))]


def make_image(model: Drawing, wish: PictureWish) -> Image.Image:
    """Return one picture that is made alone."""
    (image,) = make_images(model, [wish])
    return image


def measure_decibels(ours: Image.Image, theirs: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two pictures of one size, at most `EQUAL`."""
    pair = [np.asarray(image, np.float64) / 255 for image in (ours, theirs)]
    error = float(np.mean((pair[0] - pair[1]) ** 2))
    return min(EQUAL, -10 * math.log10(error)) if error else EQUAL


def summarise(decibels: Sequence[float]) -> dict[str, float]:
    """Return the mean and the least of decibels, and how many pictures are equal."""
    return {
        "mean_db": round(sum(decibels) / len(decibels), 2),
        "least_db": round(min(decibels), 2),
        "equal": sum(one >= EQUAL for one in decibels),
        "of": len(decibels),
    }


def list_tensors(model: Drawing) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of an open model's modules, those of 4-bit states and adapters too."""
    parts = model._parts
    for role in ("transformer", "text_encoder", "vae"):
        module: Any = getattr(parts, role)
        yield from ((f"{role}.{name}", one.data) for name, one in module.named_parameters())
        # an adapter in use may have a second name, by which its first must not be left out
        buffers = module.named_buffers(remove_duplicate=False)
        yield from ((f"{role}.{name}", one) for name, one in buffers)
        for name, one in module.named_parameters():
            state = getattr(one, "quant_state", None)
            if state is not None:
                packed = state.as_dict(packed=True)
                yield from ((f"{role}.{name}.{key}", value) for key, value in packed.items())
