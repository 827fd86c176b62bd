"""Stage 2: train the transformer and the language model together, for both tasks at once.

Flow matching: x_t = (1 - t) x_0 + t noise, and the model predicts noise - x_0. A step has groups of
both tasks; prompts are padded to the task's longest and the padding is masked, where a pipeline
would not pad at all. One prompt in ten is dropped (" ", what CFG sends). The matrices of the blocks
are trained by Muon, everything else by AdamW.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.tiny import phrases, world
from training.tiny.bank import Bank
from training.tiny.conditioning import Conditioner
from training.tiny.lean import Conditions, Lean

GROUP = 64
LEARNING_RATE = 2e-3
MUON_RATE = 4e-3
DROPPED = 0.1
SHIFT = 2.0  # noise levels spread as by the base schedule, a little higher
OBJECT_WEIGHT = (
    3.0  # the loss weight of a token that shows the object, relative to one that does not
)
EMA = 0.999
EVERY = 100  # steps between log lines; the state is saved each time
TASKS = ("image", "edit", "exchange")
STEPS = (("image", "image", "edit"), ("image", "image", "edit"), ("image", "image", "exchange"))
PHRASES = {
    "image": phrases.PROMPTS,
    "whole": phrases.WHOLE,
    "exchange": phrases.EXCHANGES,
}
EDIT_PARTS = ("colour", "background", "shape", "shape", "position", "size")


@dataclass(slots=True)
class Sample:
    """One training example: its jitter, its target scene's index, and its references.

    A reference is (jitter, scene index). `fixed` are the parts of the scene that the prompt fixes.
    """

    jitter: int
    target: int
    prompt: str
    references: list[tuple[int, int]] = field(default_factory=list)
    fixed: tuple[str, ...] = phrases.PARTS


class Tasks:
    """Sample groups of training examples from the bank's scenes, none held out."""

    def __init__(self, bank: Bank, seed: int) -> None:
        self.rng = random.Random(seed)
        self.scenes = bank.scenes
        self.jitters = len(bank.latents)
        self.index = {scene: i for i, scene in enumerate(bank.scenes)}

    def group(self, task: str, count: int, *, dropping: bool = True) -> list[Sample]:
        """Return `count` examples of "image", "edit" or "exchange", in any of its phrases.

        "whole" is "image" in the phrases that fix all parts of a scene.
        """
        return [self._styled(task, dropping=dropping) for _ in range(count)]

    def _styled(self, task: str, *, dropping: bool) -> Sample:
        rng = self.rng
        style = rng.randrange(3)  # as written; a capital first; a full stop last
        part = rng.choice(EDIT_PARTS)
        group = PHRASES.get(task)
        phrase = rng.choice(phrases.EDITS[part] if group is None else group)
        sample = self._one(task, part, phrase)
        text = sample.prompt
        text = text[0].upper() + text[1:] if style == 1 else text + "." * (style == 2)
        sample.prompt = " " if dropping and rng.random() < DROPPED else text
        return sample

    def _one(self, task: str, part: str, phrase: str) -> Sample:
        rng, jitter = self.rng, self.rng.randrange(self.jitters)
        while True:
            first = rng.randrange(len(self.scenes))
            scene = self.scenes[first]
            if task in {"image", "whole"}:
                asked = phrases.describe(scene, phrase)
                return Sample(jitter, first, asked.prompt, fixed=asked.fixed)
            if task == "edit":
                after = phrases.change(scene, part, rng)
                if after in self.index:
                    prompt = phrases.instruct(scene, after, part, phrase).prompt
                    return Sample(jitter, self.index[after], prompt, [(jitter, first)])
            else:
                second = rng.randrange(len(self.scenes))
                other = self.scenes[second]
                result = phrases.exchange(scene, other, phrase).scene
                if other.background != scene.colour and result in self.index:
                    pairs = [(jitter, first), (rng.randrange(self.jitters), second)]
                    return Sample(jitter, self.index[result], phrase, pairs)


def condition(
    make: Conditioner, bank: Bank, samples: Sequence[Sample], device: torch.device
) -> Conditions:
    """Return the inputs of one group's pictures."""
    pictures = len(samples[0].references)
    ids, prefix, words = make.padded([sample.prompt for sample in samples], pictures)
    vision = latents = None
    if pictures:
        pairs = torch.tensor([sample.references for sample in samples])
        vision = bank.vision[pairs[..., 0], pairs[..., 1]].flatten(0, 2).to(device)
        latents = bank.latents[pairs[..., 0], pairs[..., 1]].flatten(1, 2).to(device)
    embeds = make(ids, prefix, vision)
    side = world.SIDE // 16
    shapes = [[(1, side, side)] * (1 + pictures)] * len(samples)
    return Conditions(embeds, words.to(device), latents, shapes)


@torch.no_grad()
def initialise(transformer: Any, text_encoder: Any, seed: int) -> None:
    """Initialise the weights so that training is fast.

    Modulation, norm_out and proj_out are zero. Word embeddings have a spread of 0.5, so that words
    differ from the first step on, and the vision tower's output gets a similar spread.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in transformer.transformer_blocks:
        for layer in (block.img_mod[1], block.txt_mod[1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    for layer in (transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    embed = text_encoder.model.language_model.embed_tokens
    embed.weight.normal_(0.0, 0.5, generator=generator)
    text_encoder.model.visual.merger.mlp[2].weight.normal_(0.0, 0.2, generator=generator)


def targets(bank: Bank, samples: Sequence[Sample]) -> Tensor:
    """Return a copy of the packed latents (B, 36, 64) of a group's drawn scenes."""
    jitters = torch.tensor([sample.jitter for sample in samples])
    return bank.latents[jitters, torch.tensor([sample.target for sample in samples])]


def weights(bank: Bank, samples: Sequence[Sample]) -> Tensor:
    """Return the weight of each token (B, 36, 1) in the loss, 1 on average: more for the object."""
    jitters = torch.tensor([sample.jitter for sample in samples])
    shown = bank.shown[jitters, torch.tensor([sample.target for sample in samples])]
    weight = 1 + (OBJECT_WEIGHT - 1) * shown.float()
    return (weight / weight.mean())[..., None]


def flow_loss(
    lean: Lean,
    make: Conditioner,
    bank: Bank,
    samples: Sequence[Sample],
    device: torch.device,
) -> Tensor:
    """Return the weighted flow-matching loss of one group at random noise levels."""
    clean = targets(bank, samples).to(device)
    weight = weights(bank, samples).to(device)
    t = torch.rand(len(samples), device=device)
    t = SHIFT * t / (1 + (SHIFT - 1) * t)
    noise = torch.randn_like(clean)
    noisy = torch.lerp(clean, noise, t[:, None, None])
    out = lean(noisy, t, condition(make, bank, samples, device))
    return (weight * (out - (noise - clean)).square()).mean()


def trained(transformer: Any, text_encoder: Any) -> nn.ModuleDict:
    """Return the modules of stage 2; the vision tower and lm_head stay as initialised."""
    return nn.ModuleDict({"transformer": transformer, "text": text_encoder.model.language_model})


def optimisers_of(transformer: Any, text_encoder: Any) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of blocks and language layers, AdamW for the rest.

    Muon's rate is matched to AdamW's: an update of root mean square 0.2 times the rate.
    """
    language = text_encoder.model.language_model
    inner = [*transformer.transformer_blocks.parameters(), *language.layers.parameters()]
    matrices = [p for p in inner if p.dim() == 2]
    known = {id(p) for p in matrices}
    every = trained(transformer, text_encoder).parameters()
    rest = [p for p in every if id(p) not in known]
    return [
        torch.optim.Muon(matrices, MUON_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, LEARNING_RATE, (0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def train(
    folder: Path,
    steps: int,
    device: torch.device,
    *,
    lean: Lean,
    make: Conditioner,
    text_encoder: Any,
    bank: Bank,
    seed: int = 2,
) -> None:
    """Train to `steps`, resuming from `folder`/model.pt; the modules end with averaged weights."""
    both = trained(lean.transformer, text_encoder).to(device)
    average = {name: weight.detach().clone() for name, weight in both.state_dict().items()}
    optimisers = optimisers_of(lean.transformer, text_encoder)
    first, file = 0, folder / "model.pt"
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        both.load_state_dict(state["weights"])
        average = state["average"]
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first = state["step"]
    tasks = Tasks(bank, seed * 1_000_003 + first)
    torch.manual_seed(seed * 1_000_003 + first)
    began = time.monotonic()
    losses: dict[str, list[float]] = {task: [] for task in TASKS}
    for step in range(first, steps):
        factor = min(1.0, (step + 1) / 100, max(0.02, (steps - step) / (0.4 * steps)))
        for optimiser, rate in zip(optimisers, (MUON_RATE, LEARNING_RATE), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        for task in STEPS[step % len(STEPS)]:
            samples = tasks.group(task, GROUP)
            loss = flow_loss(lean, make, bank, samples, device)
            (loss / len(STEPS[0])).backward()
            losses[task].append(loss.item())
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            mix = 1 - min(EMA, (step + 1) / (step + 10))
            for name, weight in both.state_dict().items():
                average[name].lerp_(weight, mix)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            means = {task: sum(values) / max(1, len(values)) for task, values in losses.items()}
            losses = {task: [] for task in TASKS}
            shown = ", ".join(f"{task} {mean:.3f}" for task, mean in means.items())
            print(
                f"model {step + 1}/{steps}: {shown}, {time.monotonic() - began:.0f} s", flush=True
            )
            state = {
                "weights": both.state_dict(),
                "average": average,
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                "step": step + 1,
            }
            torch.save(state, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
    both.load_state_dict(average)
