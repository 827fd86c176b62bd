"""What needs the host alone is done before a wish's turn on the device, and changes no bit."""

import asyncio
import base64
import hashlib
import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from worker import boot, settings
from worker.engine import lora_file
from worker.families.ahead import Ahead
from worker.jobs.serve import Worker
from worker.loras.ready import ReadyLora
from worker.seam import Unheard, take_made
from worker.tasks.picture import PictureWish
from worker.weights.meaning import find_checkpoints
from worlds.making import drawn
from worlds.standin import answered

STYLE = find_checkpoints() / "tiny" / "style" / "framed.safetensors"
LORA = ReadyLora("framed", "sha256:framed", 0.8, STYLE, None, is_callers=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def start(home: Path, **environ: str) -> tuple[settings.Settings, Any]:
    given = settings.read(
        {"MODEL": "tiny", "MODEL_DIR": str(home), "LORA_DIR": str(STYLE.parent), **environ}
    )
    return given, boot.boot(given)


@pytest.fixture(scope="module")
def models(home: Path) -> Any:
    return start(home)[1]


def show(width: int, height: int, angle: int = 0) -> Image.Image:
    """Return a picture that is no other."""
    slope = Image.linear_gradient("L").rotate(angle).resize((width, height))
    return Image.merge("RGB", (slope, slope.rotate(180), slope))


PLAIN = PictureWish(
    prompt="a red circle",
    negative_prompt=None,
    task="text-to-image",
    seed=3,
    steps=4,
    true_cfg_scale=1.0,
    lightning=True,
    references=(),
    width=64,
    height=64,
)
EDIT = replace(PLAIN, task="edit", references=(show(300, 200), show(90, 160, 90)))
IMG2IMG = replace(PLAIN, task="img2img", source=show(150, 150), strength=0.6, loras=(LORA,))


@pytest.mark.parametrize(("name", "wish"), [("tiny-edit", EDIT), ("tiny-image", IMG2IMG)])
def test_what_is_done_ahead_changes_no_bit(models: Any, name: str, wish: PictureWish) -> None:
    """Alone, and next to a wish of another job; nothing of it is left in the model."""
    model = models.take(name)
    other = replace(wish, seed=4)
    expected = [drawn(model, one).tobytes() for one in (wish, other)]
    model._cache.clear()
    ahead = [model.read_ahead(one) for one in (wish, other)]
    pictures = [*wish.references, *filter(None, [wish.source])]
    for one in ahead:
        assert isinstance(one.ahead, Ahead)
        known = one.ahead.pictures
        assert {key for key, _ in known.resized} == {*known.digests} == {*map(id, pictures)}
    assert [drawn(model, one).tobytes() for one in ahead] == expected
    model._cache.clear()
    made = model.make(ahead, [Unheard()] * 2)
    pieces: list[Any] = [take_made(one).piece for one in made]
    assert [piece.image.tobytes() for piece in pieces] == expected


class Threads:
    """In which threads the work on the host was done, by what it was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, set[str]] = {}
        resize: Any = Image.Image.resize
        put = monkeypatch.setattr

        def note_resize(image: Image.Image, size: tuple[int, int], *given: Any, **more: Any) -> Any:
            if image.size != tuple(size):  # else it is a copy
                self._note("resized")
            return resize(image, size, *given, **more)

        put(Image.Image, "resize", note_resize)
        put(lora_file, "read_scaled", self._follow("read", lora_file.read_scaled))
        put(hashlib, "blake2b", self._follow("digested", hashlib.blake2b))

    def _note(self, what: str) -> None:
        self.seen.setdefault(what, set()).add(threading.current_thread().name)

    def _follow(self, what: str, work: Any) -> Any:
        def follow(*given: Any, **more: Any) -> Any:
            self._note(what)
            return work(*given, **more)

        return follow


@pytest.mark.parametrize("task", ["edit", "img2img", "inpaint"])
def test_the_devices_thread_neither_resizes_nor_digests_nor_reads_a_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Of a model that is open, for all that its job gives."""
    model = "tiny-edit" if task == "edit" else "tiny-image"
    given, models = start(home, MODEL=model)
    worker = Worker(given, models)
    file = io.BytesIO()
    show(200, 130).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    job: dict[str, Any] = {"prompt": "a red circle", "task": task, "image": picture, "seed": 1}
    if task == "inpaint":
        white = io.BytesIO()
        Image.linear_gradient("L").resize((200, 130)).save(white, "PNG")
        job["mask"] = base64.b64encode(white.getvalue()).decode()
    if model == "tiny-image":
        job["loras"] = [{"name": "framed", "scale": 0.5}]
    threads = Threads(monkeypatch)
    answer = asyncio.run(answered(worker, {"id": "1", "input": job}))
    assert "error" not in answer
    assert set(threads.seen) == {"resized", "digested"} | ({"read"} if "loras" in job else set())
    inside = {what for what, names in threads.seen.items() if any("device" in n for n in names)}
    assert inside == set()
