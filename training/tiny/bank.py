"""All training pictures of the transformer, drawn and encoded once: latents and vision tokens."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLImageProcessor

from training.tiny import world
from training.tiny.architecture import PROCESSOR_PIXELS
from training.tiny.flat_vae import FlatVae
from training.tiny.latents import OBJECT_APART, pack
from training.tiny.pixels import stack, unit


@dataclass(frozen=True, slots=True)
class Bank:
    """Encoded pictures of every scene in several jitters; scene and jitter index the first axis.

    `latents` (J, S, 36, 64) packed and normalised; `vision` (J, S, 9, D); `shown` (J, S, 36) is
    True where the object is; `mean` and `std` (16,) are the VAE's latents_mean and latents_std.
    """

    scenes: list[world.Scene]
    latents: Tensor
    vision: Tensor
    shown: Tensor
    mean: Tensor
    std: Tensor


@torch.no_grad()
def see(text_encoder: Any, pictures: list[Any]) -> Tensor:
    """Return the vision tower's output for square pictures: (B, 9, D)."""
    smallest, largest = PROCESSOR_PIXELS
    processor = Qwen2VLImageProcessor(min_pixels=smallest, max_pixels=largest)
    inputs = processor(images=pictures, return_tensors="pt")
    tower = text_encoder.model.visual
    device = tower.patch_embed.proj.weight.device
    patches = inputs["pixel_values"].to(device, tower.patch_embed.proj.weight.dtype)
    seen: Tensor = tower(patches, grid_thw=inputs["image_grid_thw"].to(device)).pooler_output
    return seen.reshape(len(pictures), -1, seen.shape[-1])


@torch.no_grad()
def build(flat: FlatVae, text_encoder: Any, jitters: int, seed: int, device: torch.device) -> Bank:
    """Draw and encode every scene that is not held out, `jitters` times."""
    rng = random.Random(seed)
    scenes = [scene for scene in world.scenes() if not scene.held_out]
    latents, vision, shown = [], [], []
    for _ in range(jitters):
        jitter = world.random_jitter(rng)
        drawn = [world.draw(scene, jitter) for scene in scenes]
        frames = stack(drawn)
        far = (frames.int() - frames[:, :, :1, :1].int()).abs().amax(1) > OBJECT_APART
        shown.append(far.unfold(1, 16, 16).unfold(2, 16, 16).flatten(3).any(3).flatten(1))
        parts = []
        for start in range(0, len(drawn), 32):
            with torch.autocast(device.type, torch.bfloat16):
                moments = flat.encode(unit(frames[start : start + 32]).to(device))
            parts.append(moments.float().chunk(2, dim=1)[0].cpu())
            vision.append(see(text_encoder, drawn[start : start + 32]).cpu())
        latents.append(torch.cat(parts))
    every = torch.stack(latents)
    mean, std = every.mean((0, 1, 3, 4)), every.std((0, 1, 3, 4))
    packed = [pack((part - mean[:, None, None]) / std[:, None, None]) for part in latents]
    looked = torch.cat(vision).reshape(jitters, len(scenes), *vision[0].shape[1:])
    return Bank(scenes, torch.stack(packed), looked, torch.stack(shown), mean, std)


def cached(
    folder: Path,
    flat: FlatVae,
    text_encoder: Any,
    jitters: int,
    seed: int,
    device: torch.device,
) -> Bank:
    """Return `folder`/bank.pt, which is built first if it does not exist."""
    file = folder / "bank.pt"
    if not file.exists():
        built = build(flat, text_encoder, jitters, seed, device)
        state = {name: getattr(built, name) for name in Bank.__slots__ if name != "scenes"}
        torch.save(state, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    scenes = [scene for scene in world.scenes() if not scene.held_out]
    return Bank(scenes=scenes, **torch.load(file, weights_only=True))
