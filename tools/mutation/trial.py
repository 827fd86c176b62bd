"""Trials of mutants: each in a copy of the project, against the tests that can notice it."""

import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from tools.mutation import plan, record
from tools.mutation.choose import Mutant
from tools.mutation.copy import Copy, Project, copy_project
from tools.mutation.fork_server import Answer, Order, find_descendants
from tools.mutation.marks import MARK, insert_marks
from tools.mutation.record import Record, Test

# A test hangs when it takes longer than this plus so many times its usual time. Both are generous,
# as a busy machine makes everything slower.
LEAST_LIMIT_S: Final = 20.0
TIMES: Final = 6.0
RECORDING_LIMIT_S: Final = 400.0
RECORDER: Final = "mutation_reach"
# The tool itself is not part of the copy, and nothing else in its folder may be importable.
FORK_SERVER: Final = f"""
import sys
sys.path.append({str(Path(__file__).parents[2])!r})
from tools.mutation.fork_server import main
sys.path.pop()
main()
"""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant: "killed", "hangs" (which counts as killed), "survived", "unreached".

    `test` is the one that noticed it, `tried` how many were run, in `seconds`.
    """

    mutant: Mutant
    result: str
    test: str = ""
    tried: int = 0
    seconds: float = 0.0

    @property
    def noticed(self) -> bool:
        """Return whether the tests noticed it."""
        return self.result in ("killed", "hangs")


class Worker:
    """One copy of the project and the process that runs its tests."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        self._busy = threading.Lock()
        project = copy.project
        (copy.scratch / "tmp").mkdir()
        self._log = copy.scratch / "fork_server.txt"
        with self._log.open("w") as log:  # libraries print as they are imported
            self._process = subprocess.Popen(
                [copy.python, "-c", FORK_SERVER, project.source, project.tests],
                cwd=project.root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(copy),
            )
        try:
            self._read_answer()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the process and all that it has started; a caller that waits for an answer fails."""
        for process in find_descendants(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        with self._busy, suppress(BrokenPipeError):
            self._process.communicate()

    def _read_answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"no process to run tests in:\n{self._log.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, order: Order) -> Answer:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        answer = Answer(**self._read_answer())
        for left in (self._copy.scratch / "tmp", self._copy.scratch / "pytest"):
            shutil.rmtree(left, ignore_errors=True)
        return answer

    @property
    def project(self) -> Project:
        """The copy that it works in."""
        return self._copy.project

    def record(self, file: str) -> Record:
        """Run the tests of a file on unchanged source, and record what they reach."""
        project, here = self._copy.project, self._copy.packages
        scratch = tempfile.TemporaryDirectory(dir=self._copy.scratch)
        with self._busy, scratch as folder, ExitStack() as leaving:
            # other Python processes that tests start record for themselves
            shutil.copyfile(Path(__file__).with_name("reach.py"), here / f"{RECORDER}.py")
            start = f"{RECORDER}.Recorder({folder!r}).start({MARK!r})"
            (here / "1-reach.pth").write_text(f"import {RECORDER}; {start}\n")
            leaving.callback((here / "1-reach.pth").unlink)
            for path in project.sources:
                relative = path.relative_to(project.root / project.source).as_posix()
                text = insert_marks(path.read_text(), relative)
                leaving.enter_context(self._copy.changed(relative, text))
            order = Order(
                (file,), str(self._copy.scratch), record=folder, longest=RECORDING_LIMIT_S
            )
            return record.build_record(file, self._ask(order), Path(folder))

    def try_mutant(
        self, mutant: Mutant, tests: Sequence[Test], nearby: Sequence[Test] = ()
    ) -> Outcome:
        """Run the tests that can notice a mutant, until one does; where there is none, `nearby`."""
        seconds, count = 0.0, 0
        text = mutant.mutation.applied(mutant.source)
        with self._busy, self._copy.changed(mutant.file, text):
            for portion in plan.split_into_portions(tests or nearby):
                count += len(portion)
                answer = self._ask(
                    Order(
                        sorted({test.file for test in portion}),
                        str(self._copy.scratch),
                        [test.name for test in portion],
                        [LEAST_LIMIT_S + TIMES * test.cost for test in portion],
                    )
                )
                seconds += answer.seconds
                if answer.verdict != "passed":
                    result = "hangs" if answer.verdict == "hangs" else "killed"
                    return Outcome(mutant, result, answer.test, count, seconds)
        return Outcome(mutant, "survived" if tests else "unreached", "", count, seconds)


def _environment(copy: Copy) -> dict[str, str]:
    """Return the variables of a copy's processes: tests write only to the copy's folders."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(copy.scratch / "tmp")}


@contextmanager
def start_workers(project: Project, count: int) -> Iterator[list[Worker]]:
    """Yield `count` workers, each with its own copy, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ExitStack() as leaving:
        staff = []
        for number in range(count):
            place = Path(folder, str(number))
            place.mkdir()
            worker = Worker(copy_project(project, place))
            leaving.callback(worker.close)
            staff.append(worker)
        yield staff


def distribute(
    staff: Sequence[Worker], tasks: Sequence[T], do: Callable[[Worker, T], R]
) -> Iterator[tuple[T, R]]:
    """Do tasks in parallel, one at a time per worker; yield each with its result when it is done.

    Raises the error of the first task that fails.
    """
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[T, R] | Exception] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work(worker: Worker) -> None:
        try:
            while True:
                task = waiting.get_nowait()
                done.put((task, do(worker, task)))
        except queue.Empty:
            return
        except Exception as error:  # noqa: BLE001 - raised where the results are read
            done.put(error)

    threads = [threading.Thread(target=work, args=(each,), daemon=True) for each in staff]
    for thread in threads:
        thread.start()
    for _ in tasks:
        result = done.get()
        if isinstance(result, Exception):
            raise result
        yield result
    for thread in threads:
        thread.join()
