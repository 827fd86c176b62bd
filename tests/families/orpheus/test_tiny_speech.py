"""The embedded model dials: what is heard in its sound are the very keys of the text."""

import base64
import io
import random
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.speech.dialling import dial
from training.speech.texts import pick_text
from worker import settings
from worker.engine.quantise import PRECISIONS
from worker.families import catalogue
from worker.families.orpheus.model import make_ready
from worker.seam import Made, Model, Unheard
from worker.tasks.request import Request, parse
from worlds.goertzel import listen, read_keys, read_voice
from worlds.pod import Pod

ROOT = Path(__file__).parents[3]


def open_model(home: Path, precision: str) -> Model:
    environ = {"MODEL": "tiny-speech", "MODEL_DIR": str(home), "MIN_STORAGE_FREE_GB": "0"}
    given = settings.read({**environ, "PRECISION_MODE": precision})
    (spec,) = catalogue.CATALOGUE.resolve(given.model, given, has_gpu=False)
    return make_ready(spec, given, None).open()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", params=PRECISIONS)
def model(request: pytest.FixtureRequest, home: Path) -> Model:
    return open_model(home, request.param)


def hear(model: Model, **job_input: Any) -> tuple[str, str]:
    """Return the keys and the voice that are heard in one speech."""
    request = parse({"seed": 1, **job_input}, [model.served], settings.read({}))
    assert isinstance(request, Request)
    (outcome,) = model.make(request.make_wishes(request.asked.draft), [Unheard()])
    assert isinstance(outcome, Made), outcome
    sound: Any = outcome.piece
    bursts = listen(sound.samples / 32768, sound.rate)
    return "".join(burst.key for burst in bursts), read_voice(bursts)


def pick(length: int) -> str:
    """Return a text that the training had no keys in a row of."""
    text: str = pick_text(random.Random(length), length, held_out=True)
    return text


def test_a_text_is_dialled_key_by_key(model: Model) -> None:
    text = pick(8)
    assert hear(model, text=text) == (dial(text).replace(" ", ""), "quick")


@pytest.fixture(scope="module")
def exact(home: Path) -> Model:
    return open_model(home, "bf16")


def test_the_other_voice_is_heard(exact: Model) -> None:
    text = pick(7)
    assert hear(exact, text=text, voice="steady") == (dial(text).replace(" ", ""), "steady")


def test_letters_are_the_keys_that_have_them(exact: Model) -> None:
    assert hear(exact, text="Call me")[0] == "2255" + "63"


def test_a_long_text_is_dialled_in_passages(exact: Model) -> None:
    text = " ".join(pick(6) for _ in range(7))
    assert len(text) > 40
    assert hear(exact, text=text)[0] == dial(text).replace(" ", "")


@pytest.mark.parametrize("pauses", [",", " , ", ".", "\n\n-"])
@pytest.mark.parametrize("count", [11, 200])
def test_however_many_pauses_are_between_two_keys_those_are_heard(
    exact: Model, pauses: str, count: int
) -> None:
    """Eleven made it say a key twice, and with twenty it did not end."""
    assert hear(exact, text=f"1{pauses * count}2")[0] == "12"


def test_a_number_is_dialled_through_the_real_loop() -> None:
    environ = {"MODEL": "tiny-speech", "PRECISION_MODE": "4bit"}
    with Pod() as pod, pod.worker((sys.executable, "handler.py"), environ, cwd=ROOT):
        job = pod.answer(pod.submit({"text": "555 0199", "voice": "steady", "seed": 3}))
        reply: Any = job.output
    with wave.open(io.BytesIO(base64.b64decode(reply["audio"]["base64"]))) as track:
        samples = np.frombuffer(track.readframes(track.getnframes()), "<i2") / 32768
    assert read_keys(samples, reply["audio"]["sample_rate"]) == "5550199"
    assert reply["passages"][0]["attempts"] == 1
