"""The bench of the worker's overhead runs, so that its figures can be made again."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "overhead.py"


def test_the_bench_measures_every_phase_of_every_format(tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    command = [sys.executable, str(BENCH), "--jobs", "1", "--out", str(out)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads(out.read_text())
    for output_format in ("png", "jpeg", "webp"):
        result = results[output_format]
        assert set(result["worker_phases_ms"]) == {
            "parse",
            "fetch",
            "decode",
            *(f"{phase} {output_format}" for phase in ("encode", "base64", "reply")),
        }
        assert set(result["whole_job_ms"]) == {"worker", "naive"}
        assert result["picture_bytes"] > 100_000
    assert printed.stdout.count("whole job") == 3
