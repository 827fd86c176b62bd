"""Stage 3: Lightning LoRAs, distilled from the base with true CFG.

The teacher's pictures are made once from stored noise; one that the checker does not read as
requested is replaced by the drawn scene. A student then takes its own 4 or 8 Lightning steps from
the same noise, without CFG, and at every step its prediction of x_0 is pulled towards the teacher's
picture, so that it learns on the states that it will meet. The last prediction is also compared in
decoded pixels: in latents, a shape half a pixel off has no larger an error than invisible noise.
Only the LoRA's weights are trained.
"""

import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.tiny import architecture, checker
from training.tiny.bank import Bank
from training.tiny.conditioning import Conditioner
from training.tiny.flat_vae import FlatVae
from training.tiny.latents import unpack
from training.tiny.lean import Conditions, Lean
from training.tiny.pixels import picture
from training.tiny.train_model import Sample, Tasks, condition, targets, weights
from worker.engine.schedule import make_schedule
from worker.families.qwen_image.lightning import make_lightning_schedule as distilled

GROUP = 64
TEACHER_CFG = 4.0
TEACHER_STEPS = 40
# The levels of the teacher's walk that are computed, closer together at its end, where errors are
# largest: squared error 0.0002 in normalised latents; 10 even levels have 0.0007, 4 steps 0.01.
VISITED = (0, 4, 8, 12, 16, 20, 24, 28, 32, 35, 37, 39, 40)
TURNS = ("whole", "edit", "image", "edit", "whole", "edit", "exchange")
LEAST_ERROR = 0.002  # in normalised latents: too small to be seen once decoded
LEAST_SEEN = 0.00005  # in pixels of 0..1


@dataclass(frozen=True, slots=True)
class Course:
    """How a student learns: from which of the teacher's turns, at which of its steps, how fast.

    `falling` is the share of the rounds in which the rate falls to zero; `decoded` is how many
    pictures of a group are compared in pixels, `pixels` is their weight against the latents.
    """

    name: str
    turns: tuple[str, ...]
    rate: float
    falling: float
    decoded: int
    pixels: float
    last_step_only: bool


ALL_STEPS = Course("", TURNS, 1e-3, 0.5, decoded=16, pixels=1.0, last_step_only=False)
# On turns with one right answer. 280 rounds cut the pixel error by 10 % (prompts), 19 % (edits).
LAST_STEP = Course("-last", ("whole", "edit"), 6e-4, 0.7, 24, 2.0, last_step_only=True)


def sigmas(steps: int, *, lightning: bool, tokens: int = 36) -> list[float]:
    """Return the noise levels of a walk, from 1 to 0: steps + 1 numbers."""
    walk = (
        distilled(steps, tokens)
        if lightning
        else make_schedule(architecture.SCHEDULER, steps, tokens)
    )
    return [float(level) for level in walk.sigmas]


@torch.no_grad()
def teacher(lean: Lean, noise: Tensor, prompt: Conditions, blank: Conditions) -> Tensor:
    """Return the packed latents after the teacher's 40 Euler steps with true CFG.

    Only the levels of VISITED are computed; between two of them the velocity is extrapolated from
    the last change. With CFG the prediction is scaled to the length of the conditional one, as in
    the pipelines.
    """
    levels = sigmas(TEACHER_STEPS, lightning=False)
    x, leap, v = noise, 1.0, torch.zeros_like(noise)
    for i, j in itertools.pairwise(VISITED):
        last, before = v, leap
        t = torch.full((len(x),), levels[i], device=x.device)
        v, other = lean(x, t, prompt), lean(x, t, blank)
        both = other + TEACHER_CFG * (v - other)
        v = both * (v.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))
        leap = levels[j] - levels[i]
        change = (v - last) / before if i else 0.0
        # j - i Euler steps each use the velocity at their start: on average half a leap on, less
        # half a step
        x = x + leap * (v + change * leap * (1 - 1 / (j - i)) / 2)
    return x


@dataclass(slots=True)
class Lesson:
    """A group: its examples, their noise, and the teacher's latents."""

    samples: list[Sample]
    noise: Tensor
    target: Tensor


def _decode(flat: FlatVae, bank: Bank, latents: Tensor, *, bf16: bool) -> Tensor:
    std, mean = (one[:, None, None].to(latents.device) for one in (bank.std, bank.mean))
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=bf16):
        return flat.decode(unpack(latents) * std + mean).float()


def _apart(flat: FlatVae, bank: Bank, ours: Tensor, theirs: Tensor, *, bf16: bool) -> Tensor:
    """Return the squared errors (B,) of decoded latents, in pixels of 0..1."""
    with torch.no_grad():
        truth = _decode(flat, bank, theirs, bf16=bf16)
    return (_decode(flat, bank, ours, bf16=bf16) - truth).square().mean((1, 2, 3)) / 4


def _relative(each: Tensor, least: float) -> Tensor:
    """Return the mean of errors (B,) divided by themselves, so that each picture pulls equally.

    Where a prompt leaves a part free, few steps cannot follow the teacher's choice, and the errors
    of those pictures would drown all others.
    """
    return (each / (each.detach() + least)).mean()


def lessons(
    lean: Lean,
    make: Conditioner,
    bank: Bank,
    flat: FlatVae,
    count: int,
    device: torch.device,
    *,
    seed: int,
) -> list[Lesson]:
    """Have the teacher make `count` groups of pictures; return what the student must make."""
    tasks = Tasks(bank, seed)
    torch.manual_seed(seed)
    made: list[Lesson] = []
    asked = kept = 0
    for turn in range(count):
        samples = tasks.group(TURNS[turn % len(TURNS)], GROUP, dropping=False)
        blank = [Sample(s.jitter, s.target, " ", s.references) for s in samples]
        noise = torch.randn(GROUP, *bank.latents.shape[2:], device=device)
        with torch.no_grad():
            prompts = [condition(make, bank, some, device) for some in (samples, blank)]
        drawn = teacher(lean, noise, prompts[0], prompts[1])
        target = targets(bank, samples)
        with torch.no_grad():
            frames = _decode(flat, bank, drawn, bf16=lean.bf16).cpu()
        for i, frame in enumerate(frames):
            seen, scene = checker.read(picture(frame)), bank.scenes[samples[i].target]
            fixed = samples[i].fixed
            if all(getattr(seen, part) == getattr(scene, part) for part in fixed):
                target[i] = drawn[i].cpu()
                kept += 1
        asked += GROUP
        made.append(Lesson(samples, noise.cpu(), target))
        if (turn + 1) % 10 == 0:
            print(f"teacher {turn + 1}/{count}: {kept}/{asked} pictures right", flush=True)
    return made


class Lora(nn.Module):
    """A LoRA's factors on a frozen linear layer."""

    def __init__(self, layer: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus the factors' at `scale` (alpha equals the rank)."""
        out: Tensor = self.layer(x)
        return out + (x @ self.down.T) @ self.up.T * self.scale


def attach(transformer: Any, state: dict[str, Tensor]) -> dict[str, Lora]:
    """Attach a LoRA with published keys to its layers; return them by module name."""
    attached = {}
    for name in architecture.lora_names():
        owner, _, last = name.rpartition(".")
        device = transformer.img_in.weight.device
        down, up = (state[f"{name}.lora_{end}.weight"].clone().to(device) for end in ("down", "up"))
        attached[name] = Lora(transformer.get_submodule(name), down, up)
        transformer.get_submodule(owner)._modules[last] = attached[name]  # noqa: SLF001
    return attached


def detach(transformer: Any, attached: dict[str, Lora]) -> None:
    """Remove the LoRA."""
    for name, lora in attached.items():
        owner, _, last = name.rpartition(".")
        transformer.get_submodule(owner)._modules[last] = lora.layer  # noqa: SLF001


def published(attached: dict[str, Lora]) -> dict[str, Tensor]:
    """Return the factors under the published keys."""
    state = {}
    for name, lora in attached.items():
        state[f"{name}.lora_down.weight"] = lora.down.detach().clone()
        state[f"{name}.lora_up.weight"] = lora.up.detach().clone()
        state[f"{name}.alpha"] = torch.tensor(float(architecture.LORA_RANK))
    return state


def student(  # noqa: PLR0913, PLR0915 - the parts of a model; one loop, its state loaded and saved
    folder: Path,
    steps: int,
    rounds: int,
    device: torch.device,
    *,
    lean: Lean,
    make: Conditioner,
    bank: Bank,
    flat: FlatVae,
    taught: Sequence[Lesson],
    course: Course = ALL_STEPS,
    start: dict[str, Tensor] | None = None,
    seed: int = 4,
) -> dict[str, Tensor]:
    """Distil for a number of Lightning steps, one walk per round; return the LoRA's state.

    Resumes from `folder`/lightning-N.pt, with the course's name after N. `start` is a LoRA to start
    from; without it, lora_up starts at zero.
    """
    file, transformer = folder / f"lightning-{steps}{course.name}.pt", lean.transformer
    state = start or architecture.random_lora(transformer, seed, 0.0)
    first = 0
    saved = None
    if file.exists():
        saved = torch.load(file, map_location=device, weights_only=True)
        state, first = saved["state"], saved["round"]
    transformer.requires_grad_(False)
    flat.requires_grad_(False)
    attached = attach(transformer, state)
    factors = [w for lora in attached.values() for w in (lora.down, lora.up)]
    optimiser = torch.optim.AdamW(factors, course.rate, (0.9, 0.98), weight_decay=0.0)
    if saved is not None:
        optimiser.load_state_dict(saved["optimiser"])
    levels = sigmas(steps, lightning=True)
    chosen = [one for i, one in enumerate(taught) if TURNS[i % len(TURNS)] in course.turns]
    rng = random.Random(seed * 1_000_003 + first)
    began, errors, seen = time.monotonic(), list[float](), list[float]()
    for turn in range(first, rounds):
        factor = min(1.0, (turn + 1) / 20, max(0.02, (rounds - turn) / (course.falling * rounds)))
        for group in optimiser.param_groups:
            group["lr"] = course.rate * factor
        lesson = rng.choice(chosen)
        with torch.no_grad():
            prompt = condition(make, bank, lesson.samples, device)
        x, target = lesson.noise.to(device), lesson.target.to(device)
        weight = weights(bank, lesson.samples).to(device)
        for level, following in itertools.pairwise(levels):
            t = torch.full((len(x),), level, device=device)
            learning = following == 0.0 or not course.last_step_only
            with torch.set_grad_enabled(learning):
                v = lean(x, t, prompt)
            reached = x - level * v
            x = x + (following - level) * v.detach()
            if not learning:
                continue
            each = (weight * (reached - target).square()).mean((1, 2))
            loss = _relative(each, LEAST_ERROR)
            if following == 0.0:
                some = rng.sample(range(len(x)), course.decoded)
                apart = _apart(flat, bank, reached[some], target[some], bf16=lean.bf16)
                loss = loss + course.pixels * _relative(apart, LEAST_SEEN)
                seen += apart.detach().tolist()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(factors, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        errors.append(float((x - target).square().mean()))
        if (turn + 1) % 25 == 0 or turn + 1 == rounds:
            print(
                f"lightning {steps}{course.name}, {turn + 1}/{rounds}: error to the teacher "
                f"{sum(errors) / len(errors):.4f}, of pixels {statistics.median(seen):.6f}, "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
            errors, seen = [], []
            state = {k: v.cpu() for k, v in published(attached).items()}
            torch.save(
                {"state": state, "optimiser": optimiser.state_dict(), "round": turn + 1}, file
            )
    state = {k: v.cpu() for k, v in published(attached).items()}
    detach(transformer, attached)
    return state
