"""bitsandbytes is imported without torch's compiler, and asks for a fetcher in vain, silently."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.engine import fast_import

# By these names bitsandbytes asks for the fetcher, and says that it is not there.
FETCHER, SAYS_SO = "kernels", "bitsandbytes.backends.cpu.ops"
# A library as bitsandbytes is: functions for the compiler, with options or without.
LIBRARY = """
import importlib.util
import torch

def double(x):
    return 2 * x

plain = torch.compile(double)
optioned = torch.compile(dynamic=True, mode="reduce-overhead")(double)
twice = torch.compile(model=None, fullgraph=True)(double)
{end}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The library, found before the one that is installed."""
    folder = tmp_path / "bitsandbytes"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    before = {name: module for name, module in sys.modules.items() if name.startswith("bitsandby")}
    for name in before:
        del sys.modules[name]
    monkeypatch.delitem(sys.modules, FETCHER, raising=False)
    logger = logging.getLogger(SAYS_SO)
    filters = list(logger.filters)
    logger.filters.clear()
    yield folder / "__init__.py"
    logger.filters[:] = filters
    sys.modules.pop("bitsandbytes", None)
    sys.modules.update(before)


def test_its_functions_stay_as_they_are_and_ours_are_compiled_afterwards(package: Path) -> None:
    package.write_text(LIBRARY.format(end=""))
    compiler = torch.compile
    fast_import.load()
    found: Any = sys.modules["bitsandbytes"]
    assert found.plain is found.optioned is found.twice is found.double
    assert torch.compile is compiler
    with pytest.raises(ImportError):
        __import__(FETCHER)


def test_an_import_that_fails_leaves_the_compiler_as_it_was(package: Path) -> None:
    package.write_text(LIBRARY.format(end="raise ValueError('broken')"))
    compiler = torch.compile
    with pytest.raises(ValueError, match="broken"):
        fast_import.load()
    assert torch.compile is compiler


def test_only_the_advice_to_install_the_fetcher_is_dropped(package: Path) -> None:
    package.write_text(LIBRARY.format(end=""))
    fast_import.load()
    logger = logging.getLogger(SAYS_SO)
    advice = "Failed to load CPU gemm_4bit_forward from kernels-community: %s"
    records = (
        logger.makeRecord(logger.name, logging.WARNING, "ops.py", 1, text, ("why",), None)
        for text in (advice, "another matter: %s")
    )
    kept = [record.getMessage() for record in records if logger.filter(record)]
    assert kept == ["another matter: why"]


def test_whatever_uses_the_device_comes_after_it() -> None:
    code = f"import sys; import worker.engine; print(sys.modules.get({FETCHER!r}, 'not blocked'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "None\n"
