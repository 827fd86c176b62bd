"""LoRAs may be written in every form that callers use, and a wrong one is named."""

from pathlib import Path
from typing import Any

import pytest

from worker import settings
from worker.errors import InvalidInput
from worker.loras.origin import HubFile, LoraSource
from worker.tasks.picture import PictureAsked
from worker.tasks.request import Request, parse
from worlds.adapters import lora_bytes
from worlds.published import EDIT, IMAGE, offering

URL = "https://a.test/style.safetensors?X-Signature=secret"
NAMED = {"LORAS": "style=org/style/file.safetensors,pixel=org/pixel"}
STYLE = LoraSource("style", HubFile("org/style", "file.safetensors"), 1.0, is_callers=False)
FROM_HUB = LoraSource("org/name", HubFile("org/name"), 1.0, is_callers=True)
FROM_URL = LoraSource("style.safetensors", URL, 1.0, is_callers=True)


def chosen(given: dict[str, Any], **environ: str) -> tuple[LoraSource, ...]:
    """Return the LoRAs of an input that has a prompt besides."""
    request = parse({"prompt": "a cat", **given}, (IMAGE,), settings.read({**NAMED, **environ}))
    assert isinstance(request, Request)
    assert isinstance(request.asked, PictureAsked)
    assert request.warnings == ()
    return request.asked.loras


def faults(given: dict[str, Any], **environ: str) -> dict[str, str]:
    with pytest.raises(InvalidInput) as refused:
        chosen(given, **environ)
    return {detail.field: detail.message for detail in refused.value.details}


def scaled(source: LoraSource, scale: float) -> LoraSource:
    return LoraSource(source.name, source.place, scale, is_callers=source.is_callers)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"loras": ["style"]}, [STYLE]),
        ({"loras": "style"}, [STYLE]),
        ({"lora": "org/name"}, [FROM_HUB]),
        ({"lora_url": URL}, [FROM_URL]),
        ({"lora_weights": URL, "lora_scale": 0.5}, [scaled(FROM_URL, 0.5)]),
        ({"loras": [{"path": "org/name", "scale": -2}]}, [scaled(FROM_HUB, -2.0)]),
        ({"loras": [{"path": URL, "weight": "0.25"}]}, [scaled(FROM_URL, 0.25)]),
        ({"loras": {"url": URL, "scale": 2}}, [scaled(FROM_URL, 2.0)]),
        ({"loras": [{"name": "style", "scale": 0}]}, [scaled(STYLE, 0.0)]),
        ({"loras": {"style": 0.8, "org/name": 0.6}}, [scaled(STYLE, 0.8), scaled(FROM_HUB, 0.6)]),
        ({"loras": {"style": None}, "lora_scale": 0.3}, [scaled(STYLE, 0.3)]),
        (
            {"loras": ["style", {"path": URL, "scale": 1.5}, "org/name"], "lora_scale": 0.7},
            [scaled(STYLE, 0.7), scaled(FROM_URL, 1.5), scaled(FROM_HUB, 0.7)],
        ),
        ({"loras": None}, []),
        ({}, []),
    ],
)
def test_every_form_means_what_it_says(given: dict[str, Any], found: list[LoraSource]) -> None:
    assert list(chosen(given)) == found


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"loras": []}, "loras", "leave it out for none"),
        ({"loras": ["style"] * 9}, "loras", "1 to 8 (got 9)"),
        ({"loras": 5}, "loras", "must be a string or"),
        ({"loras": [None]}, "loras[0]", "must be a string or"),
        ({"loras": [{}]}, "loras[0]", "one of path, url, name"),
        ({"loras": {"scale": 1}}, "loras", "one of path, url, name"),
        ({"loras": [{"path": "style", "name": "style"}]}, "loras[0]", "only one of path"),
        ({"loras": [{"path": "style", "scale": 1, "weight": 1}]}, "loras[0]", "only one of scale"),
        ({"loras": [{"path": ["x"]}]}, "loras[0]", "path must be a string"),
        ({"loras": [{"url": "style"}]}, "loras[0]", "https URL"),
        ({"loras": [{"name": "org/name"}]}, "loras[0]", "must be a name"),
        ({"loras": ["style", "../x"]}, "loras[1]", "org/repository"),
        ({"loras": ["/etc/passwd"]}, "loras[0]", "org/repository"),
        ({"loras": [{"path": "style", "scale": 2.001}]}, "loras[0]", "-2 to 2"),
        ({"loras": [{"path": "style", "scale": -2.001}]}, "loras[0]", "-2 to 2"),
        ({"loras": [{"path": "style", "scale": True}]}, "loras[0]", "-2 to 2 (got true)"),
        ({"loras": [{"path": "style", "scale": "nan"}]}, "loras[0]", "-2 to 2"),
        ({"loras": [{"path": "style", "scale": float("nan")}]}, "loras[0]", "-2 to 2"),
        ({"loras": {"style": "strong"}}, "loras", "-2 to 2"),
        ({"loras": ["stlye"]}, "loras[0]", "known are style, pixel; did you mean style?"),
        ({"loras": ["style", "style"]}, "loras[1]", "the same as [0]"),
        ({"loras": ["style", {"name": "style", "scale": 2}]}, "loras[1]", "the same as [0]"),
        ({"loras": ["org/a", "org/b", "org/c", "org/d"]}, "loras", "at most 3 (got 4)"),
        ({"lora_scale": 0.5}, "lora_scale", "give loras"),
        ({"lora": {"name": "style", "scale": 1}, "lora_scale": 0.5}, "lora_scale", "no effect"),
        ({"lora": "style", "lora_url": URL}, "lora_url", "differs from lora"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], field: str, words: str) -> None:
    assert words in faults(given)[field]


def test_an_item_has_no_unknown_keys_and_a_name_is_none() -> None:
    given = {"loras": [{"path": "style", "strenght": 1}], "prompt": "x"}
    request = parse(given, (IMAGE,), settings.read(NAMED))
    assert request.warnings[0].startswith("loras.strenght: is not a known field")
    assert faults({"loras": [{"path": "style", "x": 1}]}, STRICT_INPUT="1").keys() == {"loras.x"}
    assert chosen({"loras": {"style": 1}}, STRICT_INPUT="1") == (STYLE,)


@pytest.mark.parametrize(
    ("sources", "accepted"),
    [("names", ["style"]), ("hub", ["org/name"]), ("urls", [URL]), ("hub,urls", ["org/name", URL])],
)
def test_the_operator_says_which_kinds_callers_may_use(sources: str, accepted: list[str]) -> None:
    words = ["style", "org/name", URL]
    for word in words:
        if word in accepted:
            assert chosen({"loras": word}, LORA_SOURCES=sources)
        else:
            assert "(LORA_SOURCES)" in faults({"loras": word}, LORA_SOURCES=sources)["loras[0]"]


def test_the_operator_bounds_their_number() -> None:
    assert "at most 1 (got 2)" in faults({"loras": ["style", "pixel"]}, MAX_LORAS="1")["loras"]
    assert "at most 0 (got 1)" in faults({"loras": ["style"]}, MAX_LORAS="0")["loras"]


def test_a_model_that_takes_none_refuses_them() -> None:
    model = offering(IMAGE, no_loras="this one takes none")
    given = {"prompt": "x", "loras": "style"}
    with pytest.raises(InvalidInput, match="loras: this one takes none"):
        parse(given, (model,), settings.read(NAMED))


def test_an_edit_takes_them_too(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(lora_bytes())
    given = {"prompt": "x", "image": "https://a.test/x.png", "loras": {"mine": 0.5}}
    request = parse(given, (EDIT,), settings.read({"LORA_DIR": str(tmp_path)}))
    assert isinstance(request, Request)
    source = LoraSource("mine", tmp_path / "mine.safetensors", 0.5, is_callers=False)
    assert request.asked.loras == (source,)


def test_a_worker_without_names_says_so() -> None:
    assert faults({"loras": "style"}, LORAS="")["loras[0]"] == (
        "no LoRA is called 'style'; this worker has none by name"
    )


def test_the_kinds_that_callers_may_use_are_listed() -> None:
    assert faults({"loras": "org/name"}, LORA_SOURCES="names,urls")["loras[0]"] == (
        "this worker takes the operator's by name or an https URL (LORA_SOURCES)"
    )
