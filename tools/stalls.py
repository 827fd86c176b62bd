"""Run the tests while their processes stand still for moments: what counts on being soon fails.

    python -m tools.stalls [--seed 1] [--longest 1.5] [tests/test_x.py ...]

A shared machine does so too, but rarely: such a test fails in one of many runs of make certain.
About once a second one of pytest's processes is stopped for 0.3 s or up to `longest`, one time in
three all of them. Each test has its own time limit all the same, which is far beyond that.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
SHORTEST_S: Final = 0.3
BETWEEN_S: Final = 0.7  # on average
ALL_OF: Final = 1 / 3  # how often everything stands still, as on a machine that is paused
PYTEST: Final = ("-q", "-n", "3", "--dist", "loadfile", "-m", "not trial")


def list_tree(pid: int) -> list[int]:
    """Return a process and all that come from it, oldest first; none for one that has ended."""
    found = [pid] if Path(f"/proc/{pid}").exists() else []
    for one in found:
        with contextlib.suppress(OSError):  # it ends while it is looked at
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal, or gone."""
    try:
        # proc_pid_stat(5): the state follows the name, which is in parentheses
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return True


def stop_for(seconds: float, pids: Sequence[int]) -> None:
    """Stop processes and let them go on; those that a test has stopped stay so."""
    stopped = [pid for pid in pids if not is_stopped(pid)]
    try:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run pytest to its end and return its status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=1.5, help="seconds")
    parser.add_argument("paths", nargs="*", help="test files; all if none is given")
    given = parser.parse_args(arguments)
    rng, times = random.Random(given.seed), 0
    words = (sys.executable, "-m", "pytest", *PYTEST, *given.paths)
    with subprocess.Popen(words, cwd=ROOT) as tests:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = tests.wait(rng.expovariate(1 / BETWEEN_S))
                break
            tree = list_tree(tests.pid)
            chosen = tree if rng.random() < ALL_OF else [rng.choice(tree)]
            stop_for(rng.uniform(SHORTEST_S, given.longest), chosen)
            times += 1
    print(f"stood still {times} times, seed {given.seed}")
    return status


if __name__ == "__main__":
    sys.exit(main())
