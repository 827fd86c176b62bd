"""Stage 2: train the transformer and the language model together, for both tasks at once.

Flow matching: x_t = (1 - t) x_0 + t noise, and the model predicts noise - x_0. A step holds several
groups; the prompts of a group share one phrase, and so one length, because every known word is one
token: nothing is padded, as in the pipelines. One prompt in ten is dropped (" ", what CFG sends).
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from builder.tiny import phrases, world
from builder.tiny.bank import Bank
from builder.tiny.conditioning import Conditioner

GROUP = 8
LEARNING_RATE = 1.5e-3
DROPPED = 0.1
SHIFT = 1.8  # noise levels as the base schedule spreads them, a little higher
OBJECT_WEIGHT = 3.0  # the loss of a token that shows the object, over one that does not
EMA = 0.998
TASKS = ("image", "edit", "exchange")
STEPS = (("image", "edit", "image", "edit"), ("image", "edit", "image", "exchange"))  # by turns
EDIT_PARTS = ("colour", "background", "shape", "shape", "position", "size")


@dataclass(slots=True)
class Sample:
    """One training example: jitter, indices of the target's scene and of the references' scenes.

    A reference is (jitter, scene). `fixed` names the parts of the scene that the prompt fixes.
    """

    jitter: int
    target: int
    prompt: str
    references: list[tuple[int, int]] = field(default_factory=list)
    fixed: tuple[str, ...] = phrases.PARTS


class Tasks:
    """Draw groups of training examples from the bank's scenes, none held out."""

    def __init__(self, bank: Bank, seed: int) -> None:
        self.rng = random.Random(seed)
        self.scenes = bank.scenes
        self.jitters = len(bank.latents)
        self.index = {scene: i for i, scene in enumerate(bank.scenes)}

    def group(self, task: str, count: int, *, dropping: bool = True) -> list[Sample]:
        """Return `count` examples of "image", "edit" or "exchange" in one phrase."""
        rng = self.rng
        style = rng.randrange(3)  # as written; a capital first; a full stop last
        part = rng.choice(EDIT_PARTS)
        group = {"image": phrases.PROMPTS, "exchange": phrases.EXCHANGES}.get(task)
        phrase = rng.choice(phrases.EDITS[part] if group is None else group)
        dropped = dropping and rng.random() < DROPPED
        made = [self._one(task, part, phrase) for _ in range(count)]
        for sample in made:
            text = sample.prompt
            text = text[0].upper() + text[1:] if style == 1 else text + "." * (style == 2)
            sample.prompt = " " if dropped else text
        return made

    def _one(self, task: str, part: str, phrase: str) -> Sample:
        rng, jitter = self.rng, self.rng.randrange(self.jitters)
        while True:
            first = rng.randrange(len(self.scenes))
            scene = self.scenes[first]
            if task == "image":
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
                wanted = phrases.exchange(scene, other, phrase).scene
                if other.background != scene.colour and wanted in self.index:
                    pairs = [(jitter, first), (rng.randrange(self.jitters), second)]
                    return Sample(jitter, self.index[wanted], phrase, pairs)


def condition(
    make: Conditioner, bank: Bank, samples: Sequence[Sample], device: torch.device
) -> tuple[Tensor, Tensor | None, list[list[tuple[int, int, int]]]]:
    """Return prompt embeddings, packed reference latents and img_shapes of one group."""
    pictures = len(samples[0].references)
    ids = [make.ids(sample.prompt, pictures) for sample in samples]
    vision = latents = None
    if pictures:
        pairs = torch.tensor([sample.references for sample in samples])
        vision = bank.vision[pairs[..., 0], pairs[..., 1]].flatten(0, 2).to(device)
        latents = bank.latents[pairs[..., 0], pairs[..., 1]].flatten(1, 2).to(device)
    embeds = make([one for one, _ in ids], ids[0][1], vision)
    side = world.SIDE // 16
    return embeds, latents, [[(1, side, side)] * (1 + pictures)] * len(samples)


def velocity(
    transformer: Any, noisy: Tensor, t: Tensor, conditions: tuple[Tensor, Tensor | None, Any]
) -> Tensor:
    """Return the predicted noise - x_0 (B, 36, 64) at times t (B,) in 0..1."""
    embeds, references, shapes = conditions
    tokens = noisy if references is None else torch.cat((noisy, references), dim=1)
    out: Tensor = transformer(
        hidden_states=tokens,
        encoder_hidden_states=embeds,
        timestep=t,
        img_shapes=shapes,
        return_dict=False,
    )[0]
    return out[:, : noisy.shape[1]]


@torch.no_grad()
def initialise(transformer: Any, text_encoder: Any, seed: int) -> None:
    """Start where training is quick.

    Modulation, norm_out and proj_out are zero. Word embeddings have a spread of 0.5, so that the
    words are told apart from the first step, and the vision tower's output is brought near it.
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


def flow_loss(
    transformer: Any,
    make: Conditioner,
    bank: Bank,
    samples: Sequence[Sample],
    device: torch.device,
) -> Tensor:
    """Return the weighted flow-matching loss of one group at random noise levels."""
    jitters = torch.tensor([sample.jitter for sample in samples])
    targets = torch.tensor([sample.target for sample in samples])
    clean = bank.latents[jitters, targets].to(device)
    weight = 1 + (OBJECT_WEIGHT - 1) * bank.shown[jitters, targets].float().to(device)
    t = torch.rand(len(samples), device=device)
    t = SHIFT * t / (1 + (SHIFT - 1) * t)
    noise = torch.randn_like(clean)
    noisy = torch.lerp(clean, noise, t[:, None, None])
    out = velocity(transformer, noisy, t, condition(make, bank, samples, device))
    error = (out - (noise - clean)).square().mean(dim=2)
    return (weight * error).sum() / weight.sum()


def trained(transformer: Any, text_encoder: Any) -> nn.ModuleDict:
    """Return what stage 2 trains; the vision tower and lm_head stay as they were initialised."""
    return nn.ModuleDict({"transformer": transformer, "text": text_encoder.model.language_model})


def train(
    folder: Path,
    steps: int,
    device: torch.device,
    *,
    transformer: Any,
    text_encoder: Any,
    tokenizer: Any,
    bank: Bank,
    seed: int = 2,
) -> None:
    """Train to `steps`, resuming from `folder`/model.pt; the modules end with averaged weights."""
    both = trained(transformer, text_encoder).to(device)
    average = {name: weight.detach().clone() for name, weight in both.state_dict().items()}
    decay = [p for p in both.parameters() if p.dim() > 1]
    rest = [p for p in both.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, LEARNING_RATE, (0.9, 0.98), fused=True)
    first, file = 0, folder / "model.pt"
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        both.load_state_dict(state["weights"])
        average = state["average"]
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    make = Conditioner(text_encoder, tokenizer)
    tasks = Tasks(bank, seed * 1_000_003 + first)
    torch.manual_seed(seed * 1_000_003 + first)
    began = time.monotonic()
    losses: dict[str, list[float]] = {task: [] for task in TASKS}
    for step in range(first, steps):
        factor = min(1.0, (step + 1) / 100, max(0.02, (steps - step) / (0.4 * steps)))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * factor
        for task in STEPS[step % 2]:
            samples = tasks.group(task, GROUP)
            loss = flow_loss(transformer, make, bank, samples, device)
            (loss / len(STEPS[0])).backward()  # type: ignore[no-untyped-call]
            losses[task].append(loss.item())
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            mix = 1 - min(EMA, (step + 1) / (step + 10))
            for name, weight in both.state_dict().items():
                average[name].lerp_(weight, mix)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            means = {task: sum(values) / max(1, len(values)) for task, values in losses.items()}
            losses = {task: [] for task in TASKS}
            shown = ", ".join(f"{task} {mean:.3f}" for task, mean in means.items())
            print(
                f"model {step + 1}/{steps}: {shown}, {time.monotonic() - began:.0f} s", flush=True
            )
            state = {
                "weights": both.state_dict(),
                "average": average,
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
            }
            torch.save(state, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
    both.load_state_dict(average)
