"""The way through the files: which of them a job, a cancel, a start, a weight and a setting enter.

    python -m tools.walk            print the walks
    python -m tools.walk --write    write them into docs/architecture.md

Each walk is the real thing, followed by the interpreter's own profiler: a job with a reference and
one that is cancelled, through RunPod's door with the embedded models; a start from a bundle on the
volume; and a start that takes a model from a hub on loopback. Everything has run once before, so
that no import is followed. A file counts where one of its functions is entered for the first time;
what every file may use (errors, log, settings) is left out. Of the setting, those files count that
read it.
"""

import argparse
import ast
import asyncio
import base64
import contextlib
import inspect
import io
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar
from unittest.mock import patch

from PIL import Image

from tools.readme import docstring, fill
from worker import boot, settings
from worker.bundle.open import make_shared
from worker.doors.runpod import wire
from worker.families import opener
from worker.jobs.serve import Worker
from worker.seam import Control, Model, Models, Outcome
from worlds import hub
from worlds.prepared import folder_of

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = ROOT / "src" / "worker"
FLOOR: Final = ("errors.py", "log.py", "settings.py", "driver.py", "versions.py")
PAGE: Final = "docs/architecture.md"
SETTING: Final = "max_pixels"
REPOSITORY: Final = "someone/small"


class Entered:
    """The files of the worker whose functions were entered, in the order of their first."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self._seen: set[str] = set()
        self.restart()

    def restart(self) -> None:
        """Forget what was entered so far."""
        self._seen = {str(SOURCE / name) for name in FLOOR}
        self.files = []

    def note(self, frame: FrameType, event: str, _argument: object) -> None:
        """Take a profiler's event; bodies of modules and classes are no functions."""
        code = frame.f_code
        if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED:
            return
        if code.co_filename not in self._seen:
            self._seen.add(code.co_filename)
            path = Path(code.co_filename)
            if path.is_relative_to(SOURCE):
                self.files.append(path.relative_to(SOURCE).as_posix())


@contextlib.contextmanager
def followed() -> Iterator[Entered]:
    """Follow this thread, and those that start meanwhile."""
    entered = Entered()
    threading.setprofile(entered.note)
    sys.setprofile(entered.note)
    try:
        yield entered
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


T = TypeVar("T")


class Inline(ThreadPoolExecutor):
    """Threads whose work is done at once by who hands it in, so that its place is always the same.

    Pictures are encoded while their job goes on: which of the two is first would differ.
    """

    def submit(self, work: Callable[..., T], /, *given: Any, **named: Any) -> Future[T]:
        """Do the work, and return what came of it."""
        future: Future[T] = Future()
        try:
            future.set_result(work(*given, **named))
        except BaseException as error:  # noqa: BLE001 - a thread keeps whatever its work raises
            future.set_exception(error)
        return future


class Held:
    """The models of a worker, whose work waits in its first step until `go` is set."""

    def __init__(self, models: Models, reached: threading.Event, go: threading.Event) -> None:
        self._models, self._reached, self._go = models, reached, go

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)

    def take(self, model_id: str) -> Model:
        """Return a model that is held."""
        model, reached, go = self._models.take(model_id), self._reached, self._go

        class Waiting(Control):
            def __init__(self, control: Control) -> None:
                self._control = control

            def report(self, phase: str, step: int, steps: int) -> None:
                reached.set()
                go.wait()
                self._control.report(phase, step, steps)

        class Model:
            def __getattr__(self, name: str) -> Any:
                return getattr(model, name)

            def make(self, wishes: Sequence[Any], controls: Sequence[Control]) -> Iterable[Outcome]:
                return model.make(wishes, [Waiting(control) for control in controls])

        found: Any = Model()
        return found  # type: ignore[no-any-return] # all that a Model has


def picture() -> str:
    """Return the base64 of a small picture."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((96, 96)).convert("RGB").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def environ(home: Path, **more: str) -> dict[str, str]:
    """Return what a worker on a volume of its own has set."""
    return {"MODEL_DIR": str(home), "MIN_STORAGE_FREE_GB": "0", **more}


def job(home: Path) -> list[str]:
    """Follow an edit from the door to its reply."""
    given = {"prompt": "make it blue", "images": [picture()], "seed": 1}
    return _served(home, given, cancelled=False)


def cancel(home: Path) -> list[str]:
    """Follow what a cancel enters, in a job's first step."""
    return _served(home, {"prompt": "a red circle", "seed": 1}, cancelled=True)


def start(home: Path) -> list[str]:
    """Follow a start from a bundle on the volume to a warm model."""
    given = settings.read(environ(home, MODEL="tiny-edit"))
    boot.boot(given)
    with followed() as entered:
        boot.boot(given)
    return entered.files


def weight(home: Path) -> list[str]:
    """Follow the weights of a model from a hub to the device."""
    with hub.running() as running:
        running.add(REPOSITORY, folder_of("tiny-image"))
        for place in (home / "once", home / "again"):
            more = {"MODEL": REPOSITORY, "HF_ENDPOINT": running.endpoint}
            given = settings.read(environ(place, **more))
            with followed() as entered:
                boot.boot(given)
    return entered.files


def setting(_home: Path) -> list[str]:
    """Find the files that read one setting."""
    return [
        path.relative_to(SOURCE).as_posix()
        for path in sorted(SOURCE.rglob("*.py"))
        if any(
            isinstance(node, ast.Attribute)
            and node.attr == SETTING
            and isinstance(node.ctx, ast.Load)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]


WALKS: Final[Mapping[str, Callable[[Path], list[str]]]] = {
    "job": job,
    "cancel": cancel,
    "start": start,
    "weight": weight,
    "setting": setting,
}


def _served(home: Path, given: Mapping[str, Any], *, cancelled: bool) -> list[str]:
    """Follow the second of two equal jobs through RunPod's door, to its end or from its cancel."""
    chosen = settings.read(environ(home, MODEL="tiny"))
    models = boot.boot(chosen)

    async def run() -> list[str]:
        reached, go = threading.Event(), threading.Event()
        worker = Worker(chosen, Held(models, reached, go) if cancelled else models)
        handle = wire.make_handler(worker.handle, chosen)
        if not cancelled:  # a cancel needs a thread of its own that waits for the first step
            asyncio.get_running_loop().set_default_executor(Inline())
        with followed() as entered:
            task = asyncio.ensure_future(handle({"id": "walk", "input": dict(given)}))
            if cancelled:
                await asyncio.to_thread(reached.wait)
                entered.restart()
                task.cancel()
                await asyncio.sleep(0)
                go.set()
            with contextlib.suppress(asyncio.CancelledError):
                answer = await task
                if "error" in answer:
                    raise RuntimeError(answer["error"])
        return entered.files

    asyncio.run(run())
    return asyncio.run(run())


def shown(name: str) -> str:
    """Return a walk as docs/architecture.md has it: each file with what it is."""
    # what other models of this process hold open would be shared, and not opened again
    alone = patch.object(opener, "SHARED", make_shared())
    with tempfile.TemporaryDirectory() as home, alone:
        files = WALKS[name](Path(home))
    lines = [f"{number:>2}  {file:<38}{docstring(SOURCE / file)}"
             for number, file in enumerate(files, 1)]  # fmt: skip
    return "\n".join(["```text", *lines, "```"])


def main() -> int:
    """Print the walks, or write them where the documentation has them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        tables = {f"walk {name}": partial(shown, name) for name in WALKS}
        (ROOT / PAGE).write_text(fill(PAGE, tables), encoding="utf-8")
    else:
        for name in WALKS:
            print(f"{name}:\n{shown(name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
