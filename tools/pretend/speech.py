"""Orpheus at its published size on the pretend device: `python -m tools.pretend.speech [--write]`.

One passage alone and several at once, in each precision: the bytes of the weights, the peak beside
them against what the worker plans, and per frame the kernels, the bytes that they move and what
the host waits for. It must wait for a frame's codes alone: the exit status is 1 for more, for
operands on two devices, or a peak beyond the plan. --write keeps it in bench/results.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import torch

from bench.speech import CODEC, LANGUAGE
from tools.pretend.cuda import pretend
from tools.pretend.device import PretendDevice
from tools.pretend.ledger import Ledger
from tools.pretend.stored import plain_weights, store
from worker import log
from worker.engine.quantise import PRECISIONS, Precision
from worker.engine.token_choice import Choosing
from worker.families.catalogue import CATALOGUE
from worker.families.orpheus.frames import Stage
from worker.families.orpheus.language import Language
from worker.families.orpheus.models import TokenIds
from worker.families.orpheus.parts import CODEC as CODEC_PART
from worker.families.orpheus.parts import LANGUAGE as LANGUAGE_PART
from worker.families.orpheus.parts import build_codec, build_language
from worker.families.orpheus.recipe import MOST_ROWS, count_room, plan_speech
from worker.families.orpheus.windows import CONTEXT, GRID, Decoding
from worker.settings import read

RESULTS: Final = Path(__file__).resolve().parents[2] / "bench" / "results" / "pretend_speech.json"
CUDA: Final = torch.device("cuda")
FRAMES: Final = 2
PROMPT: Final = list(range(1000, 1080))


def run(precision: Precision, rows: int) -> dict[str, Any]:
    """Write some frames and decode the largest window; return what was seen."""
    device, ids = PretendDevice(), TokenIds()
    spec = CATALOGUE.find_row("orpheus")
    with pretend(device), plain_weights():
        language = Language(build_language(LANGUAGE).model, ids, is_tied=True)
        language = store(device, LANGUAGE_PART, language, precision)
        codec = store(device, CODEC_PART, build_codec(CODEC), "bf16")
        weights = device.memory.live
        table = torch.zeros(ids.first, LANGUAGE["hidden_size"], dtype=torch.bfloat16)
        device.memory.reset()
        stage = Stage(language, table, rows=rows, room=count_room(spec.defaults))
        stage.choose_by(Choosing(0.6, 0.8, 1.1))
        stage._graphs.stop()  # noqa: SLF001 - a graph is of the device alone
        for row in range(rows):
            stage.begin(row, PROMPT, row)
        device.ledger = ledger = Ledger()
        for _ in range(FRAMES):
            stage.step()
        frames = [[0] * 7] * (GRID[-1] * 2 + 2 * CONTEXT)
        decoding = Decoding(codec, 1, CUDA)
        decoding._done = sum(GRID[:3])  # noqa: SLF001 - the first window of the largest size
        next(decoding.decode_ready(frames, is_end=False))
    peak = max(device.memory.peaks.values()) - weights
    waits = {str(event): count for event, count in ledger.waits.items()}
    written = [count for event, count in ledger.waits.items() if "frames.py" in event.place]
    return {
        "case": f"speech-{precision}" + (f"-rows{rows}" if rows > 1 else ""),
        "weights": weights,
        "working": peak,
        "planned": plan_speech(spec, read({}), precision),
        "kernels": dict(ledger.kernels),
        "moved": dict(ledger.moved),
        "waits_per_frame": sum(written) / FRAMES,
        "waits": waits,
        "mixed": {str(event): count for event, count in ledger.mixed.items()},
    }


def main() -> int:
    """Run every case; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    log.configure("ERROR")
    torch.set_num_threads(1)
    records = []
    for precision in PRECISIONS:
        for rows in (1, MOST_ROWS):
            records.append(run(precision, rows))
            print(json.dumps(records[-1]), flush=True)
    if given.write:
        RESULTS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    faults = [one["case"] for one in records if one["working"] > one["planned"] or one["mixed"]]
    faults += [one["case"] for one in records if one["waits_per_frame"] > 1]
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
