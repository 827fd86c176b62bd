"""The door with the clients that people use, each in a process of its own: `make clients`.

Python's are installed from builder/requirements-clients.lock into .venv-clients, node's by
package.json next to this file; without node, its tests say so and are skipped.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from worlds.doorway import Doorway

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
MODULES = HERE / "node_modules"
KEY = "a-key-that-nobody-guesses"
LIMIT_S = 180


@pytest.fixture(scope="module")
def door() -> Iterator[Doorway]:
    """A door with a key, whose first caller finds it warm."""
    with Doorway({"API_KEYS": KEY, "RESPONSE_COMPAT": ""}) as door:
        yield door.opened()


def run(command: list[str], door: Doorway) -> None:
    """Run a client to its end, which is 0 if it got what it expected."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(door.process.stdout_path.parent)}
    done = subprocess.run(
        [*command, door.url, KEY],
        cwd=HERE,
        env={**environ, "NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("name", ["openai", "runpod", "litellm"])
def test_a_client_of_python_gets_what_it_expects(door: Doorway, name: str) -> None:
    run([str(PYTHON), f"with_{name}.py"], door)


def test_a_client_that_is_sent_away_comes_again_and_is_served() -> None:
    with Doorway({"API_KEYS": KEY, "HTTP_QUEUE": "0"}) as busy:
        run([str(PYTHON), "with_openai_busy.py"], busy.opened())


@pytest.mark.skipif(shutil.which("node") is None, reason="node is missing: apt-get install nodejs")
@pytest.mark.skipif(not MODULES.is_dir(), reason="npm is missing: apt-get install npm")
@pytest.mark.parametrize("name", ["openai", "ai_sdk"])
def test_a_client_of_node_gets_what_it_expects(door: Doorway, name: str) -> None:
    run([shutil.which("node") or "node", f"with_{name}.mjs"], door)


@pytest.mark.skipif(not MODULES.is_dir(), reason="npm is missing: apt-get install npm")
def test_runpods_provider_for_the_ai_sdk_needs_the_key_that_it_reads() -> None:
    with Doorway({"API_KEYS": KEY, "RESPONSE_COMPAT": "image_url"}) as door:
        door.opened()
        run([shutil.which("node") or "node", "with_runpod_provider.mjs"], door)
