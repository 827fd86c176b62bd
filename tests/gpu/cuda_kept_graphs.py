"""COMPILE_CACHE=auto on the device: a second worker loads the graphs of the first one."""

from pathlib import Path

import pytest
from gpu.children import Child
from gpu.figures import Figures

pytestmark = pytest.mark.cuda

START = """
import json, time
from structlog.testing import capture_logs
from torch._dynamo.utils import counters
from worker import boot, settings
with capture_logs() as lines:
    boot.boot(settings.read())
found = counters["inductor"]
events = {line["event"]: line for line in lines}
print("FOUND " + json.dumps({
    "hits": found["fxgraph_cache_hit"],
    "misses": found["fxgraph_cache_miss"],
    "warm_s": events["model warm"]["seconds"],
    "kept": events.get("compiled graphs kept", {}).get("bytes"),
    "loaded": events.get("compiled graphs loaded", {}).get("bytes"),
    "graphs": [line["seconds"] for line in lines if line["event"] == "compiled"],
}))
"""


def test_a_second_worker_compiles_nothing(figures: Figures, tmp_path: Path) -> None:
    """Each with an empty disk of its own, and the volume in common."""
    found = []
    for number in range(2):
        environ = {
            "MODEL": "tiny-edit",
            "MODEL_DIR": str(tmp_path / "volume"),
            "MIN_STORAGE_FREE_GB": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"own-{number}"),
            "TRITON_CACHE_DIR": str(tmp_path / f"own-{number}" / "triton"),
        }
        found.append(Child(["-c", START], **environ).find())
    first, second = found
    figures.put(first=first, second=second)
    # a graph that equals an earlier one is found in the same process too
    assert (first["misses"] > 0, first["loaded"]) == (True, None)
    assert (second["misses"], second["kept"]) == (0, None)
    assert second["hits"] == first["hits"] + first["misses"]
    assert second["loaded"] == first["kept"] > 0
    assert len(second["graphs"]) == len(first["graphs"])
