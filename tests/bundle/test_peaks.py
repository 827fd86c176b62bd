"""Preparing many shards takes the memory of one and the disk of the bundle and two."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bench import synthetic
from worker.bundle import layout
from worker.engine.quantise import Precision

MB = 1_000_000
SHARD = 50 * MB
# What one weight takes while it is quantised (24 bytes per element), allocator arenas, headers.
CONSTANT = 80 * MB
CHILD = textwrap.dedent(
    """
    import json, os, sys, threading
    from pathlib import Path

    import torch

    from worlds import prepared
    from worlds.repository import Copying
    from worker import log
    from worker.weights.spec import ModelSpec
    from worker.bundle.plan import Order
    from worker.bundle.prepare import prepare
    from worker.families.qwen_image.recipe import RECIPE
    from bench import synthetic

    source, home, precision = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    log.configure("ERROR")
    torch.set_num_threads(1)
    prepare(prepared.order_of("tiny-edit", home / "warm", precision))

    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def disk():
        total = 0
        for folder, _, files in os.walk(home / "main"):
            for name in files:
                try:
                    total += os.stat(os.path.join(folder, name)).st_blocks * 512
                except OSError:
                    pass
        return total

    before, peak, stop = anonymous(), [0, 0], threading.Event()

    def watch():
        while not stop.wait(0.002):
            peak[0], peak[1] = max(peak[0], anonymous()), max(peak[1], disk())

    watcher = threading.Thread(target=watch)
    watcher.start()
    snapshot = Copying(source)
    prepare(
        Order(
            ModelSpec("wide", "org/wide", "QwenImageEditPlusPipeline", tasks=("edit",)),
            RECIPE,
            snapshot,
            precision,
            prepared.order_of("tiny-edit", home).settings,
            torch.device("cpu"),
            home / "main",
            home / "main/downloads",
            lightning={8: (snapshot, synthetic.LORA.format(8))},
        )
    )
    stop.set()
    watcher.join()
    peak[1] = max(peak[1], disk())  # on a busy machine nobody may have looked at the end
    print(json.dumps({"memory": peak[0] - before, "disk": peak[1]}))
    """
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of 230 MB in five shards, with a LoRA."""
    folder = tmp_path_factory.mktemp("published") / "model"
    return synthetic.publish(folder, synthetic.narrow(512, 12), edit=True, shard_bytes=SHARD)


@pytest.mark.parametrize("precision", ["4bit", "bf16"])
def test_memory_stays_below_a_shard_and_disk_below_the_bundle_and_two(
    precision: Precision, published: Path, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, published, tmp_path, precision],
        env={**os.environ, "PYTHONPATH": f"{root / 'tests'}:{root}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    peak = json.loads(done.stdout)
    sizes = sorted(path.stat().st_size for path in published.glob("transformer/*.safetensors"))
    assert len(sizes) >= 4
    lora = (published / synthetic.LORA.format(8)).stat().st_size
    bundle = layout.verify(tmp_path / "main" / layout.BUNDLES / f"wide-{precision}").size
    assert peak["memory"] < sizes[-1] + lora + CONSTANT
    assert peak["memory"] < sum(sizes)
    assert bundle < peak["disk"] < bundle + sizes[-1] + sizes[-2] + MB
    print(f"\n{precision}: memory {peak['memory'] / MB:.0f} MB, disk {peak['disk'] / MB:.0f} MB")  # noqa: T201 - pytest -s shows the figures
