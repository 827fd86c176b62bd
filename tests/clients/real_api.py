"""What /openapi.json describes, by schemathesis: `make api`."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from worlds.doorway import Doorway

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = ROOT / ".venv-api" / "bin" / "schemathesis"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.mark.timeout(900)
def test_whatever_is_sent_gets_an_answer_that_is_described() -> None:
    """A status of 5xx is a failure too: nothing that it sends is the worker's own fault."""
    environ = {"HTTP_QUEUE": "100", "ALLOWED_IMAGE_HOSTS": "none.example", "MAX_PIXELS": "16384"}
    with Doorway(environ) as door:
        command = [str(SCHEMATHESIS), "run", f"{door.opened().url}/openapi.json", "--no-color"]
        command += ["--checks", ",".join(CHECKS), "--suppress-health-check", "all", "--seed", "1"]
        command += ["--max-examples", os.environ.get("API_EXAMPLES", "30")]
        command += ["--generation-database", "none", "--continue-on-failure"]
        out = ROOT / "out"
        out.mkdir(exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (out / "api.txt").write_text(done.stdout)
        assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-3000:]
        sent = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert sent is not None
        assert sent[1] == sent[2]
        assert int(sent[1]) > 1000
        assert door.get("/health").ok
        assert "Traceback" not in door.process.stderr
