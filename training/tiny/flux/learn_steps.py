"""Stages 3 and 4: the model's own pictures in many steps, and how to draw them in four.

The model, as teacher, draws pictures from stored noise once; one that the checker does not read as
asked is replaced by the drawn scene. Then the model takes its own four steps from the same noise,
and at every step its prediction of x_0 is pulled towards the teacher's picture, so that it learns
on the states that it will meet. The last prediction is also compared in decoded pixels.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from training.tiny.flux.drawn import Hands, wrong
from training.tiny.flux.flow import TOKENS, Flow
from training.tiny.flux.learn_model import (
    Bank,
    Mix,
    conditioned,
    optimisers_of,
    set_rate,
    split,
    update,
)
from training.tiny.flux.learn_vae import decode, restore
from training.tiny.flux.pace import Pace
from training.tiny.flux.stored import Average, Stage
from training.tiny.flux.tables import Examples, Tables
from training.tiny.latents import unpack

STEPS: Final = 4
TEACHER_STEPS: Final = 14
TEACHER_SHIFT: Final = 3.0
TEACHER_DRAWN: Final = 32  # places of the padding: computed once for all its steps
SLOWER: Final = 0.25  # of the model's rates
DECAY: Final = 0.98
LEAST_ERROR: Final = 0.002  # in normalised latents: too small to be seen once decoded
LEAST_SEEN: Final = 0.00005  # in pixels of 0..1
DECODED: Final = 6  # one picture in so many is compared in pixels
PIXELS: Final = 1.0  # weight of the pixels against the latents
LOGGED: Final = 15
SAVED: Final = 120.0


def shift_of(steps: int, tokens: int = TOKENS) -> float:
    """Return e^mu of a number of steps and tokens: klein's empirical formula."""
    at_200 = 0.00016927 * tokens + 0.45666666
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return math.exp(slope * steps + at_200 - 200 * slope)


def levels(steps: int, shift: float) -> list[float]:
    """Return the noise levels of a walk, from 1 to 0: steps + 1 numbers."""
    even = (1 - i / steps for i in range(steps + 1))
    return [shift * s / (1 + (shift - 1) * s) for s in even]


@torch.no_grad()
def teach(flow: Flow, bank: Bank, examples: Examples, noise: Tensor) -> Tensor:
    """Return the packed latents that the model draws in many steps of the second order."""
    given = conditioned(flow, bank, examples, TEACHER_DRAWN)
    x, before, last = noise, 1.0, torch.zeros_like(noise)
    walk = levels(TEACHER_STEPS, TEACHER_SHIFT)
    for i, (level, following) in enumerate(itertools.pairwise(walk)):
        leap = following - level
        v = flow(x, x.new_full((len(x),), level), given)
        x = x + leap * (v + (v - last) / before * leap / 2 if i else v)
        last, before = v, leap
    return x


@dataclass(frozen=True, slots=True)
class Drawn:
    """All that is known of the world: its VAE, examples, pictures, and who draws and reads."""

    vae: Any
    tables: Tables
    bank: Bank
    hands: Hands


def seen_in(vae: Any, tokens: Tensor, *, bf16: bool) -> Tensor:
    """Return frames (B, 3, H, W) of normalised packed latents."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16):
        return decode(vae, unpack(restore(vae, tokens)))


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch of examples, their noise, and what is to be drawn from it (B, 36, 64)."""

    examples: Examples
    noise: Tensor
    target: Tensor

    def some(self, count: int) -> "Lesson":
        """Return so many of the batch, at random."""
        few = torch.randperm(len(self.noise), device=self.noise.device)[:count]
        names = Examples.__dataclass_fields__
        examples = Examples(**{name: getattr(self.examples, name)[few] for name in names})
        return Lesson(examples, self.noise[few], self.target[few])


@torch.no_grad()
def lesson(flow: Flow, world: Drawn, examples: Examples) -> tuple[Lesson, int]:
    """Return what the teacher draws of examples, and how many of its pictures are right."""
    target = world.bank.targets(examples)
    noise = torch.randn_like(target)
    drawn = teach(flow, world.bank, examples, noise)
    frames = torch.cat([seen_in(world.vae, part, bf16=flow.bf16) for part in drawn.split(128)])
    scenes = [world.tables.scenes[i] for i in examples.target.tolist()]
    bad = wrong(world.hands.read(frames), scenes, examples.fixed.tolist())
    chosen = torch.tensor(bad, device=target.device)[:, None, None]
    return Lesson(examples, noise, torch.where(chosen, target, drawn)), bad.count(False)


def lessons(flow: Flow, world: Drawn, pace: Pace, batch: int, mix: Mix, least: int) -> list[Lesson]:
    """Return at least so many lessons of each kind of batch, and more until `pace` is over."""
    made, right, asked = list[Lesson](), 0, 0
    while len(made) < least * len(mix) or pace.share < 1:
        slots, shares = mix[len(made) % len(mix)]
        counts = split(shares, batch)
        if "image" in counts:  # most of the words leave nothing free
            counts["whole"] = counts["image"] - counts["image"] // 3
            counts["image"] //= 3
        one, good = lesson(flow, world, world.tables.sample(counts, slots))
        made.append(one)
        right, asked = right + good, asked + len(one.noise)
        if len(made) % 5 == 0:
            print(f"teacher {len(made)}: {right}/{asked} right, {pace.now:.0f} s", flush=True)
    return made


def relative(each: Tensor, least: float) -> Tensor:
    """Return the mean of errors (B,) divided by themselves, so that each picture pulls equally."""
    return (each / (each.detach() + least)).mean()


def train(
    stage: Stage,
    flow: Flow,
    world: Drawn,
    taught: Sequence[Lesson],
    pace: Pace,
    batch: int,
) -> None:
    """Distil for `pace`, some of a lesson at a time; the model ends with averaged weights.

    A stage that was begun goes on.
    """
    average = Average(flow, DECAY)
    optimisers = optimisers_of(flow, SLOWER)
    pace.spent = stage.resume(flow, average, optimisers)
    bank, vae = world.bank, world.vae
    vae.requires_grad_(requires_grad=False)
    walk = levels(STEPS, shift_of(STEPS))
    turn, told, saved, since = 0, pace.share, pace.now, 0
    errors = torch.zeros(STEPS + 1, device=flow.device)
    while pace.share < 1:
        given = taught[int(torch.randint(len(taught), ()))].some(batch)
        examples, target, x = given.examples, given.target, given.noise
        weight = bank.weights(examples)
        set_rate(optimisers, pace.rate(0.7))
        for i, (level, following) in enumerate(itertools.pairwise(walk)):
            t = x.new_full((len(x),), level).bfloat16().float()  # as a pipeline in bf16 tells it
            v = flow(x, t, conditioned(flow, bank, examples))
            reached = x - level * v
            each = (weight * (reached - target).square()).mean((1, 2))
            loss = relative(each, LEAST_ERROR)
            errors[i] += each.detach().mean()
            if following == 0.0:
                some = torch.randperm(len(x), device=x.device)[: max(1, batch // DECODED)]
                ours, theirs = (
                    seen_in(vae, one[some], bf16=flow.bf16) for one in (reached, target)
                )
                apart = (ours - theirs).square().mean((1, 2, 3)) / 4
                loss = loss + PIXELS * relative(apart, LEAST_SEEN)
                errors[STEPS] += apart.detach().mean()
            loss.backward()
            update(optimisers)
            x = x + (following - level) * v.detach()
        average.follow()
        turn, since = turn + 1, since + 1
        if turn % 4 == 0 and flow.device.type == "cuda":
            torch.cuda.synchronize()
        if pace.share - told >= 1 / LOGGED or pace.share == 1:
            told = pace.share
            shown = " ".join(f"{error:.4f}" for error in (errors[:STEPS] / since).tolist())
            pixels = float(errors[STEPS]) / since
            print(
                f"steps {turn}: errors {shown}, of pixels {pixels:.6f}, {pace.now:.0f} s",
                flush=True,
            )
            errors.zero_()
            since = 0
        if pace.now - saved > SAVED:
            saved = pace.now
            stage.save(flow, average, optimisers, pace.now)
    flow.load_state_dict(average.weights)
    stage.finish(flow.state_dict())
