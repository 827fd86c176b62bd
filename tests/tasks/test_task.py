"""A task is one value: what it adds to the input is found wherever callers look."""

import asyncio
import base64
import dataclasses
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from PIL import Image
from pydantic import Field

from tools import readme
from worker import settings
from worker.edge import echo, fields
from worker.edge.echo import declare_public
from worker.edge.fields import CommonInput, Number
from worker.edge.verdict import Verdict
from worker.errors import InvalidInput, UnsupportedTask
from worker.jobs.serve import Worker
from worker.seam import Served
from worker.settings import Settings
from worker.tasks import picture
from worker.tasks.capabilities import list_capabilities
from worker.tasks.picture import PictureOffer, PictureWish, offer_of
from worker.tasks.picture_input import PictureInput
from worker.tasks.picture_tasks import EDIT, PICTURE_TASKS
from worker.tasks.registry import TASKS
from worker.tasks.request import Request, parse
from worker.tasks.speech import SpeechOffer
from worker.tasks.task import Asked, Task
from worlds import published
from worlds.standin import SERVED, StandIns, answered

SOURCE = Path(__file__).parents[2] / "src" / "worker"
# Tensors have sides and rows of a width; a model's row has its sizes.
SAY_WIDTH = {
    *(f"tasks/picture{part}.py" for part in ("", "_input", "_judgement", "_tasks")),
    "tasks/size.py",
    "openai/replies.py",
}
ROOMS_THAT_SAY_WIDTH = {"media", "families", "engine"}

ONE = io.BytesIO()
Image.new("RGB", (64, 64), "red").save(ONE, "PNG")
PICTURE = base64.b64encode(ONE.getvalue()).decode()


# A field added to a task, and nothing else.


class WarmthInput(PictureInput):
    """An edit's input with how warm its light is."""

    warmth: Annotated[float, Number, Field(ge=0, le=1)] | None = fields.declare(
        "0-1, how warm", "0.75", "heat"
    )


@dataclass(frozen=True, slots=True)
class WarmthWish(PictureWish):
    """An edit with how warm its light is."""

    warmth: float = declare_public(default=0.75)


def judge(values: WarmthInput, model: Served, verdict: Verdict, given: Settings) -> Asked:
    """Check an edit, and its warmth."""
    asked = EDIT.judge(values, model, verdict, given)
    known = {f.name: getattr(asked.draft, f.name) for f in dataclasses.fields(asked.draft)}
    chosen = 0.75 if values.warmth is None else values.warmth
    return replace(asked, draft=WarmthWish(**known, warmth=chosen))


@pytest.fixture
def warmth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits have a warmth."""
    task = replace(EDIT, input=WarmthInput, wish=WarmthWish, judge=judge)
    monkeypatch.setitem(TASKS, "edit", task)


def served(job_input: Any) -> dict[str, Any]:
    """Return the reply to one job."""
    worker = Worker(settings.read({}), StandIns())
    return asyncio.run(answered(worker, {"id": "job-1", "input": job_input}))


@pytest.mark.usefixtures("warmth")
def test_a_field_that_a_task_adds_is_in_the_reply_and_in_the_png() -> None:
    for given, echoed in (({"heat": "0.5"}, 0.5), ({}, 0.75)):
        reply = served({"prompt": "a hat", "image": PICTURE, **given})
        assert reply["warmth"] == echoed
        assert list(reply).index("warmth") == list(reply).index("lightning_enabled") + 1
        metadata = Image.open(io.BytesIO(base64.b64decode(reply["images"][0]["base64"]))).info
        assert metadata["warmth"] == str(echoed)
        assert reply["warnings"] == []


@pytest.mark.usefixtures("warmth")
def test_a_field_that_a_task_adds_is_in_capabilities_and_in_the_reference() -> None:
    rows = {
        row["field"]: row for row in list_capabilities((SERVED,), settings.read({}), 1000)["input"]
    }
    assert rows["warmth"] == {
        "field": "warmth",
        "aliases": ["heat"],
        "accepts": "0-1, how warm",
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
        "default": "0.75",
        "tasks": ["edit"],
    }
    assert rows["width"]["tasks"] == list(PICTURE_TASKS)
    assert "| `warmth` | `heat` | 0-1, how warm | 0.75 |" in readme.input_table()


@pytest.mark.usefixtures("warmth")
def test_a_field_that_a_task_adds_is_checked_in_it_and_unknown_to_the_others() -> None:
    refused = served({"prompt": "a hat", "image": PICTURE, "warmth": 2})
    assert refused["error"] == "INVALID_INPUT: warmth: must be at most 1 (got 2)"
    reply = served({"prompt": "a hat", "heat": 1})
    assert reply["warnings"] == ["heat: is not a known field; edit has it"]
    assert "warmth" not in reply
    (slip,) = served({"prompt": "a hat", "image": PICTURE, "warmht": 1})["warnings"]
    assert slip.endswith("did you mean warmth?")


# What every task has.


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_field_of_a_wish_is_public_everywhere_or_private(task: Task) -> None:
    """And for each that is public there is a field of the input that asks for it."""
    asked_for = fields.map_names(task.input)
    names = {"reply": set[str](), "text": set[str]()}
    wish: Any = task.wish
    for field in dataclasses.fields(wish):
        in_reply, in_file = echo.get_names(field)
        if not in_reply:
            assert not in_file, f"{field.name} is private in the reply alone"
            continue
        found = ("start_noise", "spoken", "truncated", "first_frames")  # while it is made
        if field.name not in found:
            assert {field.name, in_reply} & set(asked_for), f"no caller can ask for {field.name}"
        assert in_file or field.name in ("task", *found), f"{field.name} is not inside the file"
        names["reply"].add(in_reply)
        names["text"].add(in_file)
    assert {"task", "seed"} <= names["reply"]
    assert "seed" in names["text"]


def test_a_field_that_says_nothing_of_itself_is_a_bug() -> None:
    @dataclass(frozen=True)
    class Mute:
        task: str
        seed: int

    with pytest.raises(KeyError):
        echo.show_in_reply(Mute("x", 1))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_phases_of_a_task_are_all_of_the_work(task: Task) -> None:
    assert sum(span.percent for span in task.spans) == 100
    assert len({span.phase for span in task.spans}) == len(task.spans)
    assert set(task.smaller) | set(task.lossless) <= set(task.formats.values())


def test_sizes_of_pictures_are_known_to_few_files() -> None:
    saying = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"\bwidth\b", path.read_text(encoding="utf-8"))
    }
    assert {name for name in saying if name.split("/")[0] not in ROOMS_THAT_SAY_WIDTH} == SAY_WIDTH


# Choosing among tasks.


class LineInput(CommonInput):
    """What a line takes."""

    line: str | None = fields.declare("a line", "required", "verse", place=fields.WHAT)


@dataclass(frozen=True)
class LineWish:
    """One line to say."""

    line: str = declare_public()
    task: str = declare_public(text="")
    seed: int = declare_public()


@dataclass(frozen=True)
class LineOffer:
    """Nothing to choose."""

    def describe(self, given: Settings) -> dict[str, Any]:
        """Have one fact."""
        del given
        return {"voices": ["a"]}


def judge_line(values: LineInput, model: Served, verdict: Verdict, given: Settings) -> Asked:
    """Take it as it is."""
    del model, verdict, given
    return Asked(LineWish(values.line or "", "say", 0), values.line or "")


SAY = Task(
    name="say",
    input=LineInput,
    wish=LineWish,
    key="lines",
    noun="line",
    formats={"txt": "txt", "text": "txt"},
    spans=(),
    judge=judge_line,
)
SPEAKER = replace(SERVED, id="speaker", repository="a/speaker", offers={"say": LineOffer()})
VOICES = replace(SERVED, id="voices", offers={"speech": SpeechOffer(("tara",), 24_000)})


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a task that is no picture."""
    monkeypatch.setitem(TASKS, "say", SAY)


def asked(job_input: Any, *models: Served) -> Request:
    """Return what a job asks."""
    request = parse(job_input, models, settings.read({}))
    assert isinstance(request, Request)
    return request


@pytest.mark.usefixtures("say")
@pytest.mark.parametrize(
    ("given", "models", "task", "model"),
    [
        ({"line": "x"}, (SPEAKER,), "say", "speaker"),
        ({"line": "x", "model": "a/SPEAKER"}, (SERVED, SPEAKER), "say", "speaker"),
        ({"verse": "x", "task": "Say"}, (SERVED, SPEAKER), "say", "speaker"),
        ({"prompt": "x"}, (SPEAKER, SERVED), "text-to-image", "standin"),
        ({"prompt": "x", "image": PICTURE}, (SPEAKER, SERVED), "edit", "standin"),
        ({"line": "x", "seed": 5}, (SPEAKER,), "say", "speaker"),
        ({"line": "x"}, (SPEAKER, VOICES), "say", "speaker"),
        ({"prompt": "x"}, (VOICES, SPEAKER), "speech", "voices"),
    ],
)
def test_a_task_is_chosen_by_its_name_the_pictures_or_the_model(
    given: Any, models: tuple[Served, ...], task: str, model: str
) -> None:
    request = asked(given, *models)
    assert (request.task.name, request.model.id) == (task, model)
    assert request.asked.draft.task == task


def test_a_model_of_a_task_that_nobody_knows_is_none_for_a_job() -> None:
    for given in ({"prompt": "x"}, {"prompt": "x", "model": "speaker"}):
        with pytest.raises(UnsupportedTask) as refused:
            asked(given, SPEAKER)
        assert "this version has no model for it" in refused.value.message


@pytest.mark.usefixtures("say")
def test_what_to_give_for_a_task_is_said_of_one_that_a_field_asks_for() -> None:
    both = replace(published.EDIT, id="both", offers={"say": LineOffer(), **published.EDIT.offers})
    with pytest.raises(UnsupportedTask, match="not text-to-image; give images to edit; "):
        asked({"prompt": "x", "model": "both"}, both)


@pytest.mark.usefixtures("say")
def test_the_words_of_a_job_are_those_of_its_task() -> None:
    with pytest.raises(InvalidInput) as refused:
        asked({"prompt": "x", "task": "say", "widht": 5}, SPEAKER)
    assert refused.value.message == (
        "prompt: is for pictures, not for say; line: is required; widht: is not a known field"
    )
    with pytest.raises(InvalidInput) as doubled:
        asked({"input": {"line": "x"}}, SPEAKER)
    assert "is doubled" in doubled.value.message
    assert asked({"line": "x", "input": {}}, SPEAKER).warnings == (
        "input: is not a known field; speech has it",
    )


@pytest.mark.usefixtures("say")
def test_messages_name_every_task_that_is_known() -> None:
    with pytest.raises(InvalidInput) as refused:
        asked({"prompt": "x", "task": "sing"}, SERVED)
    (detail,) = refused.value.details
    assert detail.message == (
        "must be 'text-to-image', 'edit', 'img2img', 'inpaint', 'outpaint', 'speech', 'say' or"
        " 'layered' (got 'sing')"
    )
    with pytest.raises(UnsupportedTask) as unable:
        asked({"prompt": "x", "model": "speaker", "task": "edit", "image": PICTURE}, SPEAKER)
    assert "speaker does say, not edit; this version has no model for it" in unable.value.message


@pytest.mark.usefixtures("say")
def test_capabilities_have_the_fields_and_the_offers_of_every_task() -> None:
    answer = list_capabilities((SERVED, SPEAKER), settings.read({}), 1000)
    first, second = answer["models"]
    assert "voices" not in first
    assert (second["tasks"], second["voices"]) == (["say"], ["a"])
    assert "steps" not in second
    names = [row["field"] for row in answer["input"]]
    assert names.count("seed") == 1
    rows = {row["field"]: row for row in answer["input"] if row.get("tasks") != ["speech"]}
    assert rows["line"]["tasks"] == ["say"]
    assert rows["prompt"]["tasks"] == ["text-to-image", "edit", "img2img", "inpaint", "outpaint"]
    assert rows["task"]["accepts"] == (
        "`text-to-image`, `edit`, `img2img`, `inpaint`, `outpaint`, `speech`, `say`"
    )
    assert rows["task"]["default"] == (
        "voice: speech, outpaint: outpaint, mask: inpaint, strength: img2img, images: edit,"
        " else text-to-image"
    )
    assert rows["num_images"]["tasks"] == [*PICTURE_TASKS, "say"]
    formats = [row for row in answer["input"] if row["field"] == "output_format"]
    assert [(row["accepts"], row["default"]) for row in formats] == [
        ("png, jpeg, jpg, webp", "png"),
        ("wav, flac, mp3, opus, pcm; pcm is 16 bit, little-endian, without a header", "wav"),
        ("txt, text", "txt"),
    ]


def test_a_task_has_no_more_steps_than_it_counts() -> None:
    wish = picture.warm_up(published.IMAGE)
    assert EDIT.count_steps(wish) == wish.steps == 8
    assert SAY.count_steps(LineWish("x", "say", 0)) == 1


def test_a_warm_up_is_a_picture_as_jobs_will_ask_for_it() -> None:
    """An edit where the model can do it, with Lightning where it is loaded, of its own size."""
    wish = picture.warm_up(published.EDIT)
    (grey,) = wish.references
    assert (grey.size, grey.mode) == ((wish.width, wish.height), "RGB") == ((1024, 1024), "RGB")
    assert (wish.task, wish.seed, wish.steps, wish.lightning) == ("edit", 0, 8, True)
    assert (wish.true_cfg_scale, wish.negative_prompt) == (1.0, None)
    plain = published.offering(published.IMAGE, lightning_steps=(), area=100 * 100)
    wish = picture.warm_up(plain)
    assert (wish.task, wish.seed, wish.steps, wish.lightning) == ("text-to-image", 0, 2, False)
    assert (wish.width, wish.height, wish.references) == (96, 96, ())
    assert (wish.true_cfg_scale, wish.negative_prompt) == (1.0, None)
    least = picture.warm_up(published.offering(plain, area=32 * 32))
    assert (least.width, least.height) == (64, 64)


def test_an_offer_for_pictures_is_found_among_others() -> None:
    offers = {"say": LineOffer(), **SERVED.offers}
    assert isinstance(offer_of(replace(SERVED, offers=offers)), PictureOffer)
    with pytest.raises(StopIteration):
        offer_of(SPEAKER)
