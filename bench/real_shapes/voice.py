"""Orpheus at its published size with random weights: our loop of frames, and generate's tokens.

Random weights never end by themselves, so the frames are counted and no attempt is given up: the
stage's own loop is driven, as a model drives it.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from bench.real_shapes import measure, weights
from bench.speech import CODEC, IDS, LANGUAGE, PROMPT
from worker.engine.device import reset_peak, synchronize
from worker.engine.quantise import Precision
from worker.engine.token_choice import Choosing
from worker.families.orpheus.codec import SnacDecoder, fold
from worker.families.orpheus.frames import Stage
from worker.families.orpheus.language import Language
from worker.families.orpheus.models import SLOTS, Speaking, TokenIds, read_speaking
from worker.families.orpheus.parts import build_language
from worker.families.orpheus.recipe import (
    CACHE_BYTES_PER_TOKEN,
    MOST_ROWS,
    SPEECH_RECIPE,
    STEP_BYTES,
    count_room,
)
from worker.families.orpheus.windows import Decoding

SPEECH_CHECKPOINT: Final = Path(__file__).resolve().parents[2] / "checkpoints" / "tiny-speech"
# The published model's own.
HOW: Final = Choosing(0.6, 0.8, 1.1)
SEED: Final = 1
# Past the first length that has a graph, so that there are two.
FRAMES: Final = 150
# Tokens of generate in frames: a bound of its time.
GENERATED: Final = 20


@dataclass(frozen=True, slots=True)
class Voice:
    """What is built: configurations, the ids, a prompt, and how many frames are written."""

    language: dict[str, Any]
    codec: dict[str, Any]
    speaking: Speaking
    prompt: Sequence[int]
    frames: int
    generated: int
    is_tiny: bool

    @property
    def ids(self) -> TokenIds:
        """Which ids mean what."""
        return self.speaking.ids


def find_voice(*, is_tiny: bool) -> Voice:
    """Return the published size, or the embedded checkpoint's."""
    if not is_tiny:
        return Voice(LANGUAGE, CODEC, Speaking(ids=IDS), PROMPT, FRAMES, GENERATED, is_tiny=False)
    language, about, codec = (
        json.loads((SPEECH_CHECKPOINT / path).read_text())
        for path in ("orpheus/config.json", "orpheus/worker.json", "snac/config.json")
    )
    speaking = read_speaking(about, Speaking())
    prompt = [*speaking.ids.before, 1, 2, 3, *speaking.ids.after]
    return Voice(language, codec, speaking, prompt, frames=8, generated=2, is_tiny=True)


class VoiceBuilt:
    """An Orpheus' weights of a precision, random, and its codec's."""

    def __init__(self, voice: Voice, precision: Precision, device: torch.device) -> None:
        self.voice, self.device = voice, device
        llama, width = build_language(voice.language), voice.language["hidden_size"]
        shape = (voice.language["vocab_size"], width)
        # rows of unit length, by which every token is about as likely
        self.table = weights.draw_normal("embed_tokens", shape, width**-0.5, device)
        ids = voice.ids
        self.text = self.table[: ids.first].cpu()
        self.language = Language(llama.model, ids, is_tied=True)
        self.language.codes = nn.Parameter(self.table[ids.first : ids.end], requires_grad=False)
        stop = self.table[ids.stop : ids.stop + 1]
        self.language.stop = nn.Parameter(stop, requires_grad=False)
        weights.build(self.language, device, precision, role="language", recipe=SPEECH_RECIPE)
        self.codec = build_random_codec(voice.codec).to(device)

    def make_stage(self, rows: int = 1) -> Stage:
        """Return where so many passages are written, with room for the longest."""
        room = count_room(self.voice.speaking)
        stage = Stage(self.language, self.text, rows=rows, room=room)
        stage.choose_by(HOW)
        return stage

    def count_read_bytes(self) -> int:
        """Return the bytes of weights that each token reads: the layers, and a slot's rows."""
        model = self.language.model
        layers: int = sum(one.nbytes for one in (*model.parameters(), *model.buffers()))
        return layers + self.voice.ids.codes * self.table.shape[1] * self.table.itemsize

    def build_stock(self) -> Any:
        """Return transformers' model over the very Linears of ours, with the complete table."""
        stock = build_language(self.voice.language)
        weights.share_leaves(stock.model, self.language.model)
        stock.model.embed_tokens.weight = nn.Parameter(self.table, requires_grad=False)
        stock.lm_head.weight = stock.model.embed_tokens.weight
        return stock.eval()


def build_random_codec(config: dict[str, Any]) -> SnacDecoder:
    """Return a decoder of random weights in float32, as small as trained ones."""
    torch.manual_seed(SEED)
    codec = SnacDecoder(config)
    for name, parameter in codec.named_parameters():
        if name.endswith(("norm", "direction")):
            nn.init.normal_(parameter, std=0.05)
    return fold(codec).eval().requires_grad_(requires_grad=False)


def begin(built: VoiceBuilt, stage: Stage, seed: int) -> None:
    """Read the prompt into every row."""
    for row in range(stage.rows):
        stage.begin(row, built.voice.prompt, seed + row)


def write(built: VoiceBuilt, stage: Stage, frames: int) -> list[list[int]]:
    """Write frames of every row; return those of the first, each a code of its slot."""
    last = built.voice.ids.codes - 1
    # a stop, which random weights may choose, is no code
    return [[min(code, last) for code in stage.step()[0]] for _ in range(frames)]


def time_frames(built: VoiceBuilt, stage: Stage, frames: int, repeats: int) -> float:
    """Return the milliseconds of a frame of every row, the median of several runs."""
    found = []
    for number in range(repeats):
        begin(built, stage, SEED + number)
        spent = measure.seconds(built.device, lambda: write(built, stage, frames))
        found.append(1000 * spent / frames)
    return statistics.median(found)


def time_first_sound(built: VoiceBuilt, stage: Stage) -> float:
    """Return the milliseconds from the prompt's tokens to the first samples on the host."""
    synchronize(built.device)
    start = time.perf_counter()
    begin(built, stage, SEED)
    decoding, frames = Decoding(built.codec, SEED, built.device), list[list[int]]()
    while not (windows := list(decoding.decode_ready(frames, is_end=False))):
        frames += write(built, stage, 1)
    windows[0].cpu()
    return 1000 * (time.perf_counter() - start)


def measure_speech(built: VoiceBuilt, repeats: int) -> dict[str, Any]:
    """Return what frames, prompts and samples take, with captured graphs and without."""
    voice, device = built.voice, built.device
    before = measure.held(device)
    reset_peak(device)
    stage = built.make_stage()
    begin(built, stage, SEED)
    frames: list[list[int]] = []
    first = measure.seconds(device, lambda: frames.extend(write(built, stage, voice.frames)))
    found: dict[str, Any] = {"frames": voice.frames, "first_s": round(first, 2)}
    found["graphs"] = stage._graphs.count  # noqa: SLF001 - no worker looks at them

    prompts = [measure.seconds(device, lambda: begin(built, stage, SEED)) for _ in range(repeats)]
    graphs = time_frames(built, stage, voice.frames, repeats)
    sounds = [time_first_sound(built, stage) for _ in range(repeats + 1)]
    several = built.make_stage(MOST_ROWS)
    begin(built, several, SEED)
    write(built, several, voice.frames)
    rows = time_frames(built, several, voice.frames, repeats)

    def decode() -> None:
        windows = Decoding(built.codec, SEED, device).decode_ready(frames, is_end=True)
        torch.cat(list(windows)).cpu()

    decode()
    decoded = statistics.median(measure.seconds(device, decode) for _ in range(repeats))
    peak = measure.peak(device) - before
    stage._graphs.stop()  # noqa: SLF001 - the same
    plain = time_frames(built, stage, max(1, voice.frames // 5), 1)
    decode_ms = 1000 * decoded / len(frames)
    frame_ms = 1000 * built.codec.stride / built.codec.rate
    read = built.count_read_bytes()
    found |= {
        "prefill_ms": round(1000 * statistics.median(prompts), 2),
        "frame_ms": round(graphs, 2),
        "frame_ms_without_graphs": round(plain, 2),
        f"frame_ms_of_{MOST_ROWS}_rows": round(rows, 2),
        "read_gb_per_token": round(read / 1e9, 3),
        "read_gb_per_s": round(SLOTS * read / graphs / 1e6, 1),
        "decode_ms_per_frame": round(decode_ms, 3),
        "first_sound_ms": round(statistics.median(sounds[1:]), 1),
        "times_real_time": round(frame_ms / (graphs + decode_ms), 2),
        f"times_real_time_of_{MOST_ROWS}_rows": round(
            MOST_ROWS * frame_ms / (rows + MOST_ROWS * decode_ms), 2
        ),
        "weights_gb": round(before / 1e9, 3),
        "peak_gb": round(max(0, peak) / 1e9, 3),
    }
    if not voice.is_tiny:
        kept = (1 + MOST_ROWS) * count_room(voice.speaking) * CACHE_BYTES_PER_TOKEN
        found["computed_gb"] = round((kept + STEP_BYTES) / 1e9, 3)
    return found


def measure_generate(built: VoiceBuilt) -> dict[str, Any]:
    """Return what transformers' generate takes for a frame's tokens, as its users call it."""
    voice, stock = built.voice, built.build_stock()
    prompt = torch.tensor([list(voice.prompt)], device=built.device)

    def generate(tokens: int) -> int:
        written = stock.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=True,
            temperature=HOW.temperature,
            top_p=HOW.top_p,
            repetition_penalty=HOW.penalty,
            eos_token_id=voice.ids.stop,
            pad_token_id=voice.ids.stop,
        )
        return int(written.shape[1]) - len(voice.prompt)

    tokens = SLOTS * voice.generated
    generate(tokens)
    spent = min(measure.seconds(built.device, lambda: generate(tokens)) for _ in range(2))
    token_ms = 1000 * spent / tokens
    frame_ms = 1000 * built.codec.stride / built.codec.rate
    return {
        "tokens": tokens,
        "token_ms": round(token_ms, 2),
        "frame_ms": round(SLOTS * token_ms, 2),
        "times_real_time": round(frame_ms / (SLOTS * token_ms), 2),
    }
