"""What other workers' callers send: understood, or refused where the picture would differ."""

from types import SimpleNamespace
from typing import Any

import pytest

from worker import settings
from worker.edge.fields import CommonInput
from worker.edge.reading import Read
from worker.edge.verdict import Verdict
from worker.errors import InvalidInput
from worker.tasks import unhonoured
from worker.tasks.request import Request, parse
from worker.tasks.size import NAMED
from worlds.published import EDIT, IMAGE

URL = "https://a.example/x.png"


def parsed(**given: Any) -> Request:
    request = parse({"prompt": "a cat", **given}, (IMAGE, EDIT), settings.read({}))
    assert isinstance(request, Request)
    return request


def refused(environ: dict[str, str] | None = None, **given: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as error:
        parse({"prompt": "a cat", **given}, (IMAGE, EDIT), settings.read(environ or {}))
    return [(detail.field, detail.message) for detail in error.value.details]


def size_of(request: Request) -> tuple[int, int]:
    asked: Any = request.asked
    return (asked.size.width, asked.size.height)


@pytest.mark.parametrize("word", ["low", "medium", "HIGH", "standard", "hd", "xhigh", "max"])
def test_a_word_for_quality_has_no_effect_and_that_is_said(word: str) -> None:
    request = parsed(quality=word)
    assert request.delivery.quality == 95
    warning = "quality: a word has no effect; num_inference_steps is the quality"
    assert request.warnings == (warning,)


def test_such_a_word_elsewhere_is_what_it_says() -> None:
    request = parsed(prompt="high")
    assert (request.asked.prompt, request.warnings) == ("high", ())


def test_an_automatic_quality_needs_no_word_about_it() -> None:
    assert parsed(quality="auto").warnings == ()
    request = parsed(quality="auto", output_quality=80, output_format="jpeg")
    assert (request.delivery.quality, request.warnings) == (80, ())
    assert parsed(output_compression=70, output_format="webp").delivery.quality == 70


@pytest.mark.parametrize("word", ["best", "", "101"])
def test_other_words_for_quality_are_wrong(word: str) -> None:
    assert refused(quality=word)[0][0] == "quality"


def test_openais_word_for_base64_is_ours() -> None:
    assert parsed(response_format="b64_json").delivery.response_format == "base64"
    assert refused(response_format="b64")[0][0] == "response_format"


@pytest.mark.parametrize("name", NAMED)
def test_fals_names_for_sizes_are_theirs(name: str) -> None:
    assert size_of(parsed(image_size=name)) == NAMED[name]


def test_a_size_may_be_an_object() -> None:
    assert size_of(parsed(image_size={"width": 640, "height": 480})) == (640, 480)


@pytest.mark.parametrize(
    "value",
    [
        {"width": 640},
        {"width": 640, "height": 480, "depth": 1},
        {"width": "640", "height": 480},
        {"width": True, "height": 480},
        {"width": 640, "height": 63},
        {"width": 70_000, "height": 480},
        {},
    ],
    ids=str,
)
def test_an_object_that_is_no_size_is_wrong(value: Any) -> None:
    assert [field for field, _ in refused(image_size=value)] == ["image_size"]


@pytest.mark.parametrize("ratio", ["4:5", "5:4", "2:1", "1:2", "21:9", "9:21", "3:1", "1:3"])
def test_further_aspects_are_made_at_the_models_own_area(ratio: str) -> None:
    request: Any = parsed(aspect_ratio=ratio)
    assert request.asked.size.aspect_ratio == ratio


@pytest.mark.parametrize(
    "value",
    [{"image_url": URL}, {"image_url": {"url": URL}}, [{"image_url": {"url": URL}}]],
    ids=str,
)
def test_a_picture_may_be_an_object_as_in_openais_messages(value: Any) -> None:
    assert [source.value for source in parsed(images=value).asked.sources] == [URL]


@pytest.mark.parametrize("value", [{"image_url": {}}, {"image_url": {"url": 5}}], ids=str)
def test_an_object_without_an_address_is_wrong(value: Any) -> None:
    assert refused(images=value)


def test_the_name_of_a_forms_list_is_one_for_pictures() -> None:
    assert parsed(**{"image[]": [URL]}).task.name == "edit"


@pytest.mark.parametrize(
    "given",
    [
        {"mask": URL},
        {"mask_image": URL},
        {"mask_url": URL},
        {"mask_base64": "x"},
        {"loras": [{"path": "x"}]},
        {"lora": "x"},
        {"lora_weights": "x"},
        {"lora_url": URL},
        {"background": "transparent"},
        {"image": URL, "strength": 0.5},
        {"image": URL, "prompt_strength": 0.5},
        {"image": URL, "denoise": 1},
        {"image": URL, "denoising_strength": 1},
    ],
    ids=str,
)
def test_what_would_change_the_result_and_cannot_is_refused(given: Any) -> None:
    """Of a task that has no such field and takes pictures: a result without it would be wrong."""
    (name,) = given.keys() - {"image"}
    task: Any = SimpleNamespace(input=CommonInput, sign="images")
    read = Read(CommonInput.model_construct(), {}, frozenset(), (), ())
    verdict = Verdict(read)
    unhonoured.check(given, task, {}, verdict)
    with pytest.raises(InvalidInput) as error:
        verdict.raise_faults()
    message = "is not supported by this worker; leave it out"
    assert [(one.field, one.message) for one in error.value.details] == [(name, message)]


def test_everything_that_would_change_the_result_is_told() -> None:
    task: Any = SimpleNamespace(input=CommonInput, sign="images")
    verdict = Verdict(Read(CommonInput.model_construct(), {}, frozenset(), (), ()))
    given = {"seed": 1, "mask": URL, "loras": ["x"]}
    unhonoured.check(given, task, {}, verdict)
    with pytest.raises(InvalidInput) as error:
        verdict.raise_faults()
    assert [one.field for one in error.value.details] == ["mask", "loras"]


@pytest.mark.parametrize("strict", ["0", "1"])
def test_a_transparent_background_is_refused_of_pictures(strict: str) -> None:
    message = "is not supported by this worker; leave it out"
    found = refused({"STRICT_INPUT": strict}, background="transparent")
    assert found == [("background", message)]


@pytest.mark.parametrize(
    "given",
    [
        {"mask": None},
        {"background": "opaque"},
        {"background": "auto"},
        {"background": ""},
    ],
    ids=str,
)
def test_what_would_change_nothing_is_a_warning_at_most(given: Any) -> None:
    request = parsed(**given)
    assert all("is not a known field" in warning for warning in request.warnings)


@pytest.mark.parametrize(
    "given",
    [{"mask": ""}, {"mask_url": ""}, {"lora": ""}, {"loras": []}, {"background": ""}],
    ids=str,
)
def test_what_is_empty_asks_for_nothing_of_a_task_without_the_field(given: Any) -> None:
    task: Any = SimpleNamespace(input=CommonInput, sign="images")
    verdict = Verdict(Read(CommonInput.model_construct(), {}, frozenset(), (), ()))
    unhonoured.check(given, task, {}, verdict)
    verdict.raise_faults()
