"""The playground in a real browser: `make browser` (Debian's chromium, playwright, axe by npm)."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from worlds.doorway import Doorway
from worlds.pod import KEY as RUNPOD_KEY
from worlds.pod import Pod
from worlds.standin import COMMAND

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv-browser" / "bin" / "python"
AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = Path("/usr/bin/chromium")
KEY = "a-key-that-nobody-guesses"


def open_all(stack: ExitStack) -> dict[str, str]:
    """Open a door of each kind; return their addresses, and what else the scenes need."""
    pod = stack.enter_context(Pod())
    stack.enter_context(pod.worker(COMMAND, {"PREFETCH": "false"}))
    environ = {"RUNPOD_API_KEY": RUNPOD_KEY, "RUNPOD_ENDPOINT_BASE_URL": pod.base}
    page = (sys.executable, "-m", "worker", "playground", "--endpoint", pod.endpoint)
    speech = (sys.executable, "-m", "worlds.noise")
    model = (sys.executable, "-u", "handler.py")
    doors = {
        "plain": Doorway(),
        "locked": Doorway({"API_KEYS": KEY}),
        "endpoint": Doorway(environ, page),
        "speech": Doorway({"MODEL": "tone,noise"}, speech, cwd=ROOT),
        "model": Doorway({"MODEL": "tiny", "MIN_STORAGE_FREE_GB": "0"}, model, cwd=ROOT),
    }
    for door in doors.values():
        stack.enter_context(door)
    found = {name: door.opened().url for name, door in doors.items()}
    axe = str(AXE) if AXE.exists() else ""
    return {**found, "key": KEY, "runpod": pod.url, "runpod_key": RUNPOD_KEY, "axe": axe}


@pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is missing: apt-get install chromium")
def test_people_do_what_they_come_for(tmp_path: Path) -> None:
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    with ExitStack() as stack:
        given = tmp_path / "given.json"
        given.write_text(json.dumps({**open_all(stack), "out": str(out)}))
        done = subprocess.run(
            [PYTHON, HERE / "with_chromium.py", given],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
