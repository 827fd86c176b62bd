"""A mount namespace in which folders really are read-only, even for root."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# each folder is mounted over itself, read-only; then the remaining arguments are run
MOUNT = (
    'while [ "$1" != -- ]; do'
    ' mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 99; shift; done;'
    ' shift; exec "$@"'
)
# a case is an environment; its answer is what a start on a CPU or on a GPU would open
START = textwrap.dedent(
    """
    import gc
    gc.disable()  # a fifth of what it takes to import everything, each time
    import json, sys
    from worker import boot, log, settings
    from worker.bundle.obtain import obtain
    from worker.driver import Gpu
    from worker.errors import WorkerError
    from worker.families.catalogue import CATALOGUE
    from worker.families.qwen_image.recipe import RECIPE

    log.configure("ERROR")
    for case in json.load(sys.stdin):
        gpu = Gpu("a GPU", (9, 0), 80 << 30, case["gpu"]) if case["gpu"] else None
        try:
            read = settings.read(case["environ"])
            specs = CATALOGUE.resolve(read.model, read, has_gpu=gpu is not None)
            found = [obtain(spec, RECIPE, read, gpu, CATALOGUE) for spec in specs]
            answer = {"folders": [str(f.folder) for f in found], "facts": [f.facts for f in found]}
            if case["draw"]:
                boot.boot(read)
        except WorkerError as error:
            answer = {
                "code": error.code, "message": error.message, "retryable": error.retryable
            }
        print(json.dumps(answer, default=dict), flush=True)
    """
)


def _command(folders: Sequence[Path], *words: str) -> list[str]:
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--mount", *own, "sh", "-c", MOUNT, "sh", *map(str, folders), "--", *words]


@cache
def impossible() -> str | None:
    """Return why this machine cannot mount a folder read-only; None when it can."""
    if shutil.which("unshare") is None:
        return "there is no unshare (util-linux)"
    tried = subprocess.run(
        _command([Path("/etc")], "touch", "/etc/read-only-test"),
        capture_output=True,
        text=True,
        check=False,
    )
    if "Read-only file system" in tried.stderr:
        return None
    return f"no read-only mount here: {tried.stderr.strip()[:100]}"


def case(environ: Mapping[str, str], *, gpu: int = 0, draw: bool = False) -> dict[str, Any]:
    """Describe one start: its environment, its GPU's free bytes, whether it also boots."""
    return {"environ": dict(environ), "gpu": gpu, "draw": draw}


def python(folders: Sequence[Path], code: str, stdin: str = "") -> str:
    """Run Python where the folders are read-only, the first being HOME; return its output."""
    done = subprocess.run(
        _command(folders, sys.executable, "-c", code),
        input=stdin,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folders[0])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def started(folders: Sequence[Path], *cases: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Start a worker for each case where the folders are read-only; return each answer."""
    output = python(folders, START, json.dumps(cases))
    return [json.loads(line) for line in output.splitlines()]
