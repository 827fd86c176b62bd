"""Pictures to latents and back through the VAE of a model: normalised by statistics, packed."""

from typing import Any, Final

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from worker.engine.device import count_free_bytes
from worker.engine.sampler import pack, unpack
from worker.families.flux2.arranging import is_arranged
from worker.families.flux2.working import count_frame_bytes
from worker.families.tiles import Tiling, run_in_tiles

# The side of a tile in pixels where a picture does not fit in one piece, and the step to the next.
TILE: Final = 512
TILE_STEP: Final = 384
PATCH: Final = 2


class LatentVae:
    """An AutoencoderKLFlux2 with its normalisation of latents; `scale` is pixels per latent (8).

    `channels` counts those of a packed token. The normalisation is of packed latents, which are the
    channels that the statistics are of.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels: int = vae.config.latent_channels * PATCH**2
        self._is_last = is_arranged(vae)
        self._processor = VaeImageProcessor()
        # rounded where the stock pipelines round: equal to the last bit
        self._mean = vae.bn.running_mean.detach().to(vae.dtype)
        variance = vae.bn.running_var.detach() + vae.config.batch_norm_eps
        self._deviation = torch.sqrt(variance).to(vae.dtype)

    def has_room(self, pixels: int) -> bool:
        """Return whether a picture can be encoded or decoded in one piece, as far as is known."""
        free = count_free_bytes(self._vae.device)
        width = self._vae.config.block_out_channels[0]
        return free is None or count_frame_bytes(pixels, width) <= free

    @torch.inference_mode()
    def encode(self, image: Image.Image, width: int, height: int, *, tiled: bool = False) -> Tensor:
        """Return the packed latents [1, tokens, channels] of a picture resized to a size."""
        pixels = self._processor.preprocess(image, height, width).to(self._vae.dtype)
        placed = pixels.to(self._vae.device, non_blocking=True)
        latents = self._run(self._encode, placed, tiled=tiled, grows=False)
        normalised: Tensor = (pack(latents) - self._mean) / self._deviation
        return normalised

    @torch.inference_mode()
    def decode(self, tokens: Tensor, width: int, height: int, *, tiled: bool = False) -> Tensor:
        """Return the pixels [batch, 3, height, width] in [-1, 1] of packed latents."""
        packed = tokens.to(self._vae.dtype) * self._deviation + self._mean
        latents = unpack(packed, height // self.scale, width // self.scale)[:, :, 0]
        return self._run(self._decode, latents, tiled=tiled, grows=True)

    def _encode(self, pixels: Tensor) -> Tensor:
        latents: Tensor = self._vae.encode(self._place(pixels)).latent_dist.mode()
        return latents

    def _decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self._vae.decode(self._place(latents)).sample
        return pixels

    def _place(self, frames: Tensor) -> Tensor:
        """Return frames as the VAE's first convolution takes them."""
        return frames.contiguous(memory_format=torch.channels_last) if self._is_last else frames

    def _run(self, run: Any, frames: Tensor, *, tiled: bool, grows: bool) -> Tensor:
        if not tiled:
            return torch.as_tensor(run(frames))
        pixels, latents = (TILE, TILE_STEP), (TILE // self.scale, TILE_STEP // self.scale)
        return run_in_tiles(
            run, frames, Tiling(*((latents, pixels) if grows else (pixels, latents)))
        )
