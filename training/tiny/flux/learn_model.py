"""Stage 2: text encoder and transformer together, on all tasks at once, by flow matching.

x_t = (1 - t) x_0 + t noise, and the model predicts noise - x_0. The matrices of the blocks are
trained by Muon, everything else by AdamW. No prompt is dropped: the model has no guidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from training.tiny.flux.flow import Flow, Given
from training.tiny.flux.pace import Pace
from training.tiny.flux.stored import Average, Stage
from training.tiny.flux.tables import Examples, Tables

RATE: Final = 2e-3
MUON_RATE: Final = 4e-3
SHIFT: Final = 4.0  # noise levels spread as four steps of 36 tokens (shift 7), a little lower
OBJECT_WEIGHT: Final = 3.0  # of a token that shows the object, relative to one that does not
DECAY: Final = 0.995
DRAWN: Final = 8  # places of the padding, of some 480
LOGGED: Final = 20
SAVED: Final = 120.0
# A step's batches: slots for references, and the share of each task.
MIXED: Final = (
    (2, {"image": 0.4, "edit": 0.32, "describe": 0.08, "exchange": 0.12, "like": 0.08}),
)
APART: Final = (  # the same in batches of one length each: less to compute, more to launch
    (0, {"image": 0.4}),
    (1, {"edit": 0.32, "describe": 0.08}),
    (2, {"exchange": 0.12, "like": 0.08}),
)
Mix = Sequence[tuple[int, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Bank:
    """All training pictures: `latents` (J, S, 36, 64) normalised and packed, `shown` (J, S, 36).

    `shown` is True where a token shows the object.
    """

    latents: Tensor
    shown: Tensor

    def weights(self, examples: Examples) -> Tensor:
        """Return the weight of each token (B, 36, 1) in the loss, 1 on average."""
        shown = self.shown[examples.jitter, examples.target]
        weight = 1 + (OBJECT_WEIGHT - 1) * shown.float()
        return (weight / weight.mean())[..., None]

    def targets(self, examples: Examples) -> Tensor:
        """Return the packed latents (B, 36, 64) of the drawn scenes."""
        return self.latents[examples.jitter, examples.target]

    def references(self, examples: Examples) -> Tensor:
        """Return the packed latents (B, R, 36, 64) of the references."""
        return self.latents[examples.references[..., 0], examples.references[..., 1]]


def conditioned(flow: Flow, bank: Bank, examples: Examples, drawn: int = DRAWN) -> Given:
    """Return what a batch of examples is drawn from."""
    references = bank.references(examples)
    return flow.condition(examples.ids, examples.real, references, examples.logits, drawn)


def flow_loss(flow: Flow, bank: Bank, examples: Examples) -> Tensor:
    """Return the weighted flow-matching loss of each example (B,) at random noise levels."""
    clean = bank.targets(examples)
    t = torch.rand(len(clean), device=clean.device)
    t = SHIFT * t / (1 + (SHIFT - 1) * t)
    noise = torch.randn_like(clean)
    noisy = torch.lerp(clean, noise, t[:, None, None])
    out = flow(noisy, t, conditioned(flow, bank, examples))
    each: Tensor = (bank.weights(examples) * (out - (noise - clean)).square()).mean((1, 2))
    return each


def optimisers_of(flow: Flow, scale: float = 1.0) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of blocks and layers, AdamW for the rest, rates times `scale`.

    Muon's rate is matched to AdamW's: an update of root mean square 0.2 times the rate.
    """
    matrices, rest = list[nn.Parameter](), list[nn.Parameter]()
    for name, weight in flow.learned():
        inner = ("blocks." in name or "layers." in name) and weight.dim() == 2
        (matrices if inner else rest).append(weight)
    muon: Any = torch.optim.Muon(
        matrices, MUON_RATE * scale, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(rest, RATE * scale, (0.9, 0.98), weight_decay=0.0, fused=True)
    for optimiser in (muon, adam):
        for group in optimiser.param_groups:
            group["full"] = group["lr"]
    return [muon, adam]


def set_rate(optimisers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Set every rate to a factor of its full one."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["full"] * factor


def update(optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Take one step along the gradients, which are clipped to a norm of 1."""
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], 1.0)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def split(shares: Mapping[str, float], batch: int) -> dict[str, int]:
    """Return how many examples of each task a batch has."""
    return {task: max(1, round(share * batch)) for task, share in shares.items()}


def train(
    stage: Stage, flow: Flow, tables: Tables, bank: Bank, pace: Pace, batch: int, mix: Mix
) -> None:
    """Train for `pace`; the model ends with averaged weights.

    A stage that is done is loaded, and one that was begun goes on.
    """
    finished = stage.finished(flow.device)
    if finished is not None:
        flow.load_state_dict(finished)
        return
    average = Average(flow, DECAY)
    optimisers = optimisers_of(flow)
    pace.spent = stage.resume(flow, average, optimisers)
    step, told, saved, since = 0, pace.share, pace.now, 0
    losses: dict[str, Tensor] = {}
    while pace.share < 1:
        set_rate(optimisers, pace.rate(0.4))
        for slots, shares in mix:
            counts = split(shares, batch)
            examples = tables.sample(counts, slots)
            each = flow_loss(flow, bank, examples)
            (each.sum() / batch).backward()
            parts = zip(counts, each.detach().split(list(counts.values())), strict=True)
            for task, part in parts:
                losses[task] = losses.get(task, part.new_zeros(())) + part.mean()
        update(optimisers)
        average.follow()
        step, since = step + 1, since + 1
        if step % 10 == 0 and flow.device.type == "cuda":
            torch.cuda.synchronize()
        if pace.share - told >= 1 / LOGGED or pace.share == 1:
            told = pace.share
            shown = ", ".join(f"{task} {float(loss) / since:.3f}" for task, loss in losses.items())
            print(f"model {step} x {batch}: {shown}, {pace.now:.0f} s", flush=True)
            losses, since = {}, 0
        if pace.now - saved > SAVED:
            saved = pace.now
            stage.save(flow, average, optimisers, pace.now)
    flow.load_state_dict(average.weights)
    stage.finish(flow.state_dict())
