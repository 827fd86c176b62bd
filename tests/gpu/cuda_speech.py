"""Speech on a CUDA device: its graphs write what its steps write, and its sound is the CPU's."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu.figures import Figures
from gpu.studio import find_gpu

from worker import settings
from worker.families import catalogue
from worker.families.orpheus.model import Orpheus, make_ready
from worker.seam import Made, Unheard
from worker.tasks.request import Request, parse
from worker.tasks.speech import SpeechWish
from worlds.snac_shape import PUBLISHED_SNAC

TEXTS = ("555 0199", "12 34 56. 78 90 12. 34 56 78. 90 12 34. 56 78 90. 12 34 56. 78 90 12.")


def open_speech(home: Path, precision: str, device: torch.device) -> Orpheus:
    environ = {"MODEL": "tiny-speech", "MODEL_DIR": str(home), "MIN_STORAGE_FREE_GB": "0"}
    given = settings.read({**environ, "PRECISION_MODE": precision})
    (spec,) = catalogue.CATALOGUE.resolve(given.model, given, has_gpu=False)
    model = make_ready(spec, given, find_gpu(device)).open()
    assert isinstance(model, Orpheus)
    return model


def wish_of(model: Orpheus, text: str, **more: Any) -> SpeechWish:
    request = parse({"text": text, "seed": 1, **more}, [model.served], settings.read({}))
    assert isinstance(request, Request)
    wish: Any = request.make_wishes(request.asked.draft)[0]
    assert isinstance(wish, SpeechWish)
    return wish


def say(model: Orpheus, text: str, **more: Any) -> Made:
    (outcome,) = model.make([wish_of(model, text, **more)], [Unheard()])
    assert isinstance(outcome, Made), outcome
    return outcome


def samples_of(made: Made) -> Any:
    piece: Any = made.piece
    return piece.samples


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speech")


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
def test_graphs_write_what_steps_write(
    home: Path, figures: Figures, device: torch.device, precision: str
) -> None:
    """The same samples, one passage and several at once, twice: captured, then replayed."""
    model = open_speech(home, precision, device)
    for text in TEXTS:
        made = [say(model, text) for _ in range(3)]
        stages = list(model._stages.values())
        assert all(stage._graphs.count for stage in stages), "no graph was captured"
        for stage in stages:
            stage._graphs.stop()
        plain = say(model, text)
        assert all(np.array_equal(samples_of(one), samples_of(plain)) for one in made)
        model._stages.clear()
        figures.put(passages=len(plain.found["spoken"]), seconds=len(samples_of(plain)) / 24_000)


@pytest.mark.cuda
def test_a_stream_is_the_whole(home: Path, device: torch.device) -> None:
    model = open_speech(home, "bf16", device)
    for text in TEXTS:
        assert np.array_equal(
            samples_of(say(model, text)), samples_of(say(model, text, stream=True))
        )


@pytest.mark.cuda
def test_how_long_a_frame_takes(home: Path, figures: Figures, device: torch.device) -> None:
    """Of the embedded model: what is left of a frame beside the weights."""
    model = open_speech(home, "bf16", device)
    say(model, TEXTS[0])
    begun = time.perf_counter()
    made = say(model, TEXTS[0])
    frames = len(samples_of(made)) / 2048
    figures.put(ms_per_frame=round(1000 * (time.perf_counter() - begun) / frames, 2))
    begun = time.perf_counter()
    for stage in model._stages.values():
        stage._graphs.stop()
    say(model, TEXTS[0])
    figures.put(ms_without_graphs=round(1000 * (time.perf_counter() - begun) / frames, 2))


@pytest.mark.cuda
def test_the_codec_of_the_published_size_sounds_as_on_a_cpu(
    figures: Figures, device: torch.device
) -> None:
    """SNAC's own shape, random weights: the largest difference of 40 frames."""
    from worker.families.orpheus.codec import SnacDecoder, fold  # noqa: PLC0415 - imports nothing heavy twice
    from worker.families.orpheus.windows import Decoding  # noqa: PLC0415 - the same

    config = PUBLISHED_SNAC
    torch.manual_seed(1)
    codec = SnacDecoder(config)
    for name, parameter in codec.named_parameters():
        if name.endswith(("norm", "direction")):
            torch.nn.init.normal_(parameter, std=0.05)
    codec = fold(codec).eval()
    frames = torch.randint(0, 4096, (40, 7)).tolist()
    cpu = torch.cat(list(Decoding(codec, 1, torch.device("cpu")).decode_ready(frames, is_end=True)))
    ours = codec.to(device)
    list(Decoding(ours, 1, device).decode_ready(frames, is_end=True))
    torch.cuda.synchronize()
    begun = time.perf_counter()
    there = torch.cat(list(Decoding(ours, 1, device).decode_ready(frames, is_end=True))).cpu()
    spent = time.perf_counter() - begun
    difference = float((cpu - there).abs().max() / cpu.abs().max())
    figures.put(relative=difference, ms_per_frame=round(1000 * spent / 40, 3))
    assert difference < 2e-2
