"""Real shapes with random weights, on any CUDA machine: the stock pipelines and ours.

    python bench/gpu.py --plan               what would be measured, in which order, for how long
    python bench/gpu.py                      eight minutes of it; start it again to go on
    python bench/gpu.py --only 4bit/edit     these alone
    python bench/gpu.py --only flux orpheus  those of two families
    python bench/gpu.py --tiny --device cpu  the same code on the embedded checkpoint's sizes

Entries without a model's name are Qwen-Image's. Needs torch 2.10 or newer, no network and no
weights. A result is on disk once its line is printed, so that an interrupted run continues where it
stopped. All ways of running a precision share its weights, in one process.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

BEGAN: Final = time.monotonic()  # before imports, which may take half a minute on a fresh machine
ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # the worker may not be installed on a CUDA machine

from worker.settings import fill_environment  # noqa: E402 - the path comes first

fill_environment()  # as a worker's start does, before torch is imported

import structlog  # noqa: E402 - the path comes first
import torch  # noqa: E402 - the same

from bench import roofline  # noqa: E402 - the same
from bench.real_shapes import agenda, job, klein, measure, memory, shapes, voice  # noqa: E402 - the same
from bench.real_shapes.agenda import Entry, Kind, Subject  # noqa: E402 - the same
from bench.real_shapes.built import Built, describe_graphs  # noqa: E402 - the same
from bench.real_shapes.job import Case  # noqa: E402 - the same
from bench.real_shapes.klein_built import KleinBuilt  # noqa: E402 - the same
from bench.real_shapes.measure import Product, Spent  # noqa: E402 - the same
from bench.real_shapes.results import Results, table  # noqa: E402 - the same
from bench.real_shapes.shapes import Architecture  # noqa: E402 - the same
from bench.real_shapes.voice import VoiceBuilt  # noqa: E402 - the same
from worker import log  # noqa: E402 - the same
from worker.engine.compiled import measure_difference  # noqa: E402 - the same
from worker.engine.device import limit_threads  # noqa: E402 - the same
from worker.engine.quantise import Precision  # noqa: E402 - the same
from worker.tasks.picture import PictureWish  # noqa: E402 - the same

if TYPE_CHECKING:
    from bench.real_shapes.loaded import Loaded

GB: Final = 1e9
KEPT: Final[Precision] = "bf16"  # its weights stay while another precision is measured
Weights = tuple[Subject, Precision]


@dataclass(slots=True)
class Run:
    """One invocation: what is built, where, how often, until when, and where to write."""

    architecture: Architecture
    device: torch.device
    results: Results
    repeats: int
    steps: int
    until: float
    built: dict[Weights, Any] = field(default_factory=dict)
    failed: dict[Weights, str] = field(default_factory=dict)

    @property
    def is_tiny(self) -> bool:
        """Whether it is of the embedded checkpoints' sizes."""
        return self.architecture.name == "tiny"

    def say(self, text: str) -> None:
        """Print a line at once, with the seconds left."""
        print(f"[{self.until - time.monotonic():5.0f} s left] {text}", flush=True)

    def drop(self, *but: Weights) -> None:
        """Drop all weights but these."""
        for key in [each for each in self.built if each not in but]:
            del self.built[key]
        measure.free(self.device)

    def build(self, entry: Entry) -> Any:
        """Return the weights of an entry, made if they are not there; raise what failed."""
        assert entry.precision is not None
        key = entry.subject, entry.precision
        if key in self.failed:
            raise RuntimeError(f"no weights: {self.failed[key]}")
        self.drop((entry.subject, KEPT), key)
        if key not in self.built:
            try:
                self.built[key] = self._build(entry, *key)
            except torch.OutOfMemoryError:
                self.drop()
                self.built[key] = self._build(entry, *key)
        return self.built[key]

    def _build(self, entry: Entry, subject: Subject, precision: Precision) -> Any:
        before = measure.held(self.device)
        made: list[Any] = []
        seconds = measure.seconds(
            self.device, lambda: made.append(self._make_weights(subject, precision))
        )
        measure.free(self.device)
        told = {
            "seconds": round(seconds, 1),
            "weights_gb": round((measure.held(self.device) - before) / GB, 3),
        }
        self.results.put(told, "built", entry.weights)
        self.say(f"{entry.weights} built: {told}")
        return made[0]

    def _make_weights(self, subject: Subject, precision: Precision) -> Any:
        if not subject:
            return Built(self.architecture, precision, self.device, self.steps)
        if subject == "orpheus":
            return VoiceBuilt(voice.find_voice(is_tiny=self.is_tiny), precision, self.device)
        size = klein.find_klein(subject, is_tiny=self.is_tiny)
        return KleinBuilt(size, precision, self.device)


def measure_ceiling(run: Run, entry: Entry) -> dict[str, Any]:
    """Measure the matrix-multiply ceiling in TFLOP/s: a large square, and an MLP's own shape."""
    del entry
    config = run.architecture.transformer
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    square = 8192 if run.device.type == "cuda" else 512
    tokens = (run.architecture.small // 16) ** 2
    products = [Product(square, square, square), Product(tokens, dim, 4 * dim)]
    return measure.ceiling(run.device, products, repeats=run.repeats)


def _find_floor(run: Run, names: list[str]) -> float | None:
    """Return the computed least milliseconds of a forward on this card, where there are both."""
    device = str(run.results.held["machine"]["device"])
    card = next((rates for name, rates in roofline.CARDS.items() if name in device), None)
    records = roofline.read_records()
    for name in names:
        if card is not None and name in records:
            floor = roofline.compute(records[name], card)
            return floor.total if floor else None
    return None


def _repeat(run: Run, model: Any, case: Case) -> tuple[list[float], list[Spent]]:
    """Return the seconds of several jobs, each with inputs of its own, and what they took."""
    asked = job.inputs(case)
    walls: list[float] = []
    spent: list[Spent] = []
    for _ in range(run.repeats):
        wishes = next(asked)

        def work(wishes: list[PictureWish] = wishes) -> None:
            spent.append(model.job(case, wishes))

        walls.append(measure.seconds(run.device, work))
    return walls, spent


def _describe_peaks(spent: list[Spent], held: int, computed: dict[str, int]) -> dict[str, Any]:
    """Return peaks in GB by phase beside the weights, and the largest against what is computed."""
    expected = {name: round(peak / GB, 3) for name, peak in computed.items()}
    peaks = {
        name: round((max(each.peaks[name] for each in spent) - held) / GB, 3)
        for name in spent[0].peaks
    }
    found = {"weights_gb": round(held / GB, 3), "peaks_gb": peaks, "computed_gb": expected}
    most = max(peaks.values(), default=0.0)
    if most > 0 and expected:
        found["of_computed"] = round(most / max(expected.values()), 3)
    return found


def measure_case(run: Run, entry: Entry) -> dict[str, Any]:
    """Measure one way of running one case: the median of several jobs after one that warms up.

    The first job's inputs are the same on every side, so that its latents can be compared.
    """
    case = entry.case
    assert case is not None
    built: Loaded = run.build(entry)
    model = built.choose(entry.side, edit=case.edit)
    held = measure.held(run.device)
    result: dict[str, Any] = {}
    same = next(job.inputs(case, itertools.count(1)))
    kept: list[torch.Tensor] = []
    with structlog.testing.capture_logs() as logged:
        result["first_s"] = round(
            measure.seconds(run.device, lambda: kept.append(model.make_latents(same))), 2
        )
    result |= describe_graphs(model)
    if told := [f"{each.pop('event')}: {each}" for each in logged]:
        result["log"] = told
    result |= _compare(run, entry, case, kept[0].float().cpu())
    walls, spent = _repeat(run, model, case)
    middle = {
        name: round(statistics.median(each.phases[name] for each in spent), 2)
        for name in spent[0].phases
    }
    step = middle["denoise"] / case.steps
    task = "edit" if case.edit else "image"
    place = f"{entry.subject}/{task}" if entry.subject else task
    if not run.results.has("text_tokens", place):
        run.results.put(built.count_text_tokens(same[0]), "text_tokens", place)
    tokens = run.results.held["text_tokens"][place]
    operations = built.count_operations(case, tokens, entry.side)
    result |= {
        "median_s": round(statistics.median(walls), 4),
        "fastest_s": round(min(walls), 4),
        "slowest_s": round(max(walls), 4),
        "runs": len(walls),
        "steps": case.steps,
        "batch": case.batch,
        "pictures_per_s": round(case.batch / statistics.median(walls), 3),
        "phases_ms": middle,
        "step_ms": round(step, 2),
        "tflops": round(operations / step / 1e9, 3),
    }
    if floor := _find_floor(run, built.name_floors(case, entry.side)):
        result |= {"floor_ms": round(floor, 1), "of_floor": round(step / floor, 2)}
    computed = {} if entry.side == "stock" else built.compute_peaks(case, entry.side, same[0])
    return result | _describe_peaks(spent, held, computed)


def _compare(run: Run, entry: Entry, case: Case, latents: torch.Tensor) -> dict[str, Any]:
    """Return the relative difference of latents from the plain side's, of the same inputs."""
    name = f"{entry.weights}/{case.name}"
    found: dict[str, Any] = {"finite": bool(latents.isfinite().all())}
    path = run.results.path.with_suffix(".pt")  # for the run that goes on
    kept: dict[str, torch.Tensor] = torch.load(path) if path.is_file() else {}
    if entry.side == "plain":
        torch.save({**kept, name: latents.bfloat16()}, path)
    elif name in kept:
        found["difference"] = float(f"{measure_difference(latents, kept[name]):.3g}")
    return found


def measure_profile(run: Run, entry: Entry) -> dict[str, Any]:
    """Return where one job's time goes, kernel by kernel."""
    assert entry.case is not None
    case = entry.case
    model = run.build(entry).choose(entry.side, edit=case.edit)
    asked = job.inputs(case)
    model.job(case, next(asked))
    found = measure.kernels(run.device, lambda: model.job(case, next(asked)))
    for name, kernel in list(found.items())[:25]:
        print(f"{kernel['ms']:10.2f} {kernel['calls']:6d}  {name[:110]}", flush=True)
    return found


def measure_offload(run: Run, entry: Entry) -> dict[str, Any]:
    """Return what a job takes whose text encoder passes through the device, and as before.

    Its latents are compared with those of an encoder on the device.
    """
    case = entry.case
    assert case is not None
    built: Loaded = run.build(entry)
    model = built.choose(entry.side, edit=case.edit)
    asked, same = job.inputs(case), next(job.inputs(case, itertools.count(1)))
    expected = model.make_latents(same)
    resident = [model.job(case, next(asked)) for _ in range(2)][1]
    full = measure.held(run.device)
    try:
        seconds = measure.seconds(run.device, built.stream)
        model.forget()
        is_equal = torch.equal(model.make_latents(same), expected)
        held = measure.held(run.device)
        spent = [model.job(case, next(asked)) for _ in range(3)]
        peaks = _describe_peaks(spent, held, built.compute_peaks(case, entry.side, same[0]))
    finally:
        del model, built
        run.drop()
    return {
        "stream_s": round(seconds, 1),
        "freed_gb": round((full - held) / GB, 3),
        "resident_ms": {name: round(value, 1) for name, value in resident.phases.items()},
        "phases_ms": {name: round(value, 1) for name, value in spent[-1].phases.items()},
        "equal": is_equal,
        **peaks,
    }


def measure_speech(run: Run, entry: Entry) -> dict[str, Any]:
    """Return what our loop of frames takes, and the codec."""
    return voice.measure_speech(run.build(entry), run.repeats)


def measure_generate(run: Run, entry: Entry) -> dict[str, Any]:
    """Return what transformers' generate takes with the same weights."""
    return voice.measure_generate(run.build(entry))


def measure_memory(run: Run, entry: Entry) -> dict[str, Any]:
    """Return what fits in 4bit under a cap."""
    run.drop()
    card = next(card for card in memory.CARDS if card.gib == entry.value)
    return memory.fits(run.architecture, card, "4bit", run.device)


def measure_cold(run: Run, entry: Entry) -> dict[str, Any]:
    """Prepare a bundle from shards made on the fly, open it from disk, draw a picture."""
    from bench.real_shapes import cold  # noqa: PLC0415 - it needs more packages

    del entry
    run.drop()
    return cold.start(run.architecture, "4bit", run.device, run.say)


MEASURES: Final[Mapping[Kind, Callable[[Run, Entry], dict[str, Any]]]] = {
    "ceiling": measure_ceiling,
    "case": measure_case,
    "profile": measure_profile,
    "offload": measure_offload,
    "memory": measure_memory,
    "cold": measure_cold,
    "speech": measure_speech,
    "generate": measure_generate,
}


def carry_out(run: Run, entry: Entry) -> None:
    """Measure one entry and write what was found, or why nothing was."""
    began = time.monotonic()
    try:
        result = MEASURES[entry.kind](run, entry)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other entries are worth measuring
        text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        result = {"error": text, "at": _find_place(error)}
        if entry.precision is not None and (entry.subject, entry.precision) not in run.built:
            run.failed[entry.subject, entry.precision] = text
        error.__traceback__ = None
        if _is_lost(run.device):
            run.results.put(result, *entry.place)
            run.say(f"{entry.name}: {_shorten(result)}; the device is lost, starting again")
            _start_again(run, entry)
    measure.free(run.device)
    run.results.put(result, *entry.place)
    run.say(f"{entry.name} in {time.monotonic() - began:.0f} s: {_shorten(result)}")


def _is_lost(device: torch.device) -> bool:
    """Return whether a kernel broke the device's context, in which nothing runs any more."""
    try:
        measure.seconds(device, lambda: torch.ones(1, device=device).sum())
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False


def _start_again(run: Run, broken: Entry) -> None:
    """Replace this process by a new one that goes on without an entry."""
    words = [word for word in sys.argv if word != "--again"]
    minutes = (run.until - time.monotonic()) / 60
    sys.stdout.flush()
    os.execv(  # noqa: S606 - the same program
        sys.executable,
        [sys.executable, *words, "--skip", broken.name, "--minutes", f"{minutes:.2f}"],
    )


def _find_place(error: BaseException) -> str:
    """Return the innermost line of a traceback."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return ""
    return f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"


def _shorten(result: dict[str, Any]) -> str:
    """Return a result as one line."""
    if "median_s" not in result:
        return str(result)[:600]
    names = ("median_s", "step_ms", "of_floor", "first_s", "graphs", "compiled", "difference")
    facts = {name: result[name] for name in (*names, "of_computed") if name in result}
    return f"{facts} phases {result['phases_ms']} peaks {result['peaks_gb']}"


def print_plan(entries: list[Entry], results: Results, repeats: int) -> None:
    """Print every entry with the seconds that it may take (est.), and their sum."""
    total = 0.0
    seen: set[Weights] = set()
    for entry in entries:
        done = results.is_measured(*entry.place)
        needed = _estimate(entry, seen, repeats)
        if not done:
            _follow(entry, seen)
            total += needed
        shown = "measured" if done else f"{needed:5.0f} s"
        print(f"{shown:>9} {total:6.0f} s  {entry.name}")
    print("seconds are estimates (est.) for an H100, builds and compilations included")


def _estimate(entry: Entry, built: set[Weights], repeats: int) -> float:
    """Return the seconds that an entry may take, the build of its weights included."""
    is_there = entry.precision is None or (entry.subject, entry.precision) in built
    return entry.estimate(repeats) + (0.0 if is_there else entry.estimate_build())


def _follow(entry: Entry, built: set[Weights]) -> None:
    """Change what is built as carrying out an entry does."""
    if entry.precision is not None:
        built &= {(entry.subject, KEPT), (entry.subject, entry.precision)}
        built.add((entry.subject, entry.precision))
    if entry.kind in {"offload", "memory", "cold"}:
        built.clear()


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description="Real shapes with random weights: stock and ours.")
    parser.add_argument("--plan", action="store_true", help="print what would be measured")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="entries with a word")
    parser.add_argument(
        "--skip", nargs="+", action="extend", default=[], metavar="WORD", help="none with a word"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the embedded checkpoint's sizes")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="start nothing that takes longer"
    )
    parser.add_argument("--repeats", type=int, help="default 3; 1 with --tiny")
    parser.add_argument("--steps", type=int, choices=(4, 8), default=4)
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu-DEVICE.json")
    parser.add_argument("--again", action="store_true", help="discard earlier measurements")
    given = parser.parse_args()
    # --tiny shows that everything runs on a CPU; its times mean nothing
    repeats = given.repeats or (1 if given.tiny else 3)
    architecture = shapes.tiny() if given.tiny else shapes.full()
    entries = [
        entry
        for entry in agenda.list_entries(architecture.small, given.steps)
        if (not given.only or any(word in entry.name for word in given.only))
        and not any(word in entry.name for word in given.skip)
    ]
    if given.plan:
        held = Results(given.out or Path("none"), again=given.again)
        print_plan(entries, held, repeats)
        return
    device = torch.device(given.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("no CUDA device here; --tiny --device cpu runs the same code on a CPU")
        device = torch.device("cuda", torch.cuda.current_device())
    limit_threads(device)
    log.configure("INFO")
    facts = measure.machine(device)
    slug = "".join(c if c.isalnum() else "-" for c in str(facts["device"]).lower())
    default = ROOT / "bench" / "results" / f"gpu-{slug}.json"
    if given.tiny:
        default = ROOT / "out" / "gpu-tiny.json"
    results = Results(given.out or default, again=given.again)
    results.put({**facts, "architecture": architecture.name}, "machine")
    run = Run(architecture, device, results, repeats, given.steps, BEGAN + given.minutes * 60)
    for entry in entries:
        if results.is_measured(*entry.place):
            continue
        # Compiling for a CPU, or anything at the embedded sizes, takes other times.
        needed = 0.0 if given.tiny else _estimate(entry, set(run.built), repeats)
        if time.monotonic() + needed > run.until:
            run.say(f"no time left for {entry.name}, {needed:.0f} s (est.)")
            continue
        carry_out(run, entry)
    print(table(results.held))
    print(f"written to {results.path}")


if __name__ == "__main__":
    main()
