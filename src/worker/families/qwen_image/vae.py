"""Pictures to latents and back through the VAE of a model: sizes, normalisation, packing."""

from typing import Any, Protocol

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from worker.engine.device import count_free_bytes
from worker.engine.sampler import pack, unpack
from worker.families.qwen_image.working import count_frame_bytes


class Frames(Protocol):
    """A VAE as it is run, one frame at a time; `config` is AutoencoderKLQwenImage's.

    Pixels are [batch, 3, height, width] in [-1, 1], latents [batch, z, height / 8, width / 8], both
    in `dtype` on `device`. `tiled` takes less memory and leaves faint seams.
    """

    config: Any

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""

    def encode(self, pixels: Tensor, *, tiled: bool = False) -> Tensor:
        """Return the means of the latents of pixels."""

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """Return the pixels of latents."""


class Vae:
    """The VAE of a model with its normalisation of latents; `scale` is pixels per latent (8)."""

    def __init__(self, vae: Frames) -> None:
        self._vae = vae
        self.scale = 2 ** len(vae.config.temperal_downsample)
        self.channels: int = vae.config.z_dim
        self._processor = VaeImageProcessor()
        self._mean = self._place(vae.config.latents_mean)
        self._std = self._place(vae.config.latents_std)
        # rounded where the stock pipelines round: equal to the last bit
        self._inverse = 1.0 / self._std

    def _place(self, values: list[float]) -> Tensor:
        shaped = torch.tensor(values).view(1, self.channels, 1, 1)
        return shaped.to(self._vae.device, self._vae.dtype)

    def has_room(self, pixels: int) -> bool:
        """Return whether a picture can be encoded or decoded in one piece, as far as is known."""
        free = count_free_bytes(self._vae.device)
        return free is None or count_frame_bytes(pixels, self._vae.config.base_dim) <= free

    @torch.inference_mode()
    def encode(self, image: Image.Image, width: int, height: int, *, tiled: bool = False) -> Tensor:
        """Return the packed latents [1, tokens, 4 * channels] of a picture resized to a size."""
        pixels = self._processor.preprocess(image, height, width).to(self._vae.dtype)
        placed = pixels.to(self._vae.device, non_blocking=True)
        latents = self._vae.encode(placed, tiled=tiled)
        return pack((latents - self._mean) / self._std)

    @torch.inference_mode()
    def decode(self, tokens: Tensor, width: int, height: int, *, tiled: bool = False) -> Tensor:
        """Return the pixels [batch, 3, height, width] in [-1, 1] of packed latents."""
        latents = unpack(tokens, height // self.scale, width // self.scale).squeeze(2)
        return self._vae.decode(
            latents.to(self._vae.dtype) / self._inverse + self._mean, tiled=tiled
        )
