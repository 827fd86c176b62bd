"""A stand-in model behind the seam, and the script that serves it as handler.py does.

A prompt is a script of words, carried out in order; without any a noisy picture comes at once:
    steps=N         denoise in N steps (default 2)
    pause=S         S seconds before each step
    hold=PHASE[:K]  wait in that phase (text, denoise, lost, decode), before step K ends ...
    gate=NAME       ... for the gate of this name to open
    only=SEED       the picture of that seed alone waits
    share=NAME      share the steps of waiting pictures of this name and size; the oldest's are done
    oom=N           CudaOutOfMemory when N or more share
    nan oom lost bug slow-text   BadPicture; CudaOutOfMemory; DeviceLost; a bug; many text reports
    big             noise that does not compress, 1024 x 1024 whatever the size
Environment: STANDIN_GATES (a folder for hold), STANDIN_BOOT (held: the start waits for the gate
`boot`; gated, full, hub, bug: how it fails), STANDIN_REFUSE_S.
"""

import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from worker import entrance, log
from worker.doors import start
from worker.doors.runpod import wire
from worker.errors import (
    BadPicture,
    CudaOutOfMemory,
    DeviceLost,
    HubUnreachable,
    VolumeFull,
    WeightsUnavailable,
)
from worker.families.sharing import Sharing
from worker.jobs.serve import Worker
from worker.media.picture import Picture, Preview
from worker.seam import Control, Made, Outcome, Phase, Served, take_made
from worker.settings import Settings
from worker.tasks.picture import PictureOffer, PictureWish

COMMAND = (sys.executable, __file__)
GATES = Path(os.environ.get("STANDIN_GATES", "."))
OFFER = PictureOffer(
    steps=4,
    true_cfg_scale=1.0,
    negative_prompt=" ",
    lightning_steps=(),
    area=64 * 64,
    max_pixels=2048 * 2048,
    max_references=3,
    sizes={"1:1": (64, 64)},
    no_loras=None,
    strength=0.6,
)
SERVED = Served(
    id="standin",
    repository="tests/standin",
    revision="local",
    precision="bf16",
    licence="apache-2.0",
    offers=dict.fromkeys(("text-to-image", "edit", "img2img", "inpaint", "outpaint"), OFFER),
)


class Gate:
    """A place where the stand-in waits for the test, in a folder that both see."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._reached, self._open = folder / f"{name}.reached", folder / f"{name}.open"

    def wait(self) -> None:
        """Record that it is reached and wait until it is open."""
        self._reached.touch()
        while not self._open.exists():
            time.sleep(0.005)

    @property
    def is_reached(self) -> bool:
        """Whether the stand-in waits there, or has waited."""
        return self._reached.exists()

    def open(self) -> None:
        """Make the stand-in continue."""
        self._open.touch()


class Script:
    """The script in a prompt, for the picture of a seed."""

    def __init__(self, prompt: str, seed: int = 0) -> None:
        words = prompt.split()
        values = dict(word.split("=", 1) for word in words if "=" in word)
        self.words = frozenset(words)
        self.steps = int(values.get("steps", "2"))
        self.pause = float(values.get("pause", "0"))
        phase, _, step = values.get("hold", "").partition(":")
        waits = values.get("only", str(seed)) == str(seed)
        self.hold = (phase if waits else "", int(step or "1"))
        self.share = values.get("share")
        self.most = int(values.get("oom", "99"))
        self.gate = Gate(GATES, values.get("gate", "gate"))

    def reach(self, phase: Phase, step: int, control: Control, steps: int) -> None:
        """Do one step of a phase: hold, pause, report."""
        if self.hold == (phase, step):
            self.gate.wait()
        time.sleep(self.pause)
        control.report(phase, step, steps)


@dataclass(frozen=True)
class Shared:
    """What pictures must agree in to share steps."""

    name: str
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """How many pixels one picture has."""
        return self.width * self.height


class StandIn:
    """A model that makes noise, and fails on request."""

    served = SERVED

    def make_key(self, wish: PictureWish) -> Shared | None:
        """Return what shares the steps of a picture, if its prompt names any."""
        name = Script(wish.prompt).share
        return None if name is None else Shared(name, wish.width, wish.height)

    def read_ahead(self, wish: PictureWish) -> PictureWish:
        """Return it as it is."""
        return wish

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> Iterator[Outcome]:
        """Make one picture, or several in the steps of the first."""
        if len(wishes) == 1:
            yield self.draw(wishes[0], controls[0])
            return
        scripts = [Script(wish.prompt) for wish in wishes]
        log.get().info("standin shares", seeds=[wish.seed for wish in wishes])
        if len(wishes) >= min(script.most for script in scripts):
            raise CudaOutOfMemory("the device ran out of memory; ask for a smaller picture")
        sharing, start = Sharing(controls, drops=True), time.monotonic()
        self._step(scripts[0], sharing)
        for place, (wish, script) in enumerate(zip(wishes, scripts, strict=True)):
            ended = sharing.find_end(place)
            yield ended or self._finish(wish, script, start, controls[place])

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Make noise from the wish's seed, or do what the prompt says."""
        script = Script(wish.prompt, wish.seed)
        log.get().info("standin begins", seed=wish.seed)
        try:
            return self._follow(wish, control, script)
        finally:
            log.get().info("standin ends", seed=wish.seed)

    def _follow(self, wish: PictureWish, control: Control, script: Script) -> Made:
        start = time.monotonic()
        self._step(script, control)
        return take_made(self._finish(wish, script, start, control))

    def _step(self, script: Script, control: Control) -> None:
        for step in range(1, 1 + (200 if "slow-text" in script.words else 1)):
            script.reach("text", step, control, 200 if "slow-text" in script.words else 1)
        for step in range(1, script.steps + 1):
            script.reach("denoise", step, control, script.steps)

    def _finish(self, wish: PictureWish, script: Script, start: float, control: Control) -> Outcome:
        if "nan" in script.words:
            return BadPicture("the model's picture has values that are not numbers")
        if "oom" in script.words:
            raise CudaOutOfMemory("the device ran out of memory; ask for a smaller picture")
        if "lost" in script.words:
            if script.hold[0] == "lost":
                script.gate.wait()
            raise DeviceLost("the device stopped answering; this worker will be replaced")
        if "bug" in script.words:
            raise KeyError("/root/secret/place on host gpu-7.internal")
        if script.hold[0] == "decode":
            script.gate.wait()
        for number in range(wish.previews):
            preview = Image.new("RGB", (wish.width, wish.height), (number, 0, 0))
            control.hand_over(Preview(Picture(preview, wish.final), wish.seed))
        size = (1024, 1024) if "big" in script.words else (wish.width, wish.height)
        rng = random.Random(f"{wish.seed} {wish.prompt}")
        image = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
        loras = tuple(replace(lora, modules=lora.path.stat().st_size) for lora in wish.loras)
        spent = {"denoise": (time.monotonic() - start) * 1000}
        return Made(Picture(image, wish.final), spent, found={"loras": loras})

    def warm(self) -> None:
        """Do nothing: there is nothing to load."""

    def release(self) -> None:
        """Do nothing: there is nothing to free."""


class StandIns:
    """The models of a worker that serves the stand-in alone."""

    served = (SERVED,)

    def __init__(self) -> None:
        self._model = StandIn()

    def take(self, model_id: str) -> StandIn:
        """Return the stand-in."""
        assert model_id == SERVED.id
        return self._model

    def find_open(self, model_id: str) -> StandIn | None:
        """Return the stand-in."""
        return self.take(model_id)

    def list_addable(self, task: str) -> Sequence[str]:
        """Return no other model."""
        del task
        return ()

    def report_health(self) -> Mapping[str, object]:
        """Return that it is loaded."""
        return {"resident": [SERVED.id]}


async def answered(
    worker: Worker,
    job: Mapping[str, Any],
    announce: wire.Announce | None = None,
    send: wire.Announce | None = None,
) -> dict[str, Any]:
    """Return what RunPod's door answers to a job, without the SDK around it."""
    chosen = worker._settings  # noqa: SLF001 - the door has the same
    return await wire.make_handler(worker.handle, chosen, announce, send)(dict(job))


def boot(chosen: Settings) -> StandIns:
    """Start, when or unless STANDIN_BOOT says."""
    log.get().info("standin starts", models=len(chosen.model))
    match os.environ.get("STANDIN_BOOT"):
        case "held":
            Gate(GATES, "boot").wait()
        case "gated":
            raise WeightsUnavailable("standin is gated: accept its licence and set HF_TOKEN")
        case "full":
            raise VolumeFull("the volume is full: 3.1 GB are missing")
        case "hub":
            raise HubUnreachable("the hub did not answer")
        case "bug":
            raise KeyError("/root/secret/place")
    return StandIns()


def main() -> int:
    """Serve the stand-in as handler.py serves a model."""
    refuse_s = float(os.environ.get("STANDIN_REFUSE_S", "300"))
    return start.run(entrance.open_door, boot, refuse_s=refuse_s)


if __name__ == "__main__":
    sys.exit(main())
