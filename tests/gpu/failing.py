"""A process whose CUDA device fails in one way, and what the worker made of it, as JSON.

python -m gpu.failing CASE HOME: the context is lost at the end, so each case has its own process.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from gpu.studio import Drawing, Studio, guide, make_image, make_images, make_wish

from worker import log
from worker.edge.reply import Failure
from worker.engine import device as devices
from worker.errors import WorkerError
from worker.jobs.job import Job
from worker.jobs.serve import Worker
from worker.residency import Residency
from worker.seam import Control, Model, Openable, Phase

DEVICE: Final = torch.device("cuda", 0)
Found = dict[str, Any]


def break_device() -> None:
    """Queue a kernel that ends in a device-side assert: an index out of range."""
    values = torch.zeros(4, device=DEVICE)
    values[torch.full((1,), 1 << 20, device=DEVICE)]


class Breaking(Control):
    """A control that breaks the device at a step of a phase, and remembers what it heard."""

    def __init__(self, phase: Phase = "", step: int = 0) -> None:
        self._at = (phase, step)
        self.heard: list[tuple[Phase, int]] = []

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Break it there."""
        del steps
        self.heard.append((phase, step))
        if (phase, step) == self._at:
            break_device()


def name_end(work: Callable[[], object]) -> Found:
    """Run work and return what it raises, and what that came from."""
    try:
        work()
    except WorkerError as error:
        return {"code": error.code, "from": f"{error.__cause__!r}"[:200]}
    except Exception as error:  # noqa: BLE001 - the finding is that no such error comes
        return {"code": type(error).__name__, "from": str(error)[:200]}
    return {"code": ""}


def lose(studio: Studio, phase: Phase, step: int) -> Found:
    """Break the device while a picture is made."""
    model = studio.open("tiny-image")
    wish = make_wish(steps=4)
    make_image(model, wish)
    control = Breaking(phase, step)
    found = name_end(lambda: list(model.make([wish], [control])))
    found["heard"] = control.heard
    found["again"] = name_end(lambda: make_image(model, wish))["code"]
    found["free_memory"] = name_end(devices.free_memory)["code"]
    return found


class BreakingModel:
    """The open model of a worker on a device that breaks in its next picture."""

    def __init__(self, model: Drawing) -> None:
        self.served = model.served
        self.make_key, self.read_ahead = model.make_key, model.read_ahead
        self.warm, self.release = model.warm, model.release
        self._model = model

    def make(self, wishes: Any, controls: Any) -> Any:
        """Make what is wished, the device broken by a neighbour at once."""
        break_device()
        return self._model.make(wishes, controls)


def serve(studio: Studio) -> Found:
    """Break the device in a job of a worker: its answer, and that of the next job."""
    ready = studio.make_ready("tiny-image")

    def open_breaking() -> Model:
        opened = ready.open()
        assert isinstance(opened, Drawing)
        return BreakingModel(opened)

    models = Residency([Openable(ready.served, ready.parts, open_breaking)], budget=None)
    worker = Worker(studio.read_settings("bf16", DEVICE), models)
    asked = {"prompt": "a red circle", "seed": 1, "size": "64x64", "steps": 4}

    async def run() -> list[Any]:
        return [await worker.handle(Job(name, asked, 10_000_000)) for name in ("first", "second")]

    codes = [one.code if isinstance(one, Failure) else "" for one in asyncio.run(run())]
    return {"codes": codes, "fatal": worker.fatal.code if worker.fatal is not None else ""}


def cap(count: int) -> None:
    """Let torch allocate so many bytes more than it has."""
    devices.free_memory()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, (torch.cuda.memory_reserved(DEVICE) + count) / total), DEVICE
    )


def uncap() -> None:
    """Let torch allocate all that there is."""
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


def count_failures() -> int:
    """Return how often torch found no memory."""
    return int(torch.cuda.memory_stats(DEVICE).get("num_ooms", 0))


def run_out(studio: Studio) -> Found:
    """Run out of memory while decoding, then everywhere, then make a picture as before."""
    model = studio.open("tiny-image")
    small, large = make_wish(seed=1), make_wish(seed=2, width=1536, height=1536)
    expected = make_image(model, small).tobytes()
    devices.free_memory()
    base = torch.cuda.memory_reserved(DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    complete = make_image(model, large)
    needed = torch.cuda.max_memory_reserved(DEVICE) - base
    steps = list_steps(model, large)
    cap(needed * 6 // 10)
    before = count_failures()
    control = Breaking()
    tiled: list[Any] = []
    first = name_end(lambda: tiled.extend(model.make([large], [control])))
    failures = count_failures() - before
    found: Found = {
        "needed_mib": needed >> 20,
        "first": first,
        "failures": failures,
        "heard": control.heard == steps,
        "scarce": sorted(f"{phase} {kind}" for phase, kind in model._phases._scarce),
    }
    before = count_failures()
    found["second"] = name_end(lambda: make_image(model, large))
    found["second_failures"] = count_failures() - before
    if tiled:
        image = tiled[0].piece.image
        found["size"] = image.size == complete.size
    uncap()
    found["small_after"] = make_image(model, small).tobytes() == expected
    other = make_wish(seed=3, width=1024, height=1024)
    cap(2 << 20)
    found["hopeless"] = name_end(lambda: make_images(model, [guide(other)]))
    uncap()
    found["after"] = make_image(model, small).tobytes() == expected
    found["other_after"] = name_end(lambda: make_image(model, other))["code"]
    return found


def list_steps(model: Drawing, wish: Any) -> list[tuple[Phase, int]]:
    """Return what a picture reports when nothing fails."""
    control = Breaking()
    list(model.make([wish], [control]))
    return control.heard


def fill_device() -> Found:
    """Leave no memory to cuBLAS, whose handle and workspace come with the first product."""
    torch.zeros(1, device=DEVICE)
    few = torch.ones(64, 64, device=DEVICE, dtype=torch.bfloat16)
    taken = []
    for size in (1 << 30, 1 << 26, 1 << 21):
        while True:
            try:
                taken.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))
            except torch.OutOfMemoryError:
                break

    def multiply() -> None:
        with devices.translate_errors():
            torch.mm(few, few)
            torch.cuda.synchronize()

    found = name_end(multiply)
    taken.clear()
    devices.free_memory()
    found["after"] = float(torch.mm(few, few)[0, 0])
    return found


def main() -> None:
    """Print what one case found."""
    case, home = sys.argv[1], Path(sys.argv[2])
    log.configure("ERROR")
    studio = Studio(home, DEVICE)
    match case.split("-"):
        case ["lose", phase, step]:
            found = lose(studio, phase, int(step))
        case ["serve"]:
            found = serve(studio)
        case ["memory"]:
            found = run_out(studio)
        case _:
            found = fill_device()
    print("FOUND", json.dumps(found), flush=True)  # noqa: T201 - its output


if __name__ == "__main__":
    main()
