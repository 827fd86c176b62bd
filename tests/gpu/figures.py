"""What the checks measure: printed while they run, and kept for one JSON file."""

import json
from pathlib import Path
from typing import Any

import pytest


class Figures:
    """The figures of one check, under its name."""

    def __init__(
        self, collected: dict[str, Any], check: str, path: Path | None, config: pytest.Config
    ) -> None:
        self._collected = collected
        self._check = check
        self._path = path
        self._capture: Any = config.pluginmanager.getplugin("capturemanager")

    def put(self, **values: Any) -> None:
        """Print figures, pytest's capturing aside, and write all that there are."""
        self._collected.setdefault(self._check, {}).update(values)
        with self._capture.global_and_fixture_disabled():
            print(f"\n  {self._check}: {json.dumps(values)}", flush=True)  # noqa: T201 - its purpose
        if self._path is not None:
            text = json.dumps(self._collected, indent=1)
            self._path.write_text(text + "\n", encoding="utf-8")
