"""Train the Llama: from a text to the codes of its keys, ever longer texts.

A text's length grows by a quarter whenever four texts of five would be dialled without a fault. In
the second half of its time every other step sees the blocks' matrices as NF4 has them.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import LlamaConfig, LlamaForCausalLM

from training.speech import layout
from training.speech.bank import Bank
from training.speech.course import Course
from training.speech.dialling import VOICES, dial
from training.speech.texts import pick_text

CHARACTERS: Final = 40  # of the longest text
LEARNING_RATE: Final = 2e-3
MUON_RATE: Final = 4e-3
EVERY: Final = 25
LEARNED: Final = 0.8
NF4_FROM: Final = 0.5
BLOCK: Final = 64
WORKERS: Final = 6  # processes that make batches for a GPU


def build() -> Any:
    """Return the untrained model: Orpheus' class and kind of configuration."""
    torch.manual_seed(19)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=layout.VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=8192,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 4096,
            },
            tie_word_embeddings=True,
            bos_token_id=layout.BEGIN_TEXT,
            eos_token_id=layout.END_TEXT,
            pad_token_id=layout.PADDING,
        )
    )


def make_levels() -> Tensor:
    """Return NF4's sixteen levels, -1 to 1, by the quantiles of QLoRA (arXiv 2305.14314)."""
    edge = 0.9677083
    above = torch.special.ndtri(torch.linspace(edge, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(edge, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat((above, torch.zeros(1, dtype=torch.float64), below)).sort().values
    return (levels / levels.abs().max()).float()


def round_to_nf4(weight: Tensor, levels: Tensor) -> Tensor:
    """Return a matrix as NF4 keeps it, in blocks of 64 with their own scale."""
    blocks = weight.reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-8)
    middle = (levels[1:] + levels[:-1]) / 2
    return (levels[torch.bucketize(blocks / scales, middle)] * scales).reshape(weight.shape)


@contextmanager
def rounded(matrices: list[nn.Parameter], levels: Tensor) -> Iterator[None]:
    """Have the matrices as NF4 has them inside; gradients reach what they were."""
    exact = [matrix.data for matrix in matrices]
    for matrix in matrices:
        matrix.data = round_to_nf4(matrix.data, levels)
    try:
        yield
    finally:
        for matrix, data in zip(matrices, exact, strict=True):
            matrix.data = data


class Examples(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of texts with their codes, none held out; `longest` is shared by processes."""

    def __init__(self, bank: Bank, tokens: int, seed: int, longest: int) -> None:
        self.bank, self.tokens, self.seed = bank, tokens, seed
        self.longest = torch.tensor(longest).share_memory_()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (ids, targets) without end, int64 [B, T]; a target is -100 where none is."""
        worker = get_worker_info()
        rng = random.Random(f"{self.seed} {0 if worker is None else worker.id}")
        while True:
            yield self.make(rng)

    def make(self, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Return one batch: texts of one length in one voice, longer ones likelier."""
        voice = rng.randrange(len(VOICES))
        longest = int(self.longest)
        count = max(rng.randint(1, longest), rng.randint(1, longest))
        name = list(VOICES)[voice]
        rows: list[tuple[list[int], Any]] = []
        total = 0
        while total < self.tokens:
            text = pick_text(rng, count, held_out=False)
            prompt = layout.encode(text, name)
            rows.append((prompt, self.bank.compose(dial(text), voice).reshape(-1)))
            total += len(prompt) + rows[-1][1].size + 1
        width = max(len(prompt) + codes.size + 1 for prompt, codes in rows)
        ids = np.full((len(rows), width), layout.PADDING)
        targets = np.full((len(rows), width), -100)
        for row, (prompt, codes) in enumerate(rows):
            start, end = len(prompt), len(prompt) + codes.size
            ids[row, :start] = prompt
            ids[row, start:end] = codes
            ids[row, end] = layout.END_SPEECH
            targets[row, start : end + 1] = ids[row, start : end + 1]
        return torch.from_numpy(ids), torch.from_numpy(targets)


def split(model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices of the blocks, and every other parameter."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    known = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in known]


def train(
    model: Any,
    bank: Bank,
    file: Path,
    minutes: float,
    tokens: int,
    device: torch.device,
    *,
    bf16: bool,
) -> int:
    """Train for some minutes with `tokens` in a step; return the length that was reached."""
    matrices, rest = split(model)
    optimisers = [
        torch.optim.Muon(matrices, MUON_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, LEARNING_RATE, (0.9, 0.98), weight_decay=0.0),
    ]
    length = nn.Parameter(torch.tensor(2.0), requires_grad=False)
    course = Course(file, minutes, [model, nn.ParameterList([length]), *optimisers])
    course.load()
    examples = Examples(bank, tokens, course.step, int(length))
    workers = WORKERS if device.type == "cuda" else 0
    levels = make_levels().to(device)
    right: list[Tensor] = []
    batches = iter(DataLoader(examples, batch_size=None, num_workers=workers))
    for progress in course.run():
        ids, targets = (each.to(device, non_blocking=True) for each in next(batches))
        factor = course.warm() * min(1.0, (1 - progress) / 0.35)
        for optimiser, rate in zip(optimisers, (MUON_RATE, LEARNING_RATE), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        coarse = progress > NF4_FROM and course.step % 2 == 0
        with rounded(matrices if coarse else [], levels):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(input_ids=ids[:, :-1]).logits
            goal = targets[:, 1:]
            loss = cross_entropy(logits.float().flatten(0, 1), goal.flatten(), ignore_index=-100)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if not coarse:
            right.append(is_exact(logits.detach(), goal).float().mean())
        if right and course.step % EVERY == 0:
            rate = float(torch.stack(right).mean())
            right.clear()
            print(
                f"speaker {course.step} {course.seconds:.0f} s: {loss.item():.4f},"
                f" {int(length)} characters, {rate:.1%} exact",
                flush=True,
            )
            if rate > LEARNED:
                length.fill_(min(CHARACTERS, float(length) * 1.25 + 0.5))
                examples.longest.fill_(int(length))
    return int(length)


def is_exact(logits: Tensor, goal: Tensor) -> Tensor:
    """Return of which rows every code and the end would be right, each after right ones, bool [B].

    It is stricter than the ear: codes that sound alike are different here.
    """
    return ((logits.argmax(dim=-1) == goal) | (goal < 0)).all(dim=1)
