"""Stage 1: the VAE, on whole pictures, and the statistics of its latents.

Group norms see the whole picture, so that crops, which are cheaper, would teach something else.
"""

import random
from typing import Any, Final

import torch
from torch import Tensor

from training.tiny import phrases, world
from training.tiny.flux import shapes
from training.tiny.flux.drawn import Hands, wrong
from training.tiny.flux.pace import Pace
from training.tiny.flux.stored import Average, Stage
from training.tiny.latents import pack
from training.tiny.pixels import psnr, stack, unit

RATE: Final = 1.5e-3
KL_WEIGHT: Final = 1e-4
SQUARE_WEIGHT: Final = 5.0
DECAY: Final = 0.995
LOGGED: Final = 20  # times in a stage
SAVED: Final = 120.0  # seconds between two states of a stage


def encode(vae: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance (B, 16, H/8, W/8) of frames (B, 3, H, W) in -1..1."""
    mean, log_variance = vae.quant_conv(vae.encoder(frames)).float().chunk(2, dim=1)
    return mean, log_variance.clamp(-12, 4)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return frames (B, 3, H, W), not clamped, of latents (B, 16, H/8, W/8)."""
    frames: Tensor = vae.decoder(vae.post_quant_conv(latents))
    return frames.float()


@torch.no_grad()
def reconstruct(vae: Any, frames: Tensor, *, bf16: bool) -> Tensor:
    """Return what the VAE makes of frames in -1..1, from its posterior's mean."""
    out = []
    for part in frames.split(64):
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=bf16):
            out.append(decode(vae, encode(vae, part)[0]).clamp(-1, 1))
    return torch.cat(out)


def train(
    stage: Stage, pictures: Tensor, pace: Pace, device: torch.device, batch: int, *, bf16: bool
) -> Any:
    """Train for `pace`, on pictures (J, S, 3, H, W) in uint8; return the VAE with its statistics.

    A stage that is done is loaded, and one that was begun goes on.
    """
    vae: Any = shapes.build_vae()
    finished = stage.finished(device)
    if finished is not None:
        vae.load_state_dict(finished)
        return vae.to(device, memory_format=torch.channels_last)
    vae = vae.to(device, memory_format=torch.channels_last)
    vae.bn.eval()
    bank = pictures.flatten(0, 1)
    tests = unit(bank[:: max(1, len(bank) // 64)][:64].to(device))
    optimiser = torch.optim.AdamW(vae.parameters(), RATE, (0.9, 0.95), weight_decay=0.0)
    average = Average(vae, DECAY)
    pace.spent = stage.resume(vae, average, [optimiser])
    step, told, saved = 0, pace.share, pace.now
    sums = torch.zeros(2, device=device)
    while pace.share < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * pace.rate(0.5)
        some = torch.randint(len(bank), (batch,), device=bank.device)
        truth = unit(bank[some].to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            mean, log_variance = encode(vae, truth)
            latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            ours = decode(vae, latents)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        error = ours - truth
        loss = error.abs().mean() + SQUARE_WEIGHT * error.square().mean()
        (loss + KL_WEIGHT * divergence).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.follow()
        sums += torch.stack((loss.detach(), divergence.detach()))
        step += 1
        if step % 10 == 0 and device.type == "cuda":
            torch.cuda.synchronize()  # else the host runs ahead, and the pace is not the device's
        if pace.share - told >= 1 / LOGGED or pace.share == 1:
            told = pace.share
            means = (sums / step).tolist()
            db = psnr(reconstruct(vae, tests, bf16=bf16), tests)
            print(
                f"vae {step} x {batch}: loss {means[0]:.4f} on average, kl {means[1]:.2f}, "
                f"last {loss.item():.4f}, {db:.2f} dB, {pace.now:.0f} s",
                flush=True,
            )
        if pace.now - saved > SAVED:
            saved = pace.now
            stage.save(vae, average, [optimiser], pace.now)
    vae.load_state_dict(average.weights)
    measure(vae, pictures, bf16=bf16)
    stage.finish(vae.state_dict())
    return vae


def read_back(vae: Any, hands: Hands, seed: int, *, bf16: bool) -> str:
    """Return the VAE's figures over 200 pictures, half of them of scenes that are held out."""
    rng = random.Random(seed)
    scenes = [world.random_scene(rng, held_out=i % 2 == 0) for i in range(200)]
    frames = stack([world.draw(scene, world.random_jitter(rng)) for scene in scenes])
    truth = unit(frames.to(vae.device))
    ours = reconstruct(vae, truth, bf16=bf16)
    bad = wrong(hands.read(ours), scenes, [[True] * len(phrases.PARTS)] * len(scenes))
    return f"{psnr(ours, truth):.1f} dB, {bad.count(False) / len(bad):.1%} of {len(bad)} read right"


@torch.no_grad()
def measure(vae: Any, pictures: Tensor, *, bf16: bool) -> None:
    """Give the VAE the mean and variance of its packed latents, over pictures (J, S, 3, H, W).

    In numbers that bf16 holds, so that every precision normalises by the same.
    """
    tokens = torch.cat([pack(part) for part in latents(vae, pictures, bf16=bf16)])
    vae.bn.running_mean.copy_(tokens.mean((0, 1)).bfloat16())
    vae.bn.running_var.copy_(tokens.var((0, 1)).bfloat16())
    vae.bn.num_batches_tracked.fill_(len(tokens))


@torch.no_grad()
def latents(vae: Any, pictures: Tensor, *, bf16: bool) -> list[Tensor]:
    """Return the means (S, 16, H/8, W/8) of pictures, a tensor for each jitter."""
    device, out = vae.device, []
    for jitter in pictures:
        parts = []
        for part in jitter.split(128):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                parts.append(encode(vae, unit(part.to(device)))[0])
        out.append(torch.cat(parts))
    return out


def _spread(vae: Any) -> tuple[Tensor, Tensor]:
    return vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()


def normalise(vae: Any, tokens: Tensor) -> Tensor:
    """Return packed latents (..., 64) of unit spread, as the transformer takes them."""
    mean, std = _spread(vae)
    return (tokens - mean) / std


def restore(vae: Any, tokens: Tensor) -> Tensor:
    """Return packed latents (..., 64) as the VAE takes them."""
    mean, std = _spread(vae)
    return tokens * std + mean
