"""Fill the tables of README and docs/ from the code that they describe: `make readme`.

A table stands between `<!-- NAME -->` and `<!-- end -->`; tests/test_readme.py fails while a page
and the code differ.
"""

import ast
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from worker import errors, settings
from worker.edge import fields
from worker.weights import catalog

ROOT: Final = Path(__file__).resolve().parents[1]
SIZES: Final = ROOT / "bench" / "results" / "sizes.json"
OVERHEAD: Final = ROOT / "bench" / "results" / "overhead.json"

# What stands beside src/worker, in the order of the reader's interest.
BESIDE: Final[Mapping[str, str]] = {
    "checkpoints/tiny/": "the embedded models: a few megabytes, the classes of the real ones",
    "builder/": "the locks, and what the image build runs",
    "tools/": "the demo, and the project's own checks: mutants, certainty, the image, these tables",
    "Dockerfile": "the image; build.sh builds it",
    ".runpod/": "what RunPod's Hub shows and tests",
    "bench/": "what the numbers below come from",
    "tests/": "mirrors src/worker; the campaigns of faults/ and fuzz/",
    "worlds/": "what stands around the worker in tests: a loopback job API, hub, site and bucket",
    "training/": "how the embedded models are trained, lowered and judged",
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
    rows = ((code(r.name), code(*r.aliases), r.accepts, r.default) for r in fields.table())
    return markdown(("field", "aliases", "type, limits", "default"), rows)


def errors_table() -> str:
    """Return every error code once, with the meaning of the first error that has it."""
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
            either(kind.error_type for kind in held),
            either("yes" if kind.retryable else "no" for kind in held),
            first_line(held[0].__doc__),
        )
        for name, held in kinds.items()
    )
    return markdown(("code", "type", "retryable", "meaning"), rows)


def either(words: Iterable[str]) -> str:
    """Return the different words, joined by "or"."""
    return " or ".join(dict.fromkeys(words))


def settings_table() -> str:
    """Return the environment's variables."""
    rows = ((named(*row.names), row.meaning, row.default) for row in settings.table())
    return markdown(("variable", "meaning", "default"), rows)


def named(name: str, *aliases: str) -> str:
    """Return a variable with its aliases."""
    return f"{code(name)} ({code(*aliases)})" if aliases else code(name)


def models_table() -> str:
    """Return the catalogue."""
    rows = ((code(row.name), *facts(row)) for row in catalog.TABLE)
    header = ("name", "repository", "task", "base schedule", "Lightning steps", "licence")
    return markdown(header, rows)


def facts(row: catalog.ModelSpec) -> tuple[str, ...]:
    """Return a model's row without its name."""
    own = row.negative_prompt.strip()
    references = f", 1-{row.max_references} references" if row.max_references > 1 else ""
    return (
        f"checkpoints/{row.embedded} (embedded)" if row.embedded else row.repository,
        ", ".join(row.tasks) + references,
        f"{row.steps} steps, CFG {row.true_cfg_scale:g}" + (", a negative prompt" if own else ""),
        ", ".join(map(str, row.lightning)),
        row.licence,
    )


def files_table() -> str:
    """Return every file of the worker with the first line of its docstring."""
    package = ROOT / "src" / "worker"
    folders = sorted(path.parent for path in package.glob("*/**/__init__.py"))
    lines = [
        f"{'handler.py':<22}{docstring(ROOT / 'handler.py')}",
        "src/worker/",
        *modules(package),
    ]
    for folder in folders:
        indent = 2 * len(folder.relative_to(package).parts)
        lines += [
            f"{' ' * indent + folder.name + '/':<22}{docstring(folder / '__init__.py')}",
            *modules(folder, indent + 2),
        ]
    lines += [f"{name:<22}{meaning}" for name, meaning in BESIDE.items()]
    return "\n".join(["```", *lines, "```"])


def modules(folder: Path, indent: int = 2) -> list[str]:
    """Return one line a module."""
    return [
        f"{' ' * indent + path.name:<22}{docstring(path)}"
        for path in sorted(folder.glob("*.py"))
        if path.name != "__init__.py"
    ]


def docstring(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return first_line(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))


def first_line(text: str | None) -> str:
    """Return a docstring's first line without its full stop."""
    return (text or "").partition("\n")[0].removesuffix(".")


def overhead_table() -> str:
    """Return how the worker compares to the naive way, from the bench's last figures."""
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


def precisions_table() -> str:
    """Return what each precision takes, as bench/sizes.py computed it."""
    held = json.loads(SIZES.read_text(encoding="utf-8"))
    names = ("disk", "device", "transformer", "text_encoder", "vae", "lora")
    rows = ((code(name), *(f"{sizes[n]:.1f}" for n in names)) for name, sizes in held.items())
    header = ("GB", "disk", "device", "transformer", "text encoder", "VAE", "one LoRA")
    return markdown(header, rows)


PAGES: Final[Mapping[str, Mapping[str, Callable[[], str]]]] = {
    "README.md": {"models": models_table},
    "docs/reference.md": {
        "input": input_table,
        "errors": errors_table,
        "settings": settings_table,
    },
    "docs/cold-start.md": {"precisions": precisions_table},
    "docs/architecture.md": {"files": files_table},
    "docs/numbers.md": {"overhead": overhead_table},
}


def filled(page: str) -> str:
    """Return a page's text with every table as the code has it.

    Raises ValueError when a table's place is missing.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, table in PAGES[page].items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        before, found, rest = text.partition(start)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"{page} needs one {start} ... {end}")
        text = f"{before}{start}\n{table()}\n{end}{after}"
    return text


def main() -> int:
    """Write the pages anew."""
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
