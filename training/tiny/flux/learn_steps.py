"""Stages 3 and 4: the model's own pictures in many steps, and how to draw them in four.

The model, as teacher, draws pictures from stored noise once; one that the checker does not read as
asked is replaced by the drawn scene. Then the model takes its own four steps from the same noise,
and at every step its prediction of x_0 is pulled towards the teacher's picture, so that it learns
on the states that it will meet. The last prediction is also compared in decoded pixels.
"""

import itertools
import math
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
DECAY: Final = 0.99
LEAST_ERROR: Final = 0.002  # in normalised latents: too small to be seen once decoded
LEAST_SEEN: Final = 0.00005  # in pixels of 0..1
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


def seen_in(vae: Any, tokens: Tensor, *, bf16: bool) -> Tensor:
    """Return frames (B, 3, H, W) of normalised packed latents."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16):
        return decode(vae, unpack(restore(vae, tokens)))


@torch.no_grad()
def lessons(
    flow: Flow,
    vae: Any,
    tables: Tables,
    bank: Bank,
    hands: Hands,
    pace: Pace,
    batch: int,
    mix: Mix,
    least: int,
) -> list[tuple[Examples, Tensor, Tensor]]:
    """Return batches of examples, their noise and what is to be drawn from it.

    At least so many of each kind of batch, and more until `pace` is over.
    """
    made: list[tuple[Examples, Tensor, Tensor]] = []
    asked = kept = 0
    while len(made) < least * len(mix) or pace.share < 1:
        slots, shares = mix[len(made) % len(mix)]
        counts = {task: max(1, round(share * batch)) for task, share in shares.items()}
        if "image" in counts:  # most of the words leave nothing free
            counts["whole"] = counts["image"] - counts["image"] // 3
            counts["image"] //= 3
        examples = tables.sample(counts, slots)
        target = bank.targets(examples)
        noise = torch.randn_like(target)
        drawn = teach(flow, bank, examples, noise)
        frames = torch.cat([seen_in(vae, part, bf16=flow.bf16) for part in drawn.split(128)])
        scenes = [tables.scenes[i] for i in examples.target.tolist()]
        bad = wrong(hands.read(frames), scenes, examples.fixed.tolist())
        chosen = torch.tensor(bad, device=target.device)[:, None, None]
        made.append((examples, noise, torch.where(chosen, target, drawn)))
        asked, kept = asked + len(bad), kept + len(bad) - sum(bad)
        if len(made) % 5 == 0:
            print(
                f"teacher {len(made)} x {batch}: {kept}/{asked} right, {pace.now:.0f} s", flush=True
            )
    return made


def relative(each: Tensor, least: float) -> Tensor:
    """Return the mean of errors (B,) divided by themselves, so that each picture pulls equally."""
    return (each / (each.detach() + least)).mean()


def train(
    stage: Stage,
    flow: Flow,
    vae: Any,
    bank: Bank,
    taught: list[tuple[Examples, Tensor, Tensor]],
    pace: Pace,
    decoded: int,
) -> None:
    """Distil for `pace`; the model ends with averaged weights. `decoded` pictures a batch are seen.

    A stage that was begun goes on.
    """
    average = Average(flow, DECAY)
    optimisers = optimisers_of(flow, SLOWER)
    pace.spent = stage.resume(flow, average, optimisers)
    vae.requires_grad_(requires_grad=False)
    walk = levels(STEPS, shift_of(STEPS))
    turn, told, saved, since = 0, pace.share, pace.now, 0
    errors = torch.zeros(STEPS + 1, device=flow.device)
    while pace.share < 1:
        examples, noise, target = taught[int(torch.randint(len(taught), ()))]
        weight = bank.weights(examples)
        set_rate(optimisers, pace.rate(0.7))
        x = noise
        for i, (level, following) in enumerate(itertools.pairwise(walk)):
            t = x.new_full((len(x),), level).bfloat16().float()  # as a pipeline in bf16 tells it
            v = flow(x, t, conditioned(flow, bank, examples))
            reached = x - level * v
            each = (weight * (reached - target).square()).mean((1, 2))
            loss = relative(each, LEAST_ERROR)
            errors[i] += each.detach().mean()
            if following == 0.0:
                some = torch.randperm(len(x), device=x.device)[:decoded]
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
