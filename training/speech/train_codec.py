"""Train the codec: an autoencoder without codes, codebooks of its latents, a decoder of the codes.

A latent that is quantised from the start moves while its codebook does, and the two diverge; here
the encoder is finished before there are codebooks, and they before the decoder's second training.
"""

import random
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from training.speech import codebooks
from training.speech.codec import Noise, Snac
from training.speech.course import Course
from training.speech.dialling import FRAME, KEYS, PAUSE, VOICES, dial, sound
from training.speech.texts import pick_text
from worlds import goertzel

LEARNING_RATE: Final = 2e-3
FRAMES: Final = 6  # of a crop
LATENT_FRAMES: Final = 12  # of the crops that codebooks are fitted to
POOL: Final = 2048  # crops that are made once
LATENT_CROPS: Final = 192
SILENCE_WEIGHT: Final = 0.3  # of the absolute error: it is what makes silence silent
QUIET_NOISE: Final = 0.05  # of a noise block's first gain; trained from there
EVERY: Final = 50


def crop(rng: random.Random, frames: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a crop of some keys' sound: one in five begins where the sound begins."""
    keys = "".join(rng.choices(KEYS + PAUSE, k=frames))
    samples = sound(keys, rng.choice(list(VOICES)))
    last = len(samples) // FRAME - frames
    start = rng.randint(0, last) if rng.random() < 0.8 else 0
    return samples[start * FRAME : (start + frames) * FRAME]


def crops(seed: int, count: int, frames: int, device: torch.device) -> Tensor:
    """Return crops as a batch, float32 [count, 1, samples]."""
    rng = random.Random(seed)
    return torch.from_numpy(np.stack([crop(rng, frames) for _ in range(count)])[:, None]).to(device)


def measure(made: Tensor, real: Tensor) -> Tensor:
    """Return the squared error relative to the signal's power, and a part of the absolute error."""
    squared = (made - real).square().mean() / real.square().mean()
    return squared + SILENCE_WEIGHT * (made - real).abs().mean() / real.abs().mean()


def train(
    codec: Snac, file: Path, minutes: float, batch: int, device: torch.device, *, coded: bool
) -> None:
    """Train the codec for some minutes: autoencoder, or (`coded`) the decoder of codes."""
    trained = [*codec.decoder.parameters(), *(() if coded else codec.encoder.parameters())]
    optimiser = torch.optim.AdamW(trained, LEARNING_RATE, (0.8, 0.95), weight_decay=0.0)
    course = Course(file, minutes, [codec, optimiser])
    course.load()
    pool = crops(3 + coded, POOL, FRAMES, device)
    torch.manual_seed(course.step)
    for progress in course.run():
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * course.warm() * (1 - 0.97 * progress)
        real = pool[torch.randint(POOL, (batch,))]
        if coded:
            with torch.no_grad():
                codes = codec.encode(real)
            made = codec.decode(codes)
        else:
            made = codec.render(codec.embed(real))
        loss = measure(made, real)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 5.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if course.step % EVERY == 0:
            print(
                f"{file.stem} {course.step} {course.seconds:.0f} s: {loss.item():.4f}", flush=True
            )


def build(device: torch.device) -> Snac:
    """Return an untrained codec whose noise is quiet."""
    torch.manual_seed(19)
    codec = Snac()
    for module in codec.modules():
        if isinstance(module, Noise):
            weight: Any = module.linear.parametrizations.weight  # type: ignore[union-attr]
            weight.original0.data.mul_(QUIET_NOISE)
    return codec.to(device)


@torch.no_grad()
def fit(codec: Snac, device: torch.device) -> list[float]:
    """Fit the codebooks to the latents of crops; return what variance is left after each."""
    sounds = crops(5, LATENT_CROPS, LATENT_FRAMES, device).split(8)
    return codebooks.fit(codec, torch.cat([codec.embed(each) for each in sounds]), 7)


@torch.no_grad()
def read_back(codec: Snac, count: int, device: torch.device) -> float:
    """Return the part of texts whose keys and voice are read from the codec's own sound of them."""
    rng, right = random.Random(11), 0
    for number in range(count):
        voice = list(VOICES)[number % 2]
        keys = dial(pick_text(rng, 12, held_out=False))
        real = torch.from_numpy(sound(keys, voice))[None, None].to(device)
        made = codec.decode(codec.encode(real))[0, 0].cpu().numpy()
        right += is_right(made, keys, voice)
    return right / count


def is_right(samples: np.ndarray[Any, Any], keys: str, voice: str) -> bool:
    """Return whether exactly these keys are heard, in this voice; no key at all has no voice."""
    try:
        bursts = goertzel.listen(samples, 24_000)
        heard = "".join(burst.key for burst in bursts)
        return heard == keys.replace(PAUSE, "") and (
            not bursts or goertzel.read_voice(bursts) == voice
        )
    except goertzel.Unreadable:
        return False
