"""Pictures to latents and back through AutoencoderKLQwenImage, one frame at a time."""

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from worker.engine.sampler import pack, unpack


class Vae:
    """The VAE of a model with its normalisation of latents; `scale` is pixels per latent (8)."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.scale = 2 ** len(vae.temperal_downsample)
        self.channels: int = vae.config.z_dim
        self._processor = VaeImageProcessor(vae_scale_factor=self.scale * 2)

    def _make_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, self.channels, 1, 1, 1)
        mean = torch.tensor(self._vae.config.latents_mean).view(shape).to(like.device, like.dtype)
        std = torch.tensor(self._vae.config.latents_std).view(shape)
        return mean, std

    @torch.inference_mode()
    def encode(self, image: Image.Image, width: int, height: int) -> Tensor:
        """Return the packed latents [1, tokens, 4 * channels] of a picture resized to a size."""
        pixels = self._processor.preprocess(image, height, width).unsqueeze(2)
        pixels = pixels.to(self._vae.device, self._vae.dtype)
        latents = self._vae.encode(pixels).latent_dist.mode()
        mean, std = self._make_statistics(latents)
        latents = (latents - mean) / std.to(latents.device, latents.dtype)
        return pack(latents[:, :, 0])

    @torch.inference_mode()
    def decode(self, tokens: Tensor, width: int, height: int) -> Tensor:
        """Return the pixels [batch, 3, height, width] in [-1, 1] of packed latents."""
        latents = unpack(tokens, height // self.scale, width // self.scale).to(self._vae.dtype)
        mean, std = self._make_statistics(latents)
        # by the reciprocal, rounded where the stock pipelines round: equal to the last bit
        latents = latents / (1.0 / std.to(latents.device, latents.dtype)) + mean
        pixels: Tensor = self._vae.decode(latents, return_dict=False)[0]
        return pixels[:, :, 0]

    def tile(self, *, on: bool) -> None:
        """Decode in tiles (less memory, faint seams) or at once."""
        if on:
            self._vae.enable_tiling()
        else:
            self._vae.disable_tiling()
