"""Stage 3: Lightning LoRAs, distilled from the base with true CFG.

The teacher's pictures are drawn once from stored noise; where the checker does not read one as
asked, the drawn scene takes its place. A student then walks its own 4 or 8 Lightning steps from the
same noise, without CFG, and at every step its prediction of x_0 is pulled to the teacher's picture,
so that it learns on the states that it will meet. Only the LoRA's weights learn.
"""

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from builder.tiny import architecture, checker
from builder.tiny.bank import Bank, unpack
from builder.tiny.conditioning import Conditioner
from builder.tiny.flat_vae import FlatVae
from builder.tiny.lean import Conditions, Lean
from builder.tiny.pixels import picture
from builder.tiny.train_model import Sample, Tasks, condition, targets, weights
from worker.engine import schedule

GROUP = 64
TEACHER_CFG = 4.0
LEARNING_RATE = 5e-4
LEAST_ERROR = 0.002  # of normalised latents: what a decoder does not show


def sigmas(steps: int, *, lightning: bool, tokens: int = 36) -> list[float]:
    """Return the noise levels of a walk, from 1 to 0: steps + 1 numbers."""
    walk = (
        schedule.lightning(steps, tokens)
        if lightning
        else schedule.schedule(architecture.SCHEDULER, steps, tokens)
    )
    return [float(level) for level in walk.sigmas]


@torch.no_grad()
def walk(
    lean: Lean,
    noise: Tensor,
    levels: Sequence[float],
    prompt: Conditions,
    negative: Conditions | None = None,
    scale: float = TEACHER_CFG,
) -> Tensor:
    """Return the packed latents at the end of an Euler walk; true CFG where `negative` is given.

    With CFG the result keeps the length of the conditional prediction, as the pipelines do.
    """
    x = noise
    for level, following in itertools.pairwise(levels):
        t = torch.full((len(x),), level, device=x.device)
        v = lean(x, t, prompt)
        if negative is not None:
            other = lean(x, t, negative)
            both = other + scale * (v - other)
            v = both * (v.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))
        x = x + (following - level) * v
    return x


@dataclass(slots=True)
class Lesson:
    """A group: its examples, their noise, and the teacher's latents."""

    samples: list[Sample]
    noise: Tensor
    target: Tensor


@torch.no_grad()
def _decode(flat: FlatVae, bank: Bank, latents: Tensor) -> Tensor:
    plain = unpack(latents.cpu()) * bank.std[:, None, None] + bank.mean[:, None, None]
    return flat.decode(plain.to(latents.device))


def lessons(  # noqa: PLR0913 - the parts of a model, and what to draw
    lean: Lean,
    make: Conditioner,
    bank: Bank,
    flat: FlatVae,
    count: int,
    device: torch.device,
    *,
    steps: int,
    turns: Sequence[str],
    seed: int,
) -> list[Lesson]:
    """Let the teacher draw `count` groups in `steps`; return what the student shall draw."""
    tasks = Tasks(bank, seed)
    torch.manual_seed(seed)
    levels = sigmas(steps, lightning=False)
    made: list[Lesson] = []
    asked = kept = 0
    for turn in range(count):
        samples = tasks.group(turns[turn % len(turns)], GROUP, dropping=False)
        blank = [Sample(s.jitter, s.target, " ", s.references) for s in samples]
        noise = torch.randn(GROUP, *bank.latents.shape[2:], device=device)
        with torch.no_grad():
            prompts = [condition(make, bank, some, device) for some in (samples, blank)]
        drawn = walk(lean, noise, levels, prompts[0], prompts[1])
        target = targets(bank, samples)
        for i, frame in enumerate(_decode(flat, bank, drawn)):
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
    """A LoRA's factors beside a frozen linear layer."""

    def __init__(self, layer: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus the factors' (alpha equals the rank)."""
        out: Tensor = self.layer(x)
        return out + (x @ self.down.T) @ self.up.T


def attach(transformer: Any, state: dict[str, Tensor]) -> dict[str, Lora]:
    """Put a LoRA in the published key format beside its layers; return them by module name."""
    attached = {}
    for name in architecture.lora_names():
        owner, _, last = name.rpartition(".")
        device = transformer.img_in.weight.device
        down, up = (state[f"{name}.lora_{end}.weight"].clone().to(device) for end in ("down", "up"))
        attached[name] = Lora(transformer.get_submodule(name), down, up)
        transformer.get_submodule(owner)._modules[last] = attached[name]  # noqa: SLF001
    return attached


def detach(transformer: Any, attached: dict[str, Lora]) -> None:
    """Take the LoRA off again."""
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


def student(  # noqa: PLR0913 - the parts of a model, and how long
    folder: Path,
    steps: int,
    rounds: int,
    device: torch.device,
    *,
    lean: Lean,
    make: Conditioner,
    bank: Bank,
    taught: Sequence[Lesson],
    start: dict[str, Tensor] | None = None,
    seed: int = 4,
) -> dict[str, Tensor]:
    """Distil for a number of Lightning steps, one walk a round; return the LoRA's state.

    Resumes from `folder`/lightning-N.pt. `start` is a LoRA to begin with (the other step count's);
    else lora_up starts at zero.
    """
    file, transformer = folder / f"lightning-{steps}.pt", lean.transformer
    state = start or architecture.random_lora(transformer, seed, 0.0)
    first = 0
    saved = None
    if file.exists():
        saved = torch.load(file, map_location=device, weights_only=True)
        state, first = saved["state"], saved["round"]
    transformer.requires_grad_(False)
    attached = attach(transformer, state)
    factors = [w for lora in attached.values() for w in (lora.down, lora.up)]
    optimiser = torch.optim.AdamW(factors, LEARNING_RATE, (0.9, 0.98), weight_decay=0.0)
    if saved is not None:
        optimiser.load_state_dict(saved["optimiser"])
    levels = sigmas(steps, lightning=True)
    rng = random.Random(seed * 1_000_003 + first)
    began, errors = time.monotonic(), []
    for turn in range(first, rounds):
        factor = min(1.0, (turn + 1) / 20, max(0.02, (rounds - turn) / (0.5 * rounds)))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * factor
        lesson = taught[rng.randrange(len(taught))]
        with torch.no_grad():
            prompt = condition(make, bank, lesson.samples, device)
        x, target = lesson.noise.to(device), lesson.target.to(device)
        weight = weights(bank, lesson.samples).to(device)
        for level, following in itertools.pairwise(levels):
            t = torch.full((len(x),), level, device=device)
            v = lean(x, t, prompt)
            each = (weight * (x - level * v - target).square()).mean((1, 2))
            # relative, by picture: where a prompt leaves a part free, few steps cannot follow the
            # teacher's choice, and those pictures' errors would drown all others
            loss = (each / (each.detach() + LEAST_ERROR)).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(factors, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            x = x + (following - level) * v.detach()
        errors.append(float((x - target).square().mean()))
        if (turn + 1) % 25 == 0 or turn + 1 == rounds:
            print(
                f"lightning {steps}, {turn + 1}/{rounds}: error to the teacher "
                f"{sum(errors) / len(errors):.4f}, {time.monotonic() - began:.0f} s",
                flush=True,
            )
            errors = []
            state = {k: v.cpu() for k, v in published(attached).items()}
            torch.save(
                {"state": state, "optimiser": optimiser.state_dict(), "round": turn + 1}, file
            )
    state = {k: v.cpu() for k, v in published(attached).items()}
    detach(transformer, attached)
    return state
