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
from worker.tasks.picture import EDIT, PictureInput, PictureOffer, PictureWish, offer_of
from worker.tasks.registry import TASKS
from worker.tasks.request import Request, parse
from worker.tasks.task import Asked, Task
from worlds import published
from worlds.standin import SERVED, StandIns, answered

SOURCE = Path(__file__).parents[2] / "src" / "worker"
# Tensors have sides and rows of a width; a model's row has its sizes.
SAY_WIDTH = {"openai/replies.py", "tasks/picture.py", "tasks/size.py"}
ROOMS_THAT_SAY_WIDTH = {"media", "families", "engine"}

ONE = io.BytesIO()
Image.new("RGB", (64, 64), "red").save(ONE, "PNG")
PICTURE = base64.b64encode(ONE.getvalue()).decode()


# A field added to a task, and nothing else.


class StrengthInput(PictureInput):
    """An edit's input with how much of the picture may change."""

    strength: Annotated[float, Number, Field(ge=0, le=1)] | None = fields.declare(
        "0-1, how much may change", "0.75", "denoise"
    )


@dataclass(frozen=True, slots=True)
class StrengthWish(PictureWish):
    """An edit with how much of the picture may change."""

    strength: float = declare_public(default=0.75)


def judge(values: StrengthInput, model: Served, verdict: Verdict, given: Settings) -> Asked:
    """Check an edit, and its strength."""
    asked = EDIT.judge(values, model, verdict, given)
    known = {f.name: getattr(asked.draft, f.name) for f in dataclasses.fields(asked.draft)}
    chosen = 0.75 if values.strength is None else values.strength
    return replace(asked, draft=StrengthWish(**known, strength=chosen))


@pytest.fixture
def strength(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits take a strength."""
    task = replace(EDIT, input=StrengthInput, wish=StrengthWish, judge=judge)
    monkeypatch.setitem(TASKS, "edit", task)


def served(job_input: Any) -> dict[str, Any]:
    """Return the reply to one job."""
    worker = Worker(settings.read({}), StandIns())
    return asyncio.run(answered(worker, {"id": "job-1", "input": job_input}))


@pytest.mark.usefixtures("strength")
def test_a_field_that_a_task_adds_is_in_the_reply_and_in_the_png() -> None:
    for given, echoed in (({"denoise": "0.5"}, 0.5), ({}, 0.75)):
        reply = served({"prompt": "a hat", "image": PICTURE, **given})
        assert reply["strength"] == echoed
        assert list(reply).index("strength") == list(reply).index("lightning_enabled") + 1
        metadata = Image.open(io.BytesIO(base64.b64decode(reply["images"][0]["base64"]))).info
        assert metadata["strength"] == str(echoed)
        assert reply["warnings"] == []


@pytest.mark.usefixtures("strength")
def test_a_field_that_a_task_adds_is_in_capabilities_and_in_the_reference() -> None:
    rows = {
        row["field"]: row for row in list_capabilities((SERVED,), settings.read({}), 1000)["input"]
    }
    assert rows["strength"] == {
        "field": "strength",
        "aliases": ["denoise"],
        "accepts": "0-1, how much may change",
        "default": "0.75",
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
        "tasks": ["edit"],
    }
    assert "tasks" not in rows["width"]
    assert "| `strength` | `denoise` | 0-1, how much may change | 0.75 |" in readme.input_table()


@pytest.mark.usefixtures("strength")
def test_a_field_that_a_task_adds_is_checked_in_it_and_unknown_to_the_others() -> None:
    refused = served({"prompt": "a hat", "image": PICTURE, "strength": 2})
    assert refused["error"] == "INVALID_INPUT: strength: must be at most 1 (got 2)"
    reply = served({"prompt": "a hat", "denoise": 1})
    assert reply["warnings"] == ["denoise: is not a known field; edit has it"]
    assert "strength" not in reply
    (slip,) = served({"prompt": "a hat", "image": PICTURE, "strenght": 1})["warnings"]
    assert slip.endswith("did you mean strength?")


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
        assert {field.name, in_reply} & set(asked_for), f"no caller can ask for {field.name}"
        assert in_file or field.name == "task", f"{field.name} is not inside the file"
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
        ({"line": "x", "image": PICTURE}, (SPEAKER,), "say", "speaker"),
    ],
)
def test_a_task_is_chosen_by_its_name_the_pictures_or_the_model(
    given: Any, models: tuple[Served, ...], task: str, model: str
) -> None:
    request = asked(given, *models)
    assert (request.task.name, request.model.id) == (task, model)
    assert request.asked.draft.task == task


@pytest.mark.usefixtures("say")
def test_the_words_of_a_job_are_those_of_its_task() -> None:
    with pytest.raises(InvalidInput) as refused:
        asked({"prompt": "x", "task": "say", "widht": 5}, SPEAKER)
    assert refused.value.message == (
        "line: is required; prompt: is not a known field; text-to-image and edit have it;"
        " widht: is not a known field"
    )
    with pytest.raises(InvalidInput) as doubled:
        asked({"input": {"line": "x"}}, SPEAKER)
    assert "is doubled" in doubled.value.message
    assert asked({"line": "x", "input": {}}, SPEAKER).warnings == ("input: is not a known field",)


@pytest.mark.usefixtures("say")
def test_messages_name_every_task_that_is_known() -> None:
    with pytest.raises(InvalidInput) as refused:
        asked({"prompt": "x", "task": "sing"}, SERVED)
    (detail,) = refused.value.details
    assert detail.message == (
        "must be 'text-to-image', 'edit', 'say', 'img2img', 'inpaint', 'layered' or 'speech'"
        " (got 'sing')"
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
    assert names.count("seed") == names.count("num_images") == 1
    rows = {row["field"]: row for row in answer["input"]}
    assert rows["line"]["tasks"] == ["say"]
    assert rows["prompt"]["tasks"] == ["text-to-image", "edit"]
    assert rows["task"]["accepts"] == "`text-to-image`, `edit`, `say`"
    assert rows["task"]["default"] == "images: edit, else text-to-image"
    assert "tasks" not in rows["num_images"]
    formats = [row for row in answer["input"] if row["field"] == "output_format"]
    assert [(row["accepts"], row["default"]) for row in formats] == [
        ("png, jpeg, jpg, webp", "png"),
        ("txt, text", "txt"),
    ]


def test_a_task_has_no_more_steps_than_it_counts() -> None:
    wish = picture.warm_up(published.IMAGE)
    assert EDIT.count_steps(wish) == wish.steps == 8
    assert SAY.count_steps(LineWish("x", "say", 0)) == 1


def test_an_offer_for_pictures_is_found_among_others() -> None:
    offers = {"say": LineOffer(), **SERVED.offers}
    assert isinstance(offer_of(replace(SERVED, offers=offers)), PictureOffer)
    with pytest.raises(StopIteration):
        offer_of(SPEAKER)
