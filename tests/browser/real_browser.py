"""The playground in a real browser: `make browser` (Debian's chromium, playwright, axe by npm)."""

import subprocess
from pathlib import Path

import pytest

from worlds.doorway import Doorway

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv-browser" / "bin" / "python"
AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = Path("/usr/bin/chromium")
KEY = "a-key-that-nobody-guesses"


@pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is missing: apt-get install chromium")
def test_people_do_what_they_come_for() -> None:
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    with Doorway() as door, Doorway({"API_KEYS": KEY}) as locked:
        door.opened()
        locked.opened()
        axe = [str(AXE)] if AXE.exists() else []
        done = subprocess.run(
            [PYTHON, HERE / "with_chromium.py", door.url, locked.url, KEY, out, *axe],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
