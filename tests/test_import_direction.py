"""Imports point one way, the environment is read in one place, and torch stays in its rooms."""

import ast
import graphlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"

# room -> the rooms that its files may import
ROOMS = {
    "floor": {"floor"},
    "seam": {"floor", "media", "seam"},
    "media": {"floor", "media"},
    "weights": {"floor", "weights"},
    "loras": {"floor", "media", "weights", "loras"},
    "engine": {"floor", "engine"},
    "bundle": {"floor", "weights", "engine", "bundle"},
    "catalogue": {"floor", "weights", "catalogue"},
    "families": {
        *("floor", "seam", "media", "loras", "weights", "engine", "bundle", "tasks", "catalogue"),
        "families",
    },
    "edge": {"floor", "seam", "media", "edge"},
    "tasks": {"floor", "seam", "media", "loras", "edge", "tasks"},
    "jobs": {"floor", "seam", "media", "loras", "edge", "tasks", "jobs"},
    "openai": {"floor", "seam", "media", "edge", "jobs", "openai"},
    "doors": {"floor", "seam", "media", "edge", "jobs", "openai", "doors"},
    "start": {
        *("floor", "seam", "media", "weights", "engine", "bundle", "catalogue", "families"),
        *("doors", "start"),
    },
}
LIMITS = "worker.tasks.capabilities"  # the name by which any door's limit is reported
FLOOR = {
    "errors",
    "log",
    "setting_values",
    "settings",
    "codings",
    "driver",
    "versions",
}  # they know nothing of ours
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes"}
# what families say of themselves before any is imported
LISTED = {"catalogue", "family", "models"}
PLANNED = re.compile(r"worker\.families\.\w+\.(?:planning|working)")
HEAVY_ROOMS = {"engine", "bundle", "families"}
# `compression` has zstd from Python 3.14 on; before, a package has.
STANDARD = {*sys.stdlib_module_names, "compression"}
PICTURE_ROOMS = {"media", "tasks", "engine", "families"}


def module(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module(file): file for file in sorted((SOURCE / "worker").rglob("*.py"))}


def room(name: str) -> str:
    inner = name.split(".")[1:]
    if (inner[:1] == ["families"] and inner[-1] in LISTED) or PLANNED.fullmatch(name):
        return "catalogue"
    if inner and inner[0] in ROOMS:
        return inner[0]
    if not inner or inner[0] in FLOOR:
        return "floor"
    return "start"


def imported(file: Path) -> Iterator[str]:
    """Yield every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module


IMPORTS = {name: set(imported(file)) for name, file in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_the_rooms_below_it(name: str) -> None:
    wrong = {
        other
        for other in IMPORTS[name]
        if other in FILES and other != "worker" and room(other) not in ROOMS[room(name)]
    }
    assert not wrong


def test_no_two_files_import_each_other() -> None:
    graph = {name: {o for o in others if o in FILES} for name, others in IMPORTS.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    place = {name: order.index(name) for name in FILES}
    assert all(place[other] < place[name] for name in FILES for other in graph[name])


def test_booting_and_serving_do_not_know_each_other() -> None:
    start = {name for name in FILES if room(name) == "start"}
    served = {name for name in FILES if room(name) in {"edge", "tasks", "jobs", "openai", "doors"}}
    assert not IMPORTS["worker.boot"] & served
    assert not set().union(*(IMPORTS[name] for name in served)) & start


@pytest.mark.parametrize("name", [name for name in FILES if room(name) not in HEAVY_ROOMS])
def test_torch_stays_in_its_rooms(name: str) -> None:
    assert not {other.split(".")[0] for other in IMPORTS[name]} & HEAVY


@pytest.mark.parametrize("name", [n for n in FILES if room(n) not in PICTURE_ROOMS])
def test_pictures_are_opened_in_few_rooms(name: str) -> None:
    assert "PIL" not in {other.split(".")[0] for other in IMPORTS[name]}


@pytest.mark.parametrize("name", [n for n in FILES if room(n) in {"edge", "jobs"}])
def test_jobs_and_their_edge_speak_of_no_picture(name: str) -> None:
    assert not re.search(r"\b(pictures?|images?)\b", FILES[name].read_text(), re.IGNORECASE)


@pytest.mark.parametrize("name", [name for name in FILES if name != "worker.settings"])
def test_only_settings_reads_the_environment(name: str) -> None:
    touched = {
        node.attr
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert not touched & {"environ", "environb", "getenv", "putenv"}


@pytest.mark.parametrize("name", [n for n in FILES if not n.startswith("worker.doors.runpod")])
def test_what_is_runpods_stays_behind_its_door(name: str) -> None:
    """Neither its SDK, its name of a caller's bucket, nor the bytes that its replies may have."""
    text = FILES[name].read_text()
    assert "runpod" not in {other.split(".")[0] for other in IMPORTS[name]}
    assert "s3Config" not in text
    assert "max_reply_bytes" not in text or name in {"worker.settings", LIMITS}


def test_doors_do_not_know_each_other_and_what_they_share_knows_none() -> None:
    for name in FILES:
        folder = name.split(".")[:3]
        if folder[1:2] == ["doors"]:
            others = [other.split(".")[:3] for other in IMPORTS[name] if "worker.doors." in other]
            assert all(other in (folder, ["worker", "doors", "start"]) for other in others)


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_the_door_costs_nothing_to_import() -> None:
    code = "import sys; old = set(sys.modules); import handler; print(*set(sys.modules) - old)"
    assert python(code).split() == ["handler"]


def test_all_but_the_rooms_of_torch_loads_without_it() -> None:
    names = [
        name for name in FILES if room(name) not in HEAVY_ROOMS and not name.endswith("__main__")
    ]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    assert python(code).strip() == "False"


def simplify(name: str) -> str:
    """Return a distribution's name as the packaging standard (PEP 503) compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_worker_imports_nothing_that_the_image_has_not() -> None:
    """What only the tests have, such as the snac package, is not there at run time."""
    builder = ROOT / "builder"
    lock = (builder / "requirements-cu128.lock").read_text()
    locked = {simplify(name) for name in re.findall(r"(?m)^([\w.-]+)==", lock)}
    known = importlib.metadata.packages_distributions()
    for name, file in FILES.items():
        for target in {one.split(".")[0] for one in imported(file)} - STANDARD:
            if target != "worker":
                found = {simplify(one) for one in known.get(target, ())}
                assert found & locked, f"{name} imports {target}"
