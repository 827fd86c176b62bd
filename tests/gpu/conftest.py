"""What the checks on a CUDA device share: the device, the models on it, and where figures go."""

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.figures import Figures
from gpu.studio import FLUX, Studio

from worker import log

# What matters most comes first, since a run may be cut short: FLUX.2, and then this order.
ORDER = (
    "weighing",
    "speech",
    "offload",
    "opening",
    "pictures",
    "compiling",
    "errors",
    "loop",
    "combining",
    "vae",
    "doctor",
    "attention",
    "begun",
    "kept_graphs",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of these checks."""
    parser.addoption("--device", default="cuda", help="cpu rehearses what needs no CUDA")
    parser.addoption("--figures", type=Path, help="the JSON file that the figures are written to")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """End without a CUDA device; leave out what cannot be rehearsed on a CPU."""
    if config.option.collectonly:
        return
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        pytest.exit("no CUDA device: these checks need one (--device cpu rehearses some)", 1)
    items.sort(key=lambda item: (FLUX not in item.name, _find_place(item.path.stem)))
    skipped = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if config.getoption("--device") == "cpu" and item.get_closest_marker("cuda"):
            item.add_marker(skipped)


def _find_place(module: str) -> int:
    """Return the place of a module in the order; the end for one that has none there."""
    name = module.removeprefix("cuda_")
    return ORDER.index(name) if name in ORDER else len(ORDER)


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of what cannot be rehearsed."""
    config.addinivalue_line("markers", "cuda: cannot be rehearsed on a CPU")
    try:
        importlib.metadata.version("worker")
    except importlib.metadata.PackageNotFoundError:
        # every reply has its version
        pytest.exit("the worker is not installed here: pip install --no-deps -e .", 1)
    config.pluginmanager.register(Failures(config))


class Failures:
    """Prints a failure at once: a machine may be taken back before pytest's summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print why a check failed."""
        if report.failed:
            terminal: Any = self._config.pluginmanager.getplugin("terminalreporter")
            terminal.write_line(f"\n{report.nodeid} failed:\n{report.longreprtext}", flush=True)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """Where the checks run."""
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def collected(pytestconfig: pytest.Config, device: torch.device) -> Iterator[dict[str, Any]]:
    """All figures of a run; each is written at once, so that a run that dies keeps the others."""
    path: Path | None = pytestconfig.getoption("--figures")
    found: dict[str, Any] = {"machine": {"torch": torch.__version__, "device": device.type}}
    if device.type == "cuda":
        found["machine"]["name"] = torch.cuda.get_device_name(device)
    yield found
    text = json.dumps(found, indent=1)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def figures(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, collected: dict[str, Any]
) -> Figures:
    """Where a check puts what it measures."""
    path: Path | None = pytestconfig.getoption("--figures")
    return Figures(collected, request.node.name, path, request.config)


@pytest.fixture(scope="session")
def studio(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """The embedded models, opened as the worker opens them."""
    log.configure("INFO")
    return Studio(tmp_path_factory.mktemp("studio"), device)
