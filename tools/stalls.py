"""A machine that stands still for moments: what counts on being soon fails.

Shared machines do so, but rarely: a test that minds fails in one run of many. Here about once a
second one of the processes that this one has started, one time in three all of them, is stopped
for 0.3 to 1.5 s. Each test has a time limit of its own all the same, which is far beyond that.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

SHORTEST_S: Final = 0.3
LONGEST_S: Final = 1.5
BETWEEN_S: Final = 0.7  # on average
ALL_OF: Final = 1 / 3  # how often everything stands still, as on a machine that is paused


@contextlib.contextmanager
def stalling(seed: int) -> Iterator[None]:
    """Stop what comes from this process for moments, again and again, and let it go on."""
    rng, ended = random.Random(seed), threading.Event()

    def stop_some() -> None:
        while not ended.wait(rng.expovariate(1 / BETWEEN_S)):
            if tree := list_tree(os.getpid())[1:]:
                chosen = tree if rng.random() < ALL_OF else [rng.choice(tree)]
                stop_for(rng.uniform(SHORTEST_S, LONGEST_S), chosen)

    thread = threading.Thread(target=stop_some, name="stalls")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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
