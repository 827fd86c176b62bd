"""Fill the tables of README, docs/ and RunPod's listing from the code: `make readme`.

A table stands between `<!-- NAME -->` and `<!-- end -->`; .runpod/hub.json names the models that
MODEL may hold and its default, and the memory and pools of its presets. tests/tools/test_readme.py
fails while a page and the code differ.
"""

import ast
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bench import roofline
from tools import presets
from worker import errors, settings
from worker.families.catalogue import CATALOGUE
from worker.families.flux2 import planning
from worker.families.flux2.working import VAE_BYTES
from worker.setting_values import PRECISIONS, Precision
from worker.tasks import registry
from worker.tasks.way import FROM_PICTURES
from worker.weights.spec import ModelSpec

ROOT: Final = Path(__file__).resolve().parents[1]
SIZES: Final = ROOT / "bench" / "results" / "sizes.json"
POOLS: Final = ROOT / "bench" / "results" / "pools.json"
MEASURED: Final = ROOT / "bench" / "results"  # gpu-DEVICE.json
PRETEND: Final = ROOT / "bench" / "results" / "pretend.json"
PRETEND_FLUX: Final = ROOT / "bench" / "results" / "pretend_flux.json"
HUB: Final = ROOT / ".runpod" / "hub.json"
IMAGE: Final = ROOT / "bench" / "results" / "image.json"
LORA: Final = ROOT / "bench" / "results" / "lora.json"
CPU: Final = ROOT / "bench" / "results" / "cpu.json"
OVERHEAD: Final = ROOT / "bench" / "results" / "overhead.json"

# What there is next to src/worker, in the order of a reader's interest.
ELSEWHERE: Final[Mapping[str, str]] = {
    "checkpoints/tiny/": "the embedded models: a few megabytes, the classes of the real ones",
    "builder/": "the locks, and what the image build runs",
    "tools/": "the demo, and the project's own checks: mutants, certainty, the image, these tables",
    "Dockerfile": "the image; build.sh, or builder/image.py on any system, builds it",
    ".runpod/": "what RunPod's Hub shows and tests",
    "bench/": "the programs behind the numbers",
    "tests/": "mirrors src/worker; the campaigns of faults/ and fuzz/",
    "worlds/": "the worker's surroundings in tests: a loopback job API, hub, site and bucket",
    "training/": "how the embedded models are trained, distilled and evaluated",
    "docs/": "how to call, deploy and fix it; the reference, the numbers",
}


def markdown(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(*words: object) -> str:
    """Return the words as code, separated by commas."""
    return ", ".join(f"`{word}`" for word in words)


def input_table() -> str:
    """Return the job input's fields."""
    rows = ((code(r.name), code(*r.aliases), r.accepts, r.default) for r in registry.list_fields())
    return markdown(("field", "aliases", "type, limits", "default"), rows)


def errors_table() -> str:
    """Return every error code once, with the meaning of its first error."""
    kinds: dict[str, list[type[errors.WorkerError]]] = {}

    def walk(kind: type[errors.WorkerError]) -> None:
        if hasattr(kind, "code"):
            kinds.setdefault(kind.code, []).append(kind)
        for child in kind.__subclasses__():
            walk(child)

    walk(errors.WorkerError)
    rows = (
        (
            code(name),
            join_distinct(kind.error_type for kind in same),
            join_distinct("yes" if kind.retryable else "no" for kind in same),
            first_line(same[0].__doc__),
        )
        for name, same in kinds.items()
    )
    return markdown(("code", "type", "retryable", "meaning"), rows)


def join_distinct(words: Iterable[str]) -> str:
    """Return the distinct words, joined by "or"."""
    return " or ".join(dict.fromkeys(words))


def settings_table() -> str:
    """Return the environment's variables."""
    rows = ((named(*row.names), row.meaning, row.default) for row in settings.list_settings())
    return markdown(("variable", "meaning", "default"), rows)


def named(name: str, *aliases: str) -> str:
    """Return a variable with its aliases."""
    return f"{code(name)} ({code(*aliases)})" if aliases else code(name)


def models_table() -> str:
    """Return the catalogue."""
    rows = ((code(row.name), *facts(row)) for row in CATALOGUE.rows)
    header = ("name", "repository", "task", "base schedule", "Lightning steps", "licence")
    return markdown(header, rows)


def facts(row: ModelSpec) -> tuple[str, ...]:
    """Return a model's row without its name."""
    own = row.defaults
    licence = f"{row.licence}, gated" if row.is_gated else row.licence
    where = f"checkpoints/{row.embedded} (embedded)" if row.embedded else row.repository
    if "speech" in row.tasks:
        voices = f", {len(own.voices)} voices" if own.voices else ""
        return where, f"speech{voices}", "", "", licence
    references = f" with 1-{own.max_references} references" if own.max_references > 1 else ""
    tasks = (task + references if task == FROM_PICTURES else task for task in row.tasks)
    negative = ", a negative prompt" if own.negative_prompt.strip() else ""
    guided = f"CFG {own.true_cfg_scale:g}" if own.takes_cfg else "no CFG"
    if own.guidance is not None:
        guided = f"guidance {own.guidance:g}"
    return (
        where,
        ", ".join(tasks),
        f"{own.steps} steps, {guided}{negative}",
        ", ".join(map(str, row.lightning)),
        licence,
    )


def files_table() -> str:
    """Return every file of the worker with the first line of its docstring."""
    lines = [
        f"{'handler.py':<22}{docstring(ROOT / 'handler.py')}",
        "src/worker/",
        *modules(ROOT / "src" / "worker"),
    ]
    lines += [f"{name:<22}{meaning}" for name, meaning in ELSEWHERE.items()]
    return "\n".join(["```text", *lines, "```"])


def modules(folder: Path, indent: int = 2) -> list[str]:
    """Return one line per module of a package, then its packages with theirs."""
    lines = [
        f"{' ' * indent + path.name:<22}{docstring(path)}"
        for path in sorted(folder.glob("*.py"))
        if path.name != "__init__.py"
    ]
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        name = " " * indent + inner.name
        lines.append(f"{name + '/':<22}{docstring(inner / '__init__.py')}")
        lines += modules(inner, indent + 2)
    return lines


def docstring(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return first_line(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))


def first_line(text: str | None) -> str:
    """Return a docstring's first line without its full stop."""
    return (text or "").partition("\n")[0].removesuffix(".")


def overhead_table() -> str:
    """Return how the worker compares to the naive way, from the last bench results."""
    results = json.loads(OVERHEAD.read_text(encoding="utf-8"))

    def row(name: str) -> tuple[str, ...]:
        ours, theirs = results[name]["worker_phases_ms"], results[name]["naive_phases_ms"]
        cpu, lag = results[name]["whole_job_cpu_ms"], results[name]["event_loop_lag_max_ms"]
        pairs = (
            (theirs[f"encode {name}"]["p50"], ours[f"encode {name}"]["p50"]),
            (cpu["naive"]["p50"], cpu["worker"]["p50"]),
            (lag["naive"], lag["worker"]),
        )
        return name, *(f"{naive / worker:.1f}" for naive, worker in pairs)

    header = ("naive / worker", "encode, p50", "CPU time of the job, p50", "event loop lag, worst")
    return markdown(header, (row(name) for name in ("png", "jpeg", "webp")))


def lora_table() -> str:
    """Return what a job's LoRA takes before its first step, as bench/lora.py measured it."""
    seconds = json.loads(LORA.read_text(encoding="utf-8"))["seconds"]
    ours = ("cold", "cached", "warm")
    theirs = seconds["diffusers load"] + seconds["diffusers unload"]
    rows = [
        ("the worker", *(f"{seconds[name]:.3f}" for name in ours), f"{seconds['job']:.2f}"),
        (
            "diffusers' load and unload / the worker",
            *(f"{theirs / seconds[n]:.1f}" for n in ours),
            "",
        ),
        ("of a job", *(f"{seconds[name] / seconds['job']:.1%}" for name in ours), ""),
    ]
    return markdown(("s", *ours, "a job"), rows)


def cpu_table() -> str:
    """Return how the embedded models compare to the stock pipeline, as bench/cpu.py measured it."""
    cases = json.loads(CPU.read_text(encoding="utf-8"))["cases"]

    def row(name: str, sides: Mapping[str, Any]) -> tuple[str, ...]:
        found = sides["worker"]
        shares = (
            f"{phase} {spent / found['median_ms']:.0%}"
            for phase, spent in sorted(found["phases_ms"].items(), key=lambda one: -one[1])[:3]
        )
        together = sides.get("together", {}).get("stock_by_it")
        return (
            code(name),
            f"{sides['stock']['median_ms']:.0f}",
            f"{found['median_ms']:.0f}",
            f"{found['stock_by_it']:.2f}",
            "" if together is None else f"{together:.2f}",
            ", ".join(shares),
        )

    header = (
        *("case", "stock, ms", "worker, ms", "stock / it"),
        *("stock / it, `BATCH_SIZE=4`", "what takes the worker's time"),
    )
    return markdown(header, (row(*one) for one in cases.items()))


def precisions_table() -> str:
    """Return the space that each precision takes, as bench/sizes.py computed it."""
    results = json.loads(SIZES.read_text(encoding="utf-8"))
    names = ("disk", "device", "transformer", "text_encoder", "vae", "lora")
    rows = ((code(name), *(f"{sizes[n]:.1f}" for n in names)) for name, sizes in results.items())
    header = ("GB", "disk", "device", "transformer", "text encoder", "VAE", "one LoRA")
    return markdown(header, rows)


def flux_table() -> str:
    """Return what each size of FLUX.2 takes at each precision, by its widths."""

    def row(name: str, precision: Precision) -> tuple[str, ...]:
        spec = CATALOGUE.find_row(name)
        need = planning.estimate_needs(spec, settings.read({}))[precision]
        weights = [*planning.find_edition(spec).count_weights(precision), VAE_BYTES]
        figures = (sum(weights), *weights[:2], need.whole, need.least)
        return code(name), code(precision), *(f"{figure / 1e9:.1f}" for figure in figures)

    header = (
        *("model", "GB", "weights", "transformer", "text encoder"),
        *("with its largest job", "with the text encoder in host memory"),
    )
    names = ("flux-2-klein-4b", "flux-2-klein-9b", "flux-2-dev")
    return markdown(header, [row(name, each) for name in names for each in PRECISIONS])


def presets_table() -> str:
    """Return what the presets of RunPod's listing take, and the pools that have it."""
    sizes = json.loads(SIZES.read_text(encoding="utf-8"))

    def row(purpose: str, chosen: Mapping[str, str | bool]) -> tuple[str, ...]:
        memory, room = presets.compute_memory(chosen, sizes), presets.compute_room(chosen)
        models = str(chosen["MODEL"]).split(",")
        found = presets.list_pools(memory + room)
        return (
            purpose,
            code(*models),
            code(chosen["PRECISION_MODE"]),
            *(f"{figure:.1f}" for figure in (memory, memory + room)),
            code(*found),
        )

    header = ("preset", "`MODEL`", "precision", "weights", "with a largest job", "pools")
    return markdown(header, (row(*one) for one in presets.PRESETS.items()))


def image_table() -> str:
    """Return the size of each image, as tools/image_check.py found it."""
    results = json.loads(IMAGE.read_text(encoding="utf-8"))
    targets = list(next(iter(results.values())))
    rows = ((code(name), *(f"{sizes[t]:.2f}" for t in targets)) for name, sizes in results.items())
    return markdown(("GB", *map(code, targets)), rows)


def pools_table() -> str:
    """Return what every card holds, as bench/pools.py computed it."""
    header = (
        *("card", "GB", "one model", "largest edit", "largest from text"),
        *("both models", "largest edit", "largest from text"),
    )

    def square(side: int | None) -> str:
        return f"{side} x {side}" if side else ""

    def row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
        waiting = ", text encoder in host memory" if found["offload"] else ""
        return (
            name,
            f"{found['bytes'] / 1e9:.1f}",
            found["precision"] + waiting,
            square(found["edit"]),
            square(found["image"]),
            found["both"] or "swapped",
            square(found["both_edit"]),
            square(found["both_image"]),
        )

    results = json.loads(POOLS.read_text(encoding="utf-8"))
    return markdown(header, (row(*one) for one in results.items()))


def pretend_table() -> str:
    """Return what the pretend device showed, as `make pretend-gpu` wrote it."""
    header = (
        *("case", "text", "reference", "denoise", "decode", "computed"),
        *("T operations", "kernels", "GB moved", "pointwise"),
    )

    def row(record: Mapping[str, Any]) -> tuple[str, ...]:
        peaks = record["peaks"]
        phases = ("text", "reference", "denoise", "decode")
        return (
            code(record["case"]),
            *(f"{peaks[phase] / 1e9:.2f}" if phase in peaks else "" for phase in phases),
            f"{max(record['computed'].values()) / 1e9:.2f}",
            f"{record['operations_per_forward'] / 1e12:.0f}",
            f"{record['kernels_per_forward']:,}",
            f"{record['moved_per_forward'] / 1e9:.0f}",
            f"{record['pointwise_per_forward'] / 1e9:.0f}",
        )

    return markdown(header, map(row, json.loads(PRETEND.read_text(encoding="utf-8"))))


def pretend_flux_table() -> str:
    """Return what the pretend device showed of FLUX.2, as `make pretend-gpu` wrote it."""
    phases = ("text", "reference", "denoise", "decode")

    def row(record: Mapping[str, Any]) -> tuple[str, ...]:
        peaks = record["peaks"]
        return (
            code(record["case"]),
            f"{record['weights'] / 1e9:.1f}",
            *(f"{peaks[phase] / 1e9:.2f}" if phase in peaks else "" for phase in phases),
            f"{max(record['computed'].values()) / 1e9:.2f}",
            f"{record['kernels_per_forward']:,}",
        )

    header = ("case", "weights", *phases, "computed", "kernels")
    return markdown(header, map(row, json.loads(PRETEND_FLUX.read_text(encoding="utf-8"))))


def gpu_table() -> str:
    """Return what bench/gpu.py measured on each card; a sentence where it has run on none."""
    paths = sorted(MEASURED.glob("gpu-*.json"))
    tables = [show_card(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return "\n\n".join(tables) or "There are no GPU figures: none has been measured."


def show_card(results: Mapping[str, Any]) -> str:
    """Return the cases measured on one card, with its name and torch's version."""
    header = (
        *("case", "run", "job, s", "plain / it", "step, ms", "x floor"),
        *("text", "reference", "denoise", "decode", "PNG"),
        *("peak, GB", "computed", "latents differ by"),
    )
    machine, cases = results["machine"], results.get("cases", {})
    rows = (
        row_of_side(name, side, found, sides.get("plain", {}).get("median_s"))
        for name, sides in cases.items()
        for side, found in sides.items()
    )
    return f"{machine['device']}, torch {machine['torch']}:\n\n{markdown(header, rows)}"


def row_of_side(
    name: str, side: str, found: Mapping[str, Any], before: float | None
) -> tuple[str, ...]:
    """Return the row of one way of running a case; `before` is the seconds of the plain one."""
    if "median_s" not in found:
        return code(name), side, found["error"].partition(":")[0], *[""] * 11

    def show(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    phases = ("text", "reference", "denoise", "decode", "png")
    difference = found.get("difference")
    return (
        code(name),
        side if found.get("compiled", True) else f"{side}, not compiled",
        show(found["median_s"], 2),
        show(before / found["median_s"] if before else None, 2),
        show(found["step_ms"], 0),
        show(found.get("of_floor"), 2),
        *(show(found["phases_ms"].get(phase), 0) for phase in phases),
        show(max(found["peaks_gb"].values(), default=None), 2),
        show(max(found["computed_gb"].values(), default=None), 2),
        "" if difference is None else f"{difference:.1e}",
    )


def gpu_speech_table() -> str:
    """Return what bench/gpu.py measured of speech on each card."""
    header = (
        *("card", "precision", "prompt, ms", "frame, ms", "without graphs", "four passages"),
        *("`generate`", "first sound, ms", "times real time", "four passages"),
        *("peak, GB", "computed"),
    )

    def list_rows() -> Iterator[tuple[str, ...]]:
        for path in sorted(MEASURED.glob("gpu-*.json")):
            results = json.loads(path.read_text(encoding="utf-8"))
            card = results["machine"]["device"].removeprefix("NVIDIA ").partition(" ")[0]
            for name, found in results.get("speech", {}).items():
                stock = results.get("generate", {}).get(name, {})
                yield (
                    card,
                    name.rpartition("/")[2],
                    f"{found['prefill_ms']:.0f}",
                    f"{found['frame_ms']:.1f}",
                    f"{found['frame_ms_without_graphs']:.0f}",
                    f"{found['frame_ms_of_4_rows']:.1f}",
                    f"{stock['frame_ms']:.0f}" if stock else "",
                    f"{found['first_sound_ms']:.0f}",
                    f"{found['times_real_time']:.2f}",
                    f"{found['times_real_time_of_4_rows']:.2f}",
                    f"{found['peak_gb']:.2f}",
                    f"{found['computed_gb']:.2f}",
                )

    return markdown(header, list_rows())


def roofline_table() -> str:
    """Return the floor of a forward on each card, as bench/roofline.py computes it."""
    header = ("ms", *(code(case) for case in roofline.CASES))
    return markdown(header, roofline.list_rows())


PAGES: Final[Mapping[str, Mapping[str, Callable[[], str]]]] = {
    "docs/reference.md": {
        "models": models_table,
        "input": input_table,
        "errors": errors_table,
        "settings": settings_table,
    },
    "docs/cold-start.md": {"precisions": precisions_table, "flux": flux_table},
    "docs/architecture.md": {"files": files_table},
    "docs/deploy.md": {"presets": presets_table, "pools": pools_table},
    "docs/numbers.md": {
        "overhead": overhead_table,
        "cpu": cpu_table,
        "lora": lora_table,
        "image": image_table,
        "pretend": pretend_table,
        "pretend-flux": pretend_flux_table,
        "roofline": roofline_table,
        "gpu": gpu_table,
        "gpu-speech": gpu_speech_table,
    },
}


def fill(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return a page's text with every table filled from the code.

    Raises ValueError when the place of a table is missing.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        before, found, rest = text.partition(start)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"{page} needs one {start} ... {end}")
        text = f"{before}{start}\n{table()}\n{end}{after}"
    return text


def hub_listing() -> str:
    """Return .runpod/hub.json with the catalogue's models, the newest first, and computed sizes."""
    listing = json.loads(HUB.read_text(encoding="utf-8"))
    sizes = json.loads(SIZES.read_text(encoding="utf-8"))
    listing["config"]["presets"] = presets.make_presets(sizes)
    published = [row.name for row in CATALOGUE.rows if row.embedded is None]
    grouped = {name for names in CATALOGUE.groups.values() for name in names}
    alone = [row.name for row in CATALOGUE.rows if row.embedded and row.name not in grouped]
    words = [*reversed(published), *CATALOGUE.groups, *alone]
    for entry in listing["config"]["env"]:
        if entry["key"] == "MODEL":
            entry["input"]["description"] = (
                f"Model or models to serve, comma-separated: {', '.join(words)}, or a Hugging Face"
                " repository of the same family."
            )
            entry["input"]["default"] = CATALOGUE.default
        elif entry["key"] == "PRECISION_MODE":
            entry["input"]["options"] = presets.make_precision_options(sizes)
    return json.dumps(listing, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Rewrite the pages and the listing."""
    for page, tables in PAGES.items():
        (ROOT / page).write_text(fill(page, tables), encoding="utf-8")
    HUB.write_text(hub_listing(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
