"""Stage 1: train the VAE on single frames, mostly on crops with an edge in them."""

import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.tiny import world
from training.tiny.architecture import build_vae
from training.tiny.flat_vae import FlatVae, initialise
from training.tiny.pixels import psnr, stack, unit

BANK = 3000
BATCH = 16
CROP = 48
LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-4
SQUARE_WEIGHT = 5.0
FULL_EVERY = 8  # one step in eight sees whole pictures, which the attention needs
FLAT_KEPT = 0.12


def pictures(count: int, seed: int) -> Tensor:
    """Return drawn pictures of seen scenes, uint8 (count, 3, side, side)."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(count):
        scene = world.random_scene(rng)
        drawn.append(world.draw(scene, world.random_jitter(rng)))
    return stack(drawn)


def _crops(bank: Tensor, rng: random.Random) -> Tensor:
    room = bank.shape[-1] - CROP
    found: list[Tensor] = []
    while len(found) < BATCH:
        y, x = 4 * rng.randint(0, room // 4), 4 * rng.randint(0, room // 4)
        crop = bank[rng.randrange(len(bank)), :, y : y + CROP, x : x + CROP]
        if rng.random() < FLAT_KEPT or int(crop.amax((1, 2)).sum() - crop.amin((1, 2)).sum()) > 0:
            found.append(crop)
    return torch.stack(found)


@torch.no_grad()
def reconstruct(flat: FlatVae, frames: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the VAE's reconstruction of float frames in -1..1, from its posterior's mean."""
    out = []
    for part in torch.split(frames, 16):
        with torch.autocast(part.device.type, dtype, enabled=dtype != torch.float32):
            mean = flat.encode(part).chunk(2, dim=1)[0]
            out.append(flat.decode(mean).float().clamp(-1, 1))
    return torch.cat(out)


def _rate(step: int, steps: int) -> float:
    """Return the learning rate's factor: 100 steps up, then flat, then 40 % down to 2 %."""
    left = (steps - step) / (0.4 * steps)
    return min(1.0, (step + 1) / 100, max(0.02, left))


def train(folder: Path, steps: int, device: torch.device, seed: int = 1) -> Any:
    """Train to `steps` optimiser steps, resuming from `folder`/vae.pt; return the 3-D VAE."""
    vae = build_vae()
    initialise(vae, seed)
    flat = FlatVae(vae).to(device)
    flat.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    optimiser = torch.optim.AdamW(flat.parameters(), LEARNING_RATE, (0.9, 0.95), weight_decay=0.0)
    first, file = 0, folder / "vae.pt"
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        flat.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    bank, tests = pictures(BANK, seed), unit(pictures(64, seed + 1)).to(device)
    rng = random.Random(seed * 1_000_003 + first)
    torch.manual_seed(seed * 1_000_003 + first)
    began = time.monotonic()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * _rate(step, steps)
        if step % FULL_EVERY == 0:
            frames = bank[torch.tensor([rng.randrange(BANK) for _ in range(BATCH // 4)])]
        else:
            frames = _crops(bank, rng)
        truth = unit(frames).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            mean, log_variance = flat.encode(truth).float().chunk(2, dim=1)
            log_variance = log_variance.clamp(-12, 4)
            latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            ours = flat.decode(latents).float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        error = ours - truth
        loss = error.abs().mean() + SQUARE_WEIGHT * error.square().mean()
        total = loss + KL_WEIGHT * divergence
        total.backward()
        torch.nn.utils.clip_grad_norm_(flat.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            db = psnr(reconstruct(flat, tests), tests)
            print(
                f"vae {step + 1}/{steps}: loss {loss.item():.4f}, kl {divergence.item():.2f}, "
                f"latents {float(mean.std()):.2f}, {db:.2f} dB, {time.monotonic() - began:.0f} s",
                flush=True,
            )
            state = {
                "weights": flat.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
            }
            torch.save(state, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
    flat.write_back(vae)
    return vae
