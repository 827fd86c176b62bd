"""Opening a model fetches no code, and what its libraries say comes as lines of our log."""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from worlds.process import Process

TESTS = Path(__file__).parents[1]
START_S = 300.0
# A package like the one that downloads compiled kernels and runs them: it leaves a note instead.
KERNELS = """
import pathlib
note = pathlib.Path({note!r})
note.write_text(note.read_text() + "imported\\n" if note.exists() else "imported\\n")

def get_kernel(repository, **options):
    note.write_text(note.read_text() + repository + "\\n")
    raise OSError("fetched")
"""
OPEN = """
import gc
gc.disable()  # a fifth of what it takes to import everything, seven times
import sys
from pathlib import Path
from worker import log
if {configured}:
    log.configure("WARNING")
from worlds import prepared
from worker.tasks.picture import PictureWish
from worlds.making import made
precision = {precision!r}
asked = PictureWish("a hare", None, "text-to-image", 0, 4, 1.0, True, (), 64, 64)
if not {configured}:
    import structlog
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
model = prepared.model("tiny-image", prepared.opened("tiny-image", Path({home!r}), precision))
made(model, asked)
{after}
"""
SAY = """
import importlib, logging, warnings
for name in ("transformers", "diffusers", "huggingface_hub", "torch", "accelerate", "bitsandbytes"):
    importlib.import_module(name)
    for logger in (name, name + ".nn", name + ".distributed"):
        logging.getLogger(logger).warning("W %s", logger)
        logging.getLogger(logger).error("E %s", logger)
warnings.warn("a library's warning")
"""


def run(code: str, tmp_path: Path, **environ: str) -> Process:
    """Run code with tests and src on its path, and a package `kernels` before all others."""
    package = tmp_path / "first" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(KERNELS.format(note=str(tmp_path / "note")))
    info = tmp_path / "first" / "kernels-0.18.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    path = f"{tmp_path / 'first'}:{TESTS}:{TESTS.parent / 'src'}"
    command = (sys.executable, "-c", textwrap.dedent(code))
    return Process(command, {"PYTHONPATH": path, **environ})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume on which the first that opens a model prepares it."""
    return tmp_path_factory.mktemp("volume")


def code(home: Path, precision: str, *, configured: bool = True, after: str = "") -> str:
    return OPEN.format(configured=configured, precision=precision, home=str(home), after=after)


@pytest.mark.parametrize("precision", ["4bit", "8bit"])
def test_opening_a_model_says_nothing_outside_our_log_and_fetches_no_kernel(
    precision: str, home: Path, tmp_path: Path
) -> None:
    """With `kernels` installed bitsandbytes would fetch from a hub whatever that holds by then."""
    with run(code(home, precision), tmp_path) as process:
        assert process.wait(START_S) == 0, process.stderr
        assert process.stdout == ""
        assert [json.loads(line) for line in process.stderr.splitlines()] == []
    assert not (tmp_path / "note").exists()


def test_the_package_would_be_found_and_asked_without_us(tmp_path: Path) -> None:
    """The test above would hold for a world in which nobody looks for `kernels`."""
    with run("import kernels; kernels.get_kernel('a/b')", tmp_path) as process:
        assert process.wait(START_S) != 0
    assert (tmp_path / "note").read_text() == "imported\na/b\n"


def test_who_opens_a_model_without_our_log_sees_no_complaint_either(
    home: Path, tmp_path: Path
) -> None:
    """A script that opens a bundle: no advice to install what we keep away."""
    with run(code(home, "4bit", configured=False), tmp_path) as process:
        assert process.wait(START_S) == 0, process.stderr
        assert process.stdout == ""
        assert process.stderr == ""


def test_no_library_takes_kernels_for_installed(home: Path, tmp_path: Path) -> None:
    after = """
from transformers.utils import is_kernels_available
from diffusers.utils.import_utils import is_kernels_available as diffusers_sees
assert not is_kernels_available() and not diffusers_sees()
try:
    import kernels
except ImportError:
    raise SystemExit(7)
"""
    with run(code(home, "bf16", after=after), tmp_path) as process:
        assert process.wait(START_S) == 7, process.stderr
    assert not (tmp_path / "note").exists()


@pytest.mark.parametrize("first", ["the log", "the libraries"])
def test_what_libraries_say_once_they_are_imported_is_a_line_of_our_log(
    first: str, home: Path, tmp_path: Path
) -> None:
    """At import four of them attach a handler of their own, past our log, and set its level."""
    before = "" if first == "the log" else "import transformers, diffusers, huggingface_hub\n"
    with run(f"{before}{code(home, '4bit', after=SAY)}", tmp_path) as process:
        assert process.wait(START_S) == 0, process.stderr
        lines: list[dict[str, Any]] = [json.loads(line) for line in process.stderr.splitlines()]
        assert process.stdout == ""
    said = [line["event"] for line in lines]
    names = [
        f"{name}{end}"
        for name in (
            *("transformers", "diffusers", "huggingface_hub", "torch", "accelerate"),
            "bitsandbytes",
        )
        for end in ("", ".nn", ".distributed")
    ]
    for name in names:
        assert said.count(f"E {name}") == 1
        quiet = name.partition(".")[0] in ("transformers", "diffusers", "bitsandbytes")
        assert said.count(f"W {name}") == (0 if quiet else 1)
    assert not any("kernels" in event for event in said)
