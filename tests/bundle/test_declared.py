"""What the small files of a model declare is built or refused, and the refusal names it."""

from typing import Any

import pytest

from worker.bundle import declared
from worker.errors import WeightsUnavailable

CLASSES = {"scheduler": ("Euler", "Heun"), "encoder": ("Bert",)}
INDEX: dict[str, Any] = {
    "_class_name": "Toy",
    "scheduler": ["diffusers", "Heun"],
    "encoder": ["transformers", "Bert"],
}


class Made:
    """A class of a library."""

    def __init__(self, side: int, is_gated: bool = False) -> None:
        self.side, self.is_gated = side, is_gated


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000])
def test_broken_json_is_named(data: bytes) -> None:
    with pytest.raises(WeightsUnavailable, match=r"a/b\.json is broken JSON"):
        declared.read_object("a/b.json", data)


@pytest.mark.parametrize("data", [b"[]", b"1", b'"{}"', b"null"])
def test_what_is_no_object_is_named(data: bytes) -> None:
    with pytest.raises(WeightsUnavailable, match=r"a/b\.json is not a JSON object"):
        declared.read_object("a/b.json", data)
    assert declared.read_json("a/b.json", data) != {}
    assert declared.read_object("a/b.json", b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"scheduler": "Euler"}, "names nothing's Euler for scheduler"),
        ({"scheduler": ["diffusers", "Euler", 1]}, "names nothing's nothing for scheduler"),
        ({"scheduler": ["diffusers", "Ddim"]}, "opens Euler or Heun alone"),
        ({"scheduler": ["own.code", "Euler"]}, "names own.code's Euler for scheduler"),
        ({"scheduler": [None, None]}, "names no scheduler, which a Toy needs"),
        ({"scheduler": None}, "names no scheduler, which a Toy needs"),
        ({"encoder": ["transformers", "Gpt"]}, "names transformers's Gpt for encoder"),
        ({"vae": ["own.code", "Vae"]}, None),
        ({"_class_name": "Other"}, "is of a Other, not of a Toy"),
        ({"_class_name": None}, "is of a nothing, not of a Toy"),
        ({"_class_name": ""}, "is of a nothing, not of a Toy"),
    ],
)
def test_an_index_names_only_what_is_opened(changes: dict[str, Any], reason: str | None) -> None:
    index = {**INDEX, **changes}
    if reason is None:
        declared.check_index(index, "Toy", CLASSES)
        return
    with pytest.raises(WeightsUnavailable, match=reason):
        declared.check_index(index, "Toy", CLASSES)


def test_a_part_that_the_index_leaves_out_hides_none_behind_it() -> None:
    index = {name: value for name, value in INDEX.items() if name != "scheduler"}
    declared.check_index(index, "Toy", CLASSES)
    with pytest.raises(WeightsUnavailable, match="for encoder"):
        declared.check_index({**index, "encoder": ["diffusers", "Gpt"]}, "Toy", CLASSES)


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({}, None),
        ({"architectures": ["Bert"]}, None),
        ({"architectures": [], "_class_name": "Bert"}, None),
        ({"architectures": ["Bert", "Gpt"]}, "Gpt"),
        ({"architectures": "Gpt"}, "Gpt"),
        ({"architectures": "Bert"}, None),
        ({"_class_name": "Gpt"}, "Gpt"),
        ({"architectures": ["Bert"], "_class_name": "Gpt"}, None),
        ({"architectures": [3]}, "nothing"),
    ],
)
def test_a_configuration_names_only_what_is_opened(
    config: dict[str, Any], wrong: str | None
) -> None:
    if wrong is None:
        declared.check_class("x.json", config, ("Bert", "Euler"))
        return
    message = f"x.json is of a {wrong}; this worker opens Bert or Euler alone"
    with pytest.raises(WeightsUnavailable, match=message):
        declared.check_class("x.json", config, ("Bert", "Euler"))


def test_a_type_is_the_one_that_is_built_where_it_is_named() -> None:
    declared.check_type("x.json", {}, "bert")
    declared.check_type("x.json", {"model_type": "bert"}, "bert")
    for value, shown in (("gpt", "gpt"), (None, "nothing")):
        with pytest.raises(WeightsUnavailable, match=f"is of the type {shown}, not bert"):
            declared.check_type("x.json", {"model_type": value}, "bert")


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"side": 4, "is_gated": True, "other": False, "number": 1, "_private": True}, None),
        ({"word": "true", "listed": [True]}, None),
        ({"is_gated": True, "newer": True}, "newer"),
    ],
)
def test_a_switch_that_the_library_does_not_know_is_refused(
    config: dict[str, Any], refused: str | None
) -> None:
    if refused is None:
        declared.check_flags("x.json", config, Made)
        return
    with pytest.raises(WeightsUnavailable, match=f"x.json: {refused} is set"):
        declared.check_flags("x.json", config, Made)


def test_no_name_of_a_publisher_fills_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "SHOWN_CHARACTERS", 5)
    with pytest.raises(WeightsUnavailable, match="is of a abcde, not"):
        declared.check_index({"_class_name": "abcdef"}, "Toy", CLASSES)
    with pytest.raises(WeightsUnavailable, match=r"x\.json: fghij is set"):
        declared.check_flags("x.json", {"fghijk": True}, Made)
