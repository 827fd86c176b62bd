"""Graphs of frames: they write what steps write, and are all there before the first job."""

from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from worker import settings
from worker.engine import device as devices
from worker.engine.token_choice import Choosing
from worker.families import catalogue
from worker.families.orpheus import frames
from worker.families.orpheus import model as orpheus
from worker.families.orpheus.frames import Stage
from worker.families.orpheus.graphs import Graphs
from worker.families.orpheus.model import Orpheus
from worker.families.orpheus.models import SLOTS
from worker.seam import Made, Unheard
from worker.tasks.request import Request, parse
from worker.tasks.speech import SpeechWish
from worlds import cuda_graphs, speaking
from worlds.cuda_graphs import RecordedGraph

CUDA = torch.device("cuda")
LENGTHS = (256, 512, 768, 1024)


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture as on CUDA, where Stage's tensors are on the CPU."""
    cuda_graphs.enter(monkeypatch)
    monkeypatch.setattr(frames, "Graphs", lambda _device: Graphs(CUDA))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Orpheus:
    """A model with room for 1024 tokens: four lengths of 256."""
    folder = tmp_path_factory.mktemp("speech")
    language = speaking.publish(folder)
    (folder / "snac").rename(language / "codec")
    environ = {"MIN_STORAGE_FREE_GB": "0", "MODEL_DIR": str(folder / "home")}
    given = settings.read({**environ, "MODEL": str(language)})
    (spec,) = catalogue.CATALOGUE.resolve(given.model, given, has_gpu=False)
    opened = orpheus.make_ready(spec, given, None).open()
    assert isinstance(opened, Orpheus)
    return opened


@pytest.fixture
def rows(model: Orpheus, monkeypatch: pytest.MonkeyPatch) -> Orpheus:
    """The model as it is where several passages are written at once, without its stages."""
    monkeypatch.setattr(orpheus, "list_rows", lambda _: (1, 4))
    model._stages.clear()
    return model


def say(model: Orpheus, **job_input: Any) -> Any:
    given = {"text": "One, two.", "seed": 3, **job_input}
    request = parse(given, [model.served], settings.read({}))
    assert isinstance(request, Request)
    wish: Any = request.make_wishes(request.asked.draft)[0]
    assert isinstance(wish, SpeechWish)
    (outcome,) = model.make([wish], [Unheard()])
    assert isinstance(outcome, Made), outcome
    piece: Any = outcome.piece
    return piece.samples


def make_stage(model: Orpheus, rows: int) -> Stage:
    return Stage(model._parts.language, model._parts.text, rows=rows, room=LENGTHS[-1])


def write(stage: Stage, how: Choosing, seed: int) -> list[list[int]]:
    stage.choose_by(how)
    for row in range(stage.rows):
        stage.begin(row, [1, 2, 3 + row], seed + row)
    return [codes for _ in range(40) for codes in stage.step().values()]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_graph_that_was_captured_ahead_writes_what_steps_write(model: Orpheus, rows: int) -> None:
    """Whatever numbers tokens are chosen by, and over more than one length."""
    captured, plain = make_stage(model, rows), make_stage(model, rows)
    captured.capture()
    plain._graphs.stop()
    for seed, how in enumerate((Choosing(0.6, 0.8, 1.1), Choosing(1.4, 1.0, 2.0))):
        assert write(captured, how, seed) == write(plain, how, seed)
    assert RecordedGraph.captured == captured._graphs.count == len(LENGTHS)


def test_each_length_is_captured_once_and_the_longest_first(
    model: Orpheus, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, captured = make_stage(model, 1), list[int]()
    written = stage._write

    def note(length: int) -> None:
        captured.append(length)
        written(length)

    monkeypatch.setattr(stage, "_write", note)
    stage.capture()
    stage.capture()
    assert captured[::2] == captured[1::2] == sorted(LENGTHS, reverse=True)


def test_a_stage_that_was_written_to_its_end_is_captured_from_its_beginning(model: Orpheus) -> None:
    stage = make_stage(model, 1)
    stage.begin(0, [1] * (LENGTHS[-1] - SLOTS), 1)
    stage.end(0)
    stage.capture()
    assert stage._graphs.count == len(LENGTHS)


def test_a_warm_up_captures_all_that_jobs_use(rows: Orpheus) -> None:
    """One passage, several, one that is streamed, one with a limit of its tokens."""
    rows.warm()
    assert RecordedGraph.captured == 2 * len(LENGTHS)
    text = "One two three four five six. Seven eight nine ten eleven. Twelve."
    wishes: list[dict[str, Any]] = [
        {},
        {"text": text},
        {"text": text, "stream": True},
        {"text": text, "max_tokens": 200, "temperature": 1.2},
    ]
    said = [say(rows, **wish) for wish in wishes]
    assert RecordedGraph.captured == 2 * len(LENGTHS)
    for stage in rows._stages.values():
        assert stage._graphs.count == len(LENGTHS)
        stage._graphs.stop()
    for wish, sound in zip(wishes, said, strict=True):
        assert np.array_equal(sound, say(rows, **wish))


def test_a_warm_up_without_room_for_graphs_leaves_them_to_jobs(
    rows: Orpheus, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[int] = []

    def run_out(_stage: Stage) -> None:
        raise torch.OutOfMemoryError

    with capture_logs() as lines, monkeypatch.context() as short:
        short.setattr(Stage, "capture", run_out)
        short.setattr(devices, "free_memory", lambda: freed.append(len(rows._stages)))
        rows.warm()
    assert freed == [0]
    assert [line["reason"] for line in lines if "captured" in line["event"]] == ["out of memory"]
    assert not rows._stages
    say(rows)
    assert RecordedGraph.captured > 0


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    """Once it is known the rest is not tried, what there was is dropped, and the log says why."""
    graphs, ran, number = Graphs(CUDA), list[int](), torch.ones(1)
    graphs.run(3, lambda _: None)
    assert graphs.count == 1

    def wait(length: int) -> None:
        ran.append(length)
        number.item()

    with capture_logs() as lines:
        graphs.capture((1, 2), wait)
        graphs.run(2, wait)
        graphs.run(2, wait)
    assert ran == [2, 2, 2, 2]
    (line,) = lines
    assert "capturing" in line["reason"]
    assert graphs.count == 0


def test_memory_that_runs_out_in_a_capture_is_that_and_no_end_of_graphs() -> None:
    graphs, ran = Graphs(CUDA), list[int]()

    def run_out(length: int) -> None:
        ran.append(length)
        if len(ran) == 2:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        graphs.run(5, run_out)
    graphs.run(5, run_out)
    assert graphs.count == 1


def test_elsewhere_a_step_just_runs() -> None:
    graphs, ran = Graphs(torch.device("cpu")), list[int]()
    graphs.capture((1, 2), ran.append)
    graphs.run(3, ran.append)
    assert (ran, graphs.count, RecordedGraph.captured) == ([3], 0, 0)
