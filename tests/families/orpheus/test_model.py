"""A published model is prepared, opened and speaks, in each precision."""

import copy
import json
import shutil
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from worker import settings
from worker.bundle import layout
from worker.bundle.fill import fill
from worker.bundle.layout import Damaged
from worker.bundle.open import make_shared
from worker.engine import device as devices
from worker.engine.quantise import PRECISIONS
from worker.errors import BadAudio, CudaOutOfMemory, DeviceLost, WeightsUnavailable
from worker.families import catalogue
from worker.families.orpheus import model as orpheus
from worker.families.orpheus.frames import Stage
from worker.families.orpheus.model import PAUSE_S, make_ready
from worker.families.orpheus.models import SLOTS
from worker.families.orpheus.opening import open_bundle
from worker.families.orpheus.recipe import count_room
from worker.families.orpheus.speaking import Limits, _check_audible
from worker.seam import Control, Made, Model, Outcome, Phase, Unheard
from worker.settings import Settings
from worker.tasks.request import Request, parse
from worker.tasks.speech import SpeechWish
from worlds import altered, speaking

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one folder, with its codec in a folder below."""
    language = speaking.publish(tmp_path_factory.mktemp("published"))
    (language.parent / "snac").rename(language / "codec")
    return language


def read_settings(home: Path, **environ: str) -> Settings:
    return settings.read({"MIN_STORAGE_FREE_GB": "0", "MODEL_DIR": str(home), **environ})


def open_model(folder: Path, home: Path, **environ: str) -> Model:
    """Return the model of a folder as a start opens it."""
    given = read_settings(home, MODEL=str(folder), **environ)
    (spec,) = catalogue.CATALOGUE.resolve(given.model, given, has_gpu=False)
    return make_ready(spec, given, None).open()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model(published: Path, home: Path) -> Model:
    return open_model(published, home)


def wish_of(model: Model, **job_input: Any) -> SpeechWish:
    request = parse(
        {"text": "One, two.", "seed": 3, **job_input}, [model.served], settings.read({})
    )
    assert isinstance(request, Request)
    wish: Any = request.make_wishes(request.asked.draft)[0]
    assert isinstance(wish, SpeechWish)
    return wish


def say(model: Model, control: Control | None = None, **job_input: Any) -> Outcome:
    (outcome,) = model.make([wish_of(model, **job_input)], [control or Unheard()])
    return outcome


def made(model: Model, **job_input: Any) -> Made:
    outcome = say(model, **job_input)
    assert isinstance(outcome, Made), outcome
    return outcome


def samples_of(made: Made) -> Any:
    piece: Any = made.piece
    return piece.samples


def test_what_it_serves_is_what_its_own_files_say(model: Model) -> None:
    served = model.served
    described = served.offers["speech"].describe(settings.read({}))
    assert (served.tasks, served.precision) == (("speech",), "bf16")
    assert described["voices"] == ["high", "low"]
    assert described["tags"] == ["<laugh>"]
    assert wish_of(model, text="word " * 20).passages[0] == ("word " * 8).strip()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_speaks_in_each_precision(published: Path, home: Path, precision: str) -> None:
    model = open_model(published, home, PRECISION_MODE=precision)
    assert model.served.precision == precision
    first, again = made(model), made(model)
    assert np.array_equal(samples_of(first), samples_of(again))
    assert len(samples_of(first)) % 2048 == 0
    (spoken,) = first.found["spoken"]
    assert spoken.seconds == len(samples_of(first)) / 24_000
    assert spoken.characters == len("One, two.")
    assert set(first.timings_ms) == {"text", "generate", "decode"}
    model.warm()
    model.release()


def test_a_seed_is_one_speech_and_another_another(model: Model) -> None:
    one, two = samples_of(made(model)), samples_of(made(model, seed=4))
    assert one.shape != two.shape or not np.array_equal(one, two)


def test_the_voice_is_part_of_the_prompt(model: Model) -> None:
    high, low = (samples_of(made(model, voice=voice)) for voice in ("high", "low"))
    assert high.shape != low.shape or not np.array_equal(high, low)


def test_passages_are_spoken_each_for_itself_with_a_pause_between(model: Model) -> None:
    texts = ["One two three four five six.", "Seven eight nine ten eleven."]
    whole = made(model, text=" ".join(texts))
    spoken = whole.found["spoken"]
    assert [one.characters for one in spoken] == [28, 28]
    lengths = [round(one.seconds * 24_000) for one in spoken]
    pause = round(PAUSE_S * 24_000)
    samples = samples_of(whole)
    assert len(samples) == sum(lengths) + pause
    assert not samples[lengths[0] : lengths[0] + pause].any()
    assert np.array_equal(samples[: lengths[0]], samples_of(made(model, text=texts[0])))


def test_a_pause_is_as_short_as_a_reader_s() -> None:
    """After a sentence: it is heard, and nobody waits for what follows."""
    assert 0.1 <= PAUSE_S <= 0.2


def test_how_tokens_are_chosen_is_as_the_job_says(model: Model) -> None:
    calm, wild = (samples_of(made(model, text=TEXT, temperature=t)) for t in (0.2, 1.5))
    assert not np.array_equal(calm, wild)


class Noting(Unheard):
    """Keeps all that is reported, and how often a part is handed over."""

    def __init__(self) -> None:
        self.reported: list[tuple[Phase, int, int]] = []
        self.handed = 0

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Keep it."""
        self.reported.append((phase, step, steps))

    def hand_over(self, part: Any) -> None:
        """Count it."""
        del part
        self.handed += 1


@pytest.mark.parametrize("more", ["", " Six seven eight nine ten eleven twelve."])
def test_a_caller_hears_of_every_frame_between_the_text_and_the_sound(
    model: Model, more: str
) -> None:
    """But of no passage that has no token left; and is handed nothing of what is whole."""
    wish = replace(wish_of(model, text=f"One two three four five.{more}"), max_tokens=4 * SLOTS)
    assert len(wish.passages) == 1 + bool(more)
    noting = Noting()
    list(model.make([wish], [noting]))
    steps = [("generate", count, max(count, wish.frames)) for count in (1, 2, 3, 4)]
    assert noting.reported == [("text", 1, 1), *steps, ("decode", 1, 1)]
    assert noting.handed == 0


def test_a_last_passage_that_is_cut_cuts_the_speech_and_not_what_its_caller_heard_first(
    model: Model,
) -> None:
    whole = made(model, text=TEXT)
    first = round(whole.found["spoken"][0].seconds * 24_000 / 2048)
    wish = replace(wish_of(model, text=TEXT, stream=True), max_tokens=(first + 2) * SLOTS)
    wish = replace(wish, passages=wish.passages[:2])
    (cut,) = model.make([wish], [Unheard()])
    assert isinstance(cut, Made), cut
    assert len(cut.found["spoken"]) == 2
    assert cut.found["truncated"]
    assert first > 2
    assert cut.found["first_frames"] == min(7, first)


def test_tokens_that_were_few_and_sufficed_cut_nothing(model: Model) -> None:
    """Fewer than its text would allow, and it ended before they did."""
    whole = made(model)
    frames = len(samples_of(whole)) // 2048
    assert frames + 1 < 40
    wish = replace(wish_of(model), max_tokens=(frames + 1) * SLOTS)
    (ended,) = model.make([wish], [Unheard()])
    assert isinstance(ended, Made), ended
    assert np.array_equal(samples_of(ended), samples_of(whole))
    assert not ended.found["truncated"]
    assert ended.warnings == ()


def test_the_peak_is_that_since_the_speech_was_begun(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {"of a job before": 9}
    monkeypatch.setattr(devices, "reset_peak", lambda _: peaks.clear())
    monkeypatch.setattr(devices, "read_peak_mb", lambda _: max(peaks.values(), default=7))
    assert made(model).peak_vram_mb == 7


def test_a_cancel_ends_it_within_a_frame(model: Model) -> None:
    class Cancelled(Exception):
        pass

    class Cancelling(Control):
        frames = 0

        def report(self, phase: Phase, step: int, steps: int) -> None:
            """Stop at the second frame."""
            assert step <= steps
            if phase == "generate":
                self.frames = step
                if step == 2:
                    raise Cancelled

    control = Cancelling()
    with pytest.raises(Cancelled):
        say(model, control, text="One two three four five.")
    assert control.frames == 2


def test_wishes_that_are_made_together_are_spoken_one_after_another(model: Model) -> None:
    wishes = [wish_of(model, seed=seed) for seed in (3, 4)]
    outcomes: list[Any] = list(model.make(wishes, [Unheard(), Unheard()]))
    assert len(outcomes) == 2
    for outcome, seed in zip(outcomes, (3, 4), strict=True):
        assert np.array_equal(samples_of(outcome), samples_of(made(model, seed=seed)))


def test_a_warm_up_says_something(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    language: Any = model._parts.language  # type: ignore[attr-defined] # of this family
    read, prompts = language.read, list[Any]()

    def count(embedded: Any, *given: Any) -> Any:
        prompts.append(embedded)
        return read(embedded, *given)

    monkeypatch.setattr(language, "read", count)
    model.warm()
    assert prompts


@pytest.mark.parametrize(("tokens", "frames"), [(7, 1), (13, 1), (14, 2)])
def test_no_more_is_said_than_whole_frames_of_the_tokens(
    model: Model, tokens: int, frames: int
) -> None:
    """A request asks for more: what is left to a passage may be as little."""
    wish = replace(wish_of(model, text="One two three four five."), max_tokens=tokens)
    (cut,) = model.make([wish], [Unheard()])
    assert isinstance(cut, Made), cut
    assert len(samples_of(cut)) == frames * 2048
    assert cut.found["truncated"]


def test_tokens_that_run_out_cut_the_speech(model: Model) -> None:
    cut = made(model, max_tokens=28, text="One two three four five six. Seven eight nine ten.")
    assert cut.found["truncated"]
    assert len(cut.warnings) == 1
    assert sum(one.seconds for one in cut.found["spoken"]) * 24_000 <= 4 * 2048
    assert not made(model).found["truncated"]


def test_a_passage_is_cut_by_what_is_left_only_where_its_text_would_allow_more() -> None:
    """At equal numbers it is its text's limit, and a model that reaches that has not ended."""
    for left, most, is_cut in ((4, 4, True), (5, 5, False), (6, 5, False), (None, 5, False)):
        limits = Limits(5, left)
        assert (limits.most, limits.is_cut) == (most, is_cut)


def test_a_model_that_never_ends_is_tried_three_times_and_is_an_error(
    published: Path, home: Path
) -> None:
    model: Any = open_model(published, home)
    with torch.no_grad():
        model._parts.language.stop.zero_()
    control = Counting()
    outcome = say(model, control)
    assert isinstance(outcome, BadAudio)
    assert "no speech that ends came of 3 attempts" in outcome.message
    limit = 40 + int(0.25 * len("One, two."))
    assert control.most == limit - 1  # with the last frame the next attempt begins
    assert (control.begun, control.least) == (3, 0)
    model.warm()  # what it says by itself is no reason not to start


def test_a_passage_has_room_for_every_frame_that_it_may_have(
    published: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that needs more than is usual."""
    monkeypatch.setattr(orpheus, "count_room", lambda _: 1)
    model: Any = open_model(published, home)
    with torch.no_grad():
        model._parts.language.stop.zero_()
    outcome = say(model)
    assert isinstance(outcome, BadAudio)
    assert "no speech that ends" in outcome.message


def test_a_longer_passage_has_its_room_in_place_of_the_usual_one(
    published: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values for both would take twice the memory."""
    model: Any = open_model(published, home)
    usual = weakref.ref(model._find_stage(1, 1))
    alive: list[bool] = []

    def make(*given: Any, **named: Any) -> Any:
        alive.append(usual() is not None)
        return Stage(*given, **named)

    monkeypatch.setattr(orpheus, "Stage", make)
    model._find_stage(1, count_room(model._speaking) + 1)
    assert alive == [False]


class Hearing(Control):
    """Keeps what is handed over."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Go on."""

    def hand_over(self, part: Any) -> None:
        """Keep it."""
        self.parts.append(part.samples)


TEXT = "One two three four five six. Seven eight nine ten eleven. Twelve."


def test_what_is_streamed_is_the_whole(model: Model) -> None:
    hearing = Hearing()
    streamed = say(model, hearing, text=TEXT, stream=True)
    assert isinstance(streamed, Made)
    whole = made(model, text=TEXT)
    assert np.array_equal(np.concatenate(hearing.parts), samples_of(whole))
    assert np.array_equal(samples_of(streamed), samples_of(whole))
    assert len(hearing.parts) > len(whole.found["spoken"])
    assert max(map(len, hearing.parts)) <= 32 * 2048
    first = whole.found["spoken"][0].seconds * 24_000 / 2048
    assert streamed.found["first_frames"] == min(7, first)
    assert whole.found["first_frames"] is None


def test_passages_that_are_written_at_once_are_said_in_their_order(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: four rows, five passages."""
    monkeypatch.setattr(orpheus, "choose_rows", lambda *_: 4)
    texts = [
        f"{word} two three four five six seven." for word in ("One", "Two", "Six", "Ten", "No")
    ]
    hearing = Hearing()
    streamed = say(model, hearing, text=" ".join(texts), stream=True)
    whole = made(model, text=" ".join(texts))
    assert isinstance(streamed, Made)
    assert np.array_equal(np.concatenate(hearing.parts), samples_of(whole))
    assert np.array_equal(samples_of(streamed), samples_of(whole))
    assert [one.characters for one in whole.found["spoken"]] == list(map(len, texts))
    stage = model._stages[4]  # type: ignore[attr-defined] # of this family
    assert stage.step() == {}
    # a row that is free is used at once; each frame is a step, and so is a stop
    steps, step = list[Stage](), Stage.step

    def count(stage: Stage) -> Any:
        steps.append(stage)
        return step(stage)

    monkeypatch.setattr(Stage, "step", count)
    assert np.array_equal(samples_of(made(model, text=" ".join(texts))), samples_of(whole))
    busy = [0] * 4
    for one in whole.found["spoken"]:
        assert one.attempts == 1
        busy[busy.index(min(busy))] += round(one.seconds * 24_000 / 2048) + 1
    assert len(steps) == max(busy)


def test_what_was_stopped_leaves_no_row_to_the_next(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = samples_of(made(model))
    monkeypatch.setattr(orpheus, "choose_rows", lambda *_: 4)

    class Stopping(Unheard):
        def report(self, phase: Phase, step: int, steps: int) -> None:
            """Stop at the first frame."""
            del step, steps
            if phase == "generate":
                raise InterruptedError

    with pytest.raises(InterruptedError):
        say(model, Stopping(), text=TEXT)
    assert np.array_equal(samples_of(made(model)), expected)


def run_out_once(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """Let the language model run out of memory at its next prompt."""
    language = model._parts.language
    read = language.read

    def run_out(*_: object) -> None:
        monkeypatch.setattr(language, "read", read)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(language, "read", run_out)


def test_memory_that_runs_out_once_is_seen_by_none(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = samples_of(made(model))
    run_out_once(monkeypatch, model)
    assert np.array_equal(samples_of(made(model)), expected)


def test_what_was_kept_is_free_before_it_is_tried_again(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    language: Any = model._parts.language  # type: ignore[attr-defined] # of this family
    read, known = language.read, list[Any]()

    def run_out(embedded: Any, cache: Any, row: int) -> Any:
        known.append(weakref.ref(cache))
        if len(known) == 1:
            raise torch.OutOfMemoryError
        assert known[0]() is None
        return read(embedded, cache, row)

    monkeypatch.setattr(language, "read", run_out)
    made(model)
    assert len(known) > 1


def test_a_stream_that_runs_out_of_memory_is_not_begun_again(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was handed over cannot be taken back."""
    run_out_once(monkeypatch, model)
    with pytest.raises(CudaOutOfMemory):
        say(model, stream=True)


def test_several_rows_are_for_a_gpu_and_a_text_of_several_passages(model: Model) -> None:
    cuda, long = torch.device("cuda"), wish_of(model, text=TEXT)
    assert orpheus.choose_rows(cuda, long) == 4
    assert orpheus.choose_rows(CPU, long) == 1
    assert orpheus.choose_rows(cuda, wish_of(model)) == 1
    assert orpheus.choose_rows(cuda, wish_of(model, text=TEXT, max_tokens=100)) == 1
    assert (orpheus.list_rows(cuda), orpheus.list_rows(CPU)) == ((1, 4), (1,))


def test_memory_that_a_released_model_leaves_behind_is_found(published: Path, home: Path) -> None:
    """Something still refers to the language model: the next model has no room."""
    model: Any = open_model(published, home)
    leak = model._parts.language
    with pytest.raises(DeviceLost, match="not freed"):
        model.release()
    assert leak is not None


def test_a_stream_that_does_not_end_is_not_begun_again(published: Path, home: Path) -> None:
    model: Any = open_model(published, home)
    with torch.no_grad():
        model._parts.language.stop.zero_()
    hearing = Hearing()
    outcome = say(model, hearing, stream=True)
    assert isinstance(outcome, BadAudio)
    assert "came of 1 attempts" in outcome.message
    assert hearing.parts


class Counting(Control):
    """Counts how often and how far frames were written."""

    most = 0
    least = 0
    begun = 0

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Count."""
        del steps
        if phase == "generate":
            self.most, self.least = max(self.most, step), min(self.least, step)
            self.begun += step == 1


def test_a_silent_codec_and_one_that_is_no_sound_are_errors(published: Path, home: Path) -> None:
    model: Any = open_model(published, home)
    model._parts.codec = copy.deepcopy(model._parts.codec)  # others of this process have it too
    last = model._parts.codec.decoder.model[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    outcome = say(model)
    assert isinstance(outcome, BadAudio)
    assert "silent" in outcome.message
    with torch.no_grad():
        last.bias.fill_(torch.nan)
    outcome = say(model)
    assert isinstance(outcome, BadAudio)
    assert "not numbers" in outcome.message


@pytest.mark.parametrize(("level", "is_silent"), [(15, True), (16, False)])
def test_a_sound_is_heard_from_the_noise_of_a_codec_on(level: int, is_silent: bool) -> None:
    """In either direction, wherever it is."""
    for sign in (1, -1):
        sound = [np.zeros(4, np.int16), np.array([0, sign * level, 1], np.int16)]
        with pytest.raises(BadAudio) if is_silent else nullcontext():
            _check_audible(sound)


def find_bundle(home: Path, precision: str) -> Path:
    (folder,) = (
        path for path, bundle in layout.list_prepared(home) if bundle.precision == precision
    )
    return folder


def test_a_bundle_keeps_text_on_the_disk_and_the_codec_exact(model: Model, home: Path) -> None:
    del model
    folder = find_bundle(home, "bf16")
    with capture_logs() as lines:
        parts = open_bundle(folder, CPU)
    assert not lines, "there is no head to compare with the embedding"
    assert parts.language.is_tied
    assert parts.text.shape == (speaking.IDS.first, 64)
    assert parts.language.codes.shape == (7 * 32, 64)
    assert all(p.dtype == torch.float32 for p in parts.codec.parameters())
    language = speaking.make_language()
    table = language.model.embed_tokens.weight.to(torch.bfloat16)
    assert torch.equal(parts.text, table[: speaking.IDS.first])
    assert torch.equal(parts.language.codes, table[speaking.IDS.first : speaking.IDS.end])
    assert torch.equal(parts.language.stop[0], table[speaking.IDS.stop])
    weights = make_folded()
    codec: Any = parts.codec
    assert torch.equal(codec.decoder.model[0].weight, weights)


def test_models_of_one_process_share_a_codec_and_no_more(model: Model, home: Path) -> None:
    del model
    share = make_shared()
    one, two = (open_bundle(find_bundle(home, "bf16"), CPU, share=share) for _ in range(2))
    assert one.codec is two.codec
    assert one.language is not two.language
    assert one.device == one.codec_device == CPU


def test_a_codec_may_wait_on_another_device(
    model: Model, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del model
    cuda, placed = torch.device("cuda"), dict[str, torch.device]()

    def note(module: Any, tensors: Any, precision: Any, device: torch.device, **more: Any) -> None:
        placed[type(module).__name__] = device
        fill(module, tensors, precision, CPU, **more)

    monkeypatch.setattr("worker.bundle.open.fill", note)
    for waiting, expected in ((CPU, CPU), (None, cuda)):
        parts = open_bundle(find_bundle(home, "bf16"), cuda, waiting=waiting)
        assert placed == {"Language": cuda, "SnacDecoder": expected}
        assert (parts.device, parts.codec_device) == (cuda, expected)


def test_every_byte_is_proven_where_that_is_asked_for(
    model: Model, home: Path, tmp_path: Path
) -> None:
    """By sizes alone, weights that were altered are opened."""
    del model
    copied = Path(shutil.copytree(home, tmp_path / "home", symlinks=True))
    folder = find_bundle(copied, "bf16")
    place, _ = layout.verify(folder).parts["language"]
    (weights, *_) = sorted(place.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    open_bundle(folder, CPU)
    with pytest.raises(Damaged):
        open_bundle(folder, CPU, verify="full")


def make_folded() -> Any:
    return speaking.make_snac().decoder.model[0].weight.detach()


@pytest.fixture(params=[True, False], ids=["equal", "different"])
def untied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """A model that publishes a head of its own, which is the embedding or is not."""
    language = speaking.publish(tmp_path, is_tied=False)
    (tmp_path / "snac").rename(language / "codec")
    if request.param:
        stock = speaking.make_language(is_tied=False).to(torch.bfloat16)
        stock.lm_head.weight.data.copy_(stock.model.embed_tokens.weight.data)
        stock.save_pretrained(language)
    return language, request.param


def test_a_head_is_compared_with_the_embedding_whatever_the_configuration_says(
    untied: tuple[Path, bool], tmp_path: Path
) -> None:
    folder, is_equal = untied
    home = tmp_path / "home"
    model = open_model(folder, home)
    with capture_logs() as lines:
        parts = open_bundle(find_bundle(home, "bf16"), CPU)
    assert parts.language.is_tied == is_equal
    assert [line["equal"] for line in lines if "equal" in line] == [is_equal]
    made(model)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"codebook": 64}, "vocab_size"),
        ({"first_audio": speaking.IDS.first + 2}, "vocab_size"),
        ({"sample_rate": 44_100}, "samples per second"),
        ({"codebook": 16}, "codec has 32 codes"),
        ({"first_audio": 30, "stop": 3, "prompt": {"before": [1], "after": [2]}}, "another model"),
        ({"voices": 5}, "wrong kind"),
        ({"prompt": {"after": []}}, "below first_audio"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_made(
    tmp_path: Path, about: dict[str, Any], words: str
) -> None:
    language = speaking.publish(tmp_path, about=about)
    (tmp_path / "snac").rename(language / "codec")
    with pytest.raises(WeightsUnavailable, match=words):
        open_model(language, tmp_path / "home")


def test_a_vocabulary_that_ends_with_the_last_code_is_enough(tmp_path: Path) -> None:
    """The small one has one id more than its own numbers need."""
    language = speaking.publish(tmp_path, about={"first_audio": speaking.IDS.first + 1})
    (tmp_path / "snac").rename(language / "codec")
    assert open_model(language, tmp_path / "home").served.tasks == ("speech",)


def test_the_number_format_that_a_configuration_names_is_not_asked_for(tmp_path: Path) -> None:
    """That of the weights counts."""
    language = speaking.publish(tmp_path)
    (tmp_path / "snac").rename(language / "codec")
    altered.configure(language / "config.json", dtype="int8")
    assert open_model(language, tmp_path / "home").served.precision == "bf16"


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no tokenizer.json"), (b"{}", "tokenizer/ cannot be opened")]
)
def test_a_tokenizer_that_is_none_is_named(
    published: Path, tmp_path: Path, content: bytes | None, words: str
) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "model"))
    if content is None:
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=words):
        open_model(folder, tmp_path / "home")


@pytest.mark.parametrize("part", ["codec", "language"])
def test_a_part_that_lacks_a_tensor_is_named_before_anything_is_made(
    tmp_path: Path, part: str
) -> None:
    language = speaking.publish(tmp_path)
    (tmp_path / "snac").rename(language / "codec")
    if part == "codec":
        weights = torch.load(language / "codec" / "pytorch_model.bin")
        weights.popitem()
        torch.save(weights, language / "codec" / "pytorch_model.bin")
    else:
        weights = load_file(language / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, language / "model.safetensors")
    home = tmp_path / "home"
    with pytest.raises(WeightsUnavailable, match=f"{part}.*lacks"):
        open_model(language, home)
    assert not list(home.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("path", "tensor", "words"),
    [
        ("model.safetensors", "model.layers.0.mlp.up_proj.SCB", "language/.*bitsandbytes 8-bit"),
        ("codec/pytorch_model.bin", "decoder.model.0.SCB", "codec/.*bitsandbytes 8-bit"),
    ],
    ids=["language", "codec"],
)
def test_weights_that_are_quantised_already_are_named_as_such(
    path: str, tensor: str, words: str, tmp_path: Path
) -> None:
    language = speaking.publish(tmp_path)
    (tmp_path / "snac").rename(language / "codec")
    if path.endswith(".bin"):
        torch.save({**torch.load(language / path), tensor: torch.ones(8)}, language / path)
    else:
        save_file({**load_file(language / path), tensor: torch.ones(8)}, language / path)
    with pytest.raises(WeightsUnavailable, match=words):
        open_model(language, tmp_path / "home")


@pytest.mark.parametrize("part", ["", "codec"])
def test_a_part_that_calls_itself_quantised_is_refused(part: str, tmp_path: Path) -> None:
    language = speaking.publish(tmp_path)
    (tmp_path / "snac").rename(language / "codec")
    path = language / part / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(WeightsUnavailable, match=f"{part or 'language'}/config.json") as caught:
        open_model(language, tmp_path / "home")
    assert "GPTQ" in caught.value.message


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    language = speaking.publish(tmp_path)
    (tmp_path / "snac").rename(language / "codec")
    torch.save({"a": Path("x")}, language / "codec" / "pytorch_model.bin")
    with pytest.raises(WeightsUnavailable, match="not a file of tensors alone"):
        open_model(language, tmp_path / "home")
