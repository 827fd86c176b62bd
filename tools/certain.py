"""Run the tests many times, in random order, and name what failed in any run.

    python -m tools.certain --times 10 [--seed 1] [--neighbour always] [tests/test_x.py ...]
    python -m tools.certain --times 1 --neighbour stalls

The second half of the runs share the machine with a busy neighbour: they go two at a time, beside a
process that keeps the disk busy, so that the neighbour's time is of use too; one that is left over
is beside processes that only compute. With `stalls` no run has a neighbour, but the processes of
each stand still for moments. Run N has the order of seed SEED+N, which pytest prints;
OUT/run-NN/output.txt has its output, headed by the command that repeats the run. No test is
retried: one that fails in one run of ten stops one release in ten. The status is 1 when anything
failed.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Final

from tools.neighbour import busy
from tools.stalls import stalling

ROOT: Final = Path(__file__).parent.parent
ALONE: Final = 3  # workers, as in make test
PAIRED: Final = 2  # workers of each of two runs: more would only wait for the two cores
LONGEST_S: Final = 3 * 3600.0  # each test has a limit of its own; this is for pytest itself


@dataclass(frozen=True, slots=True)
class Run:
    """How one run went: `failed` has the names of tests, or why there are none."""

    seconds: float
    failed: tuple[str, ...]


def build_command(seed: int, folder: Path, paths: Sequence[str], workers: int) -> list[str]:
    """Return the command: pytest as in make test, but in the order of the seed."""
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    options: list[str] = configured["ini_options"]["addopts"]
    kept = [option for option in options if not option.startswith("--randomly")]
    # workers share the files between them: one file needs none, and starts three times as fast
    workers = 0 if len(paths) == 1 and Path(paths[0]).suffix == ".py" else workers
    return [
        *(sys.executable, "-m", "pytest", "-q", "-c", "pyproject.toml"),
        *("-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"),
        *("-o", f"addopts={shlex.join(kept)}", f"--randomly-seed={seed}"),
        *("-o", f"cache_dir={folder / 'cache'}", "--durations=30", "-m", "not trial"),
        *paths,
    ]


def run(seed: int, folder: Path, paths: Sequence[str], workers: int) -> Run:
    """Run the tests once and keep their output in `folder`."""
    folder.mkdir(parents=True)
    words = build_command(seed, folder, paths, workers)
    start = time.monotonic()
    with (folder / "output.txt").open("w") as output:
        output.write(f"{shlex.join(words)}\n")
        output.flush()
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            status = subprocess.run(
                words, cwd=ROOT, env=environ, stdout=output, stderr=output, timeout=LONGEST_S,
                check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return Run(time.monotonic() - start, (f"pytest: no end within {LONGEST_S:.0f} s",))
    return Run(time.monotonic() - start, _read_failed(folder / "cache", status))


def _read_failed(cache: Path, status: int) -> tuple[str, ...]:
    """Return the tests that pytest recorded as failed, or its status if it failed without one."""
    with contextlib.suppress(FileNotFoundError):
        if names := json.loads((cache / "v" / "cache" / "lastfailed").read_text()):
            return tuple(sorted(names))
    return () if status == 0 else (f"pytest: status {status}",)


@dataclass(frozen=True, slots=True)
class Round:
    """The runs that go at the same time: one, or two that are each other's neighbour."""

    numbers: tuple[int, ...]
    beside: bool


def make_rounds(times: int, neighbour: str) -> list[Round]:
    """Return the rounds of so many runs, those without a neighbour first.

    `neighbour` says how many have one: "half", "always", or with "never" and "stalls" none.
    """
    alone = {"half": (times + 1) // 2, "always": 0}.get(neighbour, times)
    rest = range(alone + 1, times + 1)
    return [
        *(Round((number,), beside=False) for number in range(1, alone + 1)),
        *(Round(tuple(rest[at : at + 2]), beside=True) for at in range(0, len(rest), 2)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all runs, print how each went and how often what failed; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    neighbours = ("half", "always", "never", "stalls")
    parser.add_argument("--neighbour", choices=neighbours, default="half")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "certain")
    parser.add_argument("paths", nargs="*", help="test files; all if none is given")
    given = parser.parse_args(arguments)
    shutil.rmtree(given.out, ignore_errors=True)
    failures: Counter[str] = Counter()
    passed = 0
    for each in make_rounds(given.times, given.neighbour):
        folders = [given.out / f"run-{number:02d}" for number in each.numbers]
        with contextlib.ExitStack() as stack:
            if each.beside:
                place = given.out / "neighbour"
                stack.enter_context(busy(place, computing=len(each.numbers) == 1))
            if given.neighbour == "stalls":
                stack.enter_context(stalling(given.seed + each.numbers[0]))
            pool = stack.enter_context(ThreadPoolExecutor(len(each.numbers)))
            seeds = [given.seed + number for number in each.numbers]
            workers = ALONE if len(each.numbers) == 1 else PAIRED
            results = list(pool.map(run, seeds, folders, repeat(given.paths), repeat(workers)))
        for number, folder, result in zip(each.numbers, folders, results, strict=True):
            failures.update(result.failed)
            passed += not result.failed
            load = ", with a busy neighbour" if each.beside else ""
            outcome = f"{len(result.failed)} failed" if result.failed else "passed"
            print(f"run {number} of {given.times}, seed {given.seed + number}{load}: {outcome}"
                  f" in {result.seconds:.0f} s", flush=True)  # fmt: skip
            for name in result.failed:
                print(f"    {name}: {folder / 'output.txt'}", flush=True)
    print(f"\n{passed} of {given.times} runs passed")
    for name, times in failures.most_common():
        print(f"    {times} x {name}")
    return int(passed < given.times)


if __name__ == "__main__":
    sys.exit(main())
