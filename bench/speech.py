"""Speech: what Orpheus takes at its published size, and tokens per second against generate.

    python bench/speech.py [--json bench/results/speech.json] [--frames 40] [--rounds 5]

`sizes` are GB by precision, counted by the code with which a cold start chooses: no weights are
needed. `ratio` is how many times as many tokens per second our loop writes on this CPU, one thread,
as transformers' generate with the same model and prompt, a mask for the legal tokens, a static
cache and the same limits; both take turns. The model is small (hidden 64, 2 layers) with the
published vocabulary: it shows what the head and the loop cost; on a GPU the blocks count more.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402 - the path comes first
from torch import Tensor, nn  # noqa: E402 - the same
from transformers import (  # noqa: E402 - the same
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
)

from worker.bundle.headers import Shard  # noqa: E402 - the same
from worker.bundle.recipe import Published  # noqa: E402 - the same
from worker.bundle.sizes import compute_sizes_at  # noqa: E402 - the same
from worker.bundle.tensors import TensorEntry  # noqa: E402 - the same
from worker.engine.quantise import PRECISIONS  # noqa: E402 - the same
from worker.engine.token_choice import Choosing  # noqa: E402 - the same
from worker.families.orpheus.frames import Stage  # noqa: E402 - the same
from worker.families.orpheus.language import Language  # noqa: E402 - the same
from worker.families.orpheus.models import SLOTS, Speaking, TokenIds  # noqa: E402 - the same
from worker.families.orpheus.parts import build_codec, build_language  # noqa: E402 - the same
from worker.families.orpheus.recipe import (  # noqa: E402 - the same
    CACHE_BYTES_PER_TOKEN,
    SPEECH_RECIPE,
    count_room,
)
from worker.weights.proof import RemoteFile  # noqa: E402 - the same
from worlds.snac_shape import PUBLISHED_SNAC  # noqa: E402 - the same

RESULTS: Final = ROOT / "bench" / "results" / "speech.json"
GB: Final = 1e9
IDS: Final = TokenIds()
VOCABULARY: Final = 156_940
ROPE: Final = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
# Llama 3.2 3B with the vocabulary of Orpheus, and SNAC at 24 kHz
LANGUAGE: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
    "rope_parameters": ROPE,
}
CODEC: Final[dict[str, Any]] = PUBLISHED_SNAC
PROMPT: Final = [*IDS.before, *range(1000, 1040), *IDS.after]


def compute_sizes() -> dict[str, dict[str, float]]:
    """Return GB by precision: on the disk, on the device, and the longest passage's cache."""
    models = {"language": build_language(LANGUAGE), "codec": build_codec(CODEC)}
    del models["language"].lm_head  # tied
    shards = {
        role: [
            Shard(
                RemoteFile(f"{role}/model.safetensors", 0),
                {
                    name: TensorEntry(
                        torch.bfloat16 if role == "language" else torch.float32,
                        tuple(tensor.shape),
                        0,
                        0,
                    )
                    for name, tensor in model.named_parameters()
                },
            )
        ]
        for role, model in models.items()
    }
    published = Published({}, shards, {"language": LANGUAGE}, {})
    cache = count_room(Speaking()) * CACHE_BYTES_PER_TOKEN / GB
    found: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS:
        size = compute_sizes_at(SPEECH_RECIPE, published, precision, adapters=0)
        figures = {"disk": size.disk / GB, "device": size.memory / GB, "passage": cache}
        found[precision] = {name: round(value, 2) for name, value in figures.items()}
    return found


class Legal(LogitsProcessor):  # type: ignore[misc] # transformers ships no types
    """Leave only the tokens that a place of a frame may have."""

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with all others at minus infinity; no stop, so that it goes on."""
        first = IDS.first + (ids.shape[1] - len(PROMPT)) % SLOTS * IDS.codes
        masked = torch.full_like(scores, -torch.inf)
        masked[:, first : first + IDS.codes] = scores[:, first : first + IDS.codes]
        return masked


def build_pair() -> tuple[Any, Stage, int]:
    """Return the stock model, and ours with the same weights on a stage, with its room."""
    torch.manual_seed(1)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    stock = LlamaForCausalLM(LlamaConfig(**{**LANGUAGE, **small, **heads})).eval()
    copied = LlamaForCausalLM(stock.config)
    copied.load_state_dict(stock.state_dict())
    table = stock.model.embed_tokens.weight.detach()
    ours = Language(copied.eval().model, IDS, is_tied=True)
    ours.codes = nn.Parameter(table[IDS.first : IDS.end].clone())
    ours.stop = nn.Parameter(torch.zeros(1, table.shape[1]) - 1)
    room = 4096
    return stock, Stage(ours, table[: IDS.first], rows=1, room=room), room


def measure(work: Callable[[], int]) -> float:
    """Return the tokens per second of one piece of work."""
    begun = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - begun)


def compare_speed(frames: int, rounds: int) -> dict[str, float]:
    """Return the tokens per second of both, by their medians, and the ratio."""
    torch.set_num_threads(1)
    stock, stage, _ = build_pair()
    how = Choosing(0.6, 0.8, 1.1)

    def write() -> int:
        stage.choose_by(how)
        stage.begin(0, PROMPT, 1)
        for _ in range(frames):
            stage.step()
        return frames * SLOTS

    def generate() -> int:
        written = stock.generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
            max_new_tokens=frames * SLOTS,
            do_sample=True,
            temperature=0.6,
            top_p=0.8,
            top_k=0,
            repetition_penalty=1.1,
            eos_token_id=IDS.stop,
            pad_token_id=0,
            cache_implementation="static",
            disable_compile=True,
            logits_processor=LogitsProcessorList([Legal()]),
        )
        return int(written.shape[1]) - len(PROMPT)

    found: dict[str, list[float]] = {"ours": [], "generate": []}
    for _ in range(rounds + 1):
        found["ours"].append(measure(write))
        found["generate"].append(measure(generate))
    medians = {name: statistics.median(values[1:]) for name, values in found.items()}
    return {
        **{f"{name}_tokens_per_s": round(value, 1) for name, value in medians.items()},
        "ratio": round(medians["ours"] / medians["generate"], 2),
    }


def main() -> None:
    """Compute, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results = {"sizes": compute_sizes(), "cpu": compare_speed(options.frames, options.rounds)}
    options.json.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
