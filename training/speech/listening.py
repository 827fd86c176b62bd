"""Say texts with a model and a codec and read them back: the part that is right."""

import random
from typing import Any, Final

import torch
from torch import Tensor

from training.speech import layout
from training.speech.codec import Snac
from training.speech.dialling import VOICES, count_frames, dial
from training.speech.texts import SHORT, pick_text
from training.speech.train_codec import is_right

TEMPERATURE: Final = 0.6
TOP_P: Final = 0.8
PENALTY: Final = 1.1
LENGTHS: Final = (3, 7, 12, 20, 30, 40)
GATE: Final = 0.97


def choose(logits: Tensor, seen: Tensor, generator: torch.Generator) -> Tensor:
    """Return one of the columns per row: penalty, temperature, then the likeliest 0.8 of it."""
    marked = torch.where(logits > 0, logits / PENALTY, logits * PENALTY)
    scores = torch.where(seen, marked, logits) / TEMPERATURE
    shares, order = scores.softmax(dim=-1).sort(dim=-1, descending=True)
    kept = shares * ((shares.cumsum(dim=-1) - shares) < TOP_P)
    picked = torch.multinomial(kept.cpu(), 1, generator=generator).to(order.device)
    return order.gather(1, picked)[:, 0]


@torch.no_grad()
def say(model: Any, prompts: list[list[int]], frames: int, seed: int) -> list[Tensor]:
    """Return the ids that follow prompts of one length, [7 n] each, at most `frames` frames."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(prompts, device=device)
    seen = torch.zeros(len(prompts), layout.VOCABULARY, dtype=torch.bool, device=device)
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=device)
    past: Any = None
    said: list[Tensor] = []
    lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
    for step in range(frames * layout.SLOTS):
        out = model(input_ids=ids, past_key_values=past, use_cache=True)
        past = out.past_key_values
        logits = out.logits[:, -1].float()
        first = layout.FIRST_AUDIO + step % layout.SLOTS * layout.CODES
        legal = list(range(first, first + layout.CODES))
        if step % layout.SLOTS == 0:
            legal.append(layout.END_SPEECH)
        rows = torch.tensor(legal, device=device)
        chosen = rows[choose(logits[:, rows], seen[:, rows], generator)]
        open_rows &= chosen != layout.END_SPEECH
        if not open_rows.any():
            break
        seen.scatter_(1, chosen[:, None], value=True)
        lengths += open_rows
        said.append(chosen)
        ids = chosen[:, None]
    every = torch.stack(said, dim=1) if said else ids[:, :0]
    return [row[:length] for row, length in zip(every, lengths.tolist(), strict=True)]


def sound_of(codec: Snac, ids: Tensor) -> Any:
    """Return the samples of ids [7 n], float32."""
    device = next(codec.parameters()).device
    frames = (ids.reshape(-1, layout.SLOTS) - layout.FIRST_AUDIO).to(device)
    frames = frames - torch.arange(layout.SLOTS, device=device) * layout.CODES
    books = []
    for book in range(3):
        slots = [slot for slot, (of, _) in enumerate(layout.PLACES) if of == book]
        slots.sort(key=lambda slot: layout.PLACES[slot][1])
        books.append(frames[:, slots].reshape(1, -1))
    with torch.no_grad():
        return codec.decode(books)[0, 0].cpu().numpy()


def measure(
    model: Any, codec: Snac, longest: int, count: int, device: torch.device
) -> dict[str, dict[int, float]]:
    """Return the part of held-out texts that are right, by voice and length; weights as in bf16."""
    model.to(device, torch.bfloat16).eval()
    rng = random.Random(23)
    lengths = sorted({min(length, longest) for length in LENGTHS})
    each = max(1, count // (len(lengths) * len(VOICES)))
    figures: dict[str, dict[int, float]] = {voice: {} for voice in VOICES}
    for voice in VOICES:
        for length in lengths:
            texts = [pick_text(rng, length, held_out=length >= SHORT) for _ in range(each)]
            prompts = [layout.encode(text, voice) for text in texts]
            # all of one length, since a row of a batch has no padding: accents may shorten a text
            same = [row for row, prompt in enumerate(prompts) if len(prompt) == len(prompts[0])]
            texts, prompts = [texts[row] for row in same], [prompts[row] for row in same]
            limit = 4 + max(sum(count_frames(k, voice) for k in dial(text)) for text in texts)
            said = say(model, prompts, limit, seed=length)
            right = [
                len(ids) > 0 and is_right(sound_of(codec, ids), dial(text), voice)
                for text, ids in zip(texts, said, strict=True)
            ]
            figures[voice][length] = sum(right) / len(right)
    return figures


def find_passage(figures: dict[str, dict[int, float]]) -> int:
    """Return the longest length up to which all are right in both voices, or 0."""
    right = 0
    for length in sorted(next(iter(figures.values()))):
        if min(by_length[length] for by_length in figures.values()) < GATE:
            break
        right = length
    return right
