"""Where a wish's fields are seen: in the reply, inside the file, in the log, or nowhere."""

from dataclasses import make_dataclass
from typing import Any

import pytest

from worker.edge import echo
from worker.edge.echo import declare_private, declare_public
from worker.tasks.picture import warm_up
from worlds.published import IMAGE

Declared: Any = make_dataclass(
    "Declared",
    [
        ("plain", Any, declare_public(default=0)),
        ("renamed", Any, declare_public("reply_name", text="file_name", default=1)),
        ("reply_alone", Any, declare_public(text="", default=2)),
        ("file_alone", Any, declare_public("", default=3)),
        ("doubled", Any, declare_public(show=lambda value: value * 2, default=4)),
        ("secret", Any, declare_private(default=5)),
        ("logged", Any, declare_private(log=True, default=6)),
    ],
)


def test_each_field_is_seen_where_it_was_declared() -> None:
    wish = Declared()
    reply = {"plain": 0, "reply_name": 1, "reply_alone": 2, "doubled": 8}
    assert list(echo.show_in_reply(wish).items()) == list(reply.items())
    inside = {"plain": "0", "file_name": "1", "file_alone": "3", "doubled": "8"}
    assert list(echo.show_in_file(wish).items()) == list(inside.items())
    assert echo.show_in_log(wish) == {"logged": 6}


def test_a_picture_is_recorded_by_what_makes_it_and_logged_by_its_size() -> None:
    wish = warm_up(IMAGE)
    recorded = ["prompt", "seed", "steps", "true_cfg_scale", "lightning"]
    assert list(echo.show_in_file(wish)) == recorded
    assert echo.show_in_log(wish) == {"width": wish.width, "height": wish.height}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (False, "false"),
        (True, "true"),
        (1.5, "1.5"),
        ("Aa", "Aa"),
        ("", ""),
        (["a", 1], '["a", 1]'),
        ({"a": True}, '{"a": true}'),
    ],
    ids=str,
)
def test_a_file_has_text_that_can_be_read_back(value: Any, text: str) -> None:
    wish = Declared(plain=value)
    assert echo.show_in_file(wish)["plain"] == text
    assert echo.show_in_reply(wish)["plain"] == value


def test_what_was_not_given_is_null_in_the_reply_and_not_in_the_file() -> None:
    wish = Declared(plain=None)
    assert echo.show_in_reply(wish)["plain"] is None
    assert "plain" not in echo.show_in_file(wish)


@pytest.mark.parametrize("empty", [0, "", [], {}], ids=str)
def test_a_field_with_a_form_of_its_own_is_left_out_where_it_is_empty(empty: Any) -> None:
    shown: Any = make_dataclass("Shown", [("one", Any, declare_public(show=echo.show_given))])
    for seen in (echo.show_in_reply, echo.show_in_file):
        assert seen(shown(empty)) == {}
        assert seen(shown("x")) == {"one": "x"}
