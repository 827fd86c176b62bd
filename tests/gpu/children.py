"""Processes next to the checks: each has a CUDA context of its own, which it may lose."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
MARK: Final = "FOUND "
# On an H100 a warm-up took 44 s, and imports of which no bytecode was kept 23.
LONGEST_S: Final = 240.0


class Child:
    """A Python process that prints what it finds as one line of JSON after a mark."""

    def __init__(self, arguments: Sequence[str], **environ: str) -> None:
        paths = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT)]
        given = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([*paths, given] if given else paths)
        self._text = ""
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read(self) -> str:
        """Wait for its end and return its output; what it said otherwise comes last."""
        if self._text:
            return self._text
        try:
            out, errors = self._process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, errors = self._process.communicate()
            errors += f"\nstopped after {LONGEST_S:g} s"
        self._text = f"{out}\n{errors[-3000:]}\nexit code {self._process.returncode}"
        return self._text

    def find(self) -> dict[str, Any]:
        """Return what it found; raises AssertionError with its output when that is nothing."""
        text = self.read()
        lines = [line for line in text.splitlines() if line.startswith(MARK)]
        assert lines, text
        found: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
        return found
