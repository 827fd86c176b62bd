"""How the fields of a wish are echoed: by which names, and where."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Final

from worker.seam import Wish

_REPLY: Final = "reply"
_TEXT: Final = "text"
_LOG: Final = "log"
_SHOW: Final = "show"

Show = Callable[[Any], Any]


def declare_public(
    reply: str | None = None, *, text: str | None = None, show: Show | None = None, **more: Any
) -> Any:
    """Declare a wish's field that callers see, under its own name unless another is given.

    `reply` is its key in the reply, `text` the one inside the file; "" leaves it out there. `show`
    makes its value plain JSON, and one that is empty is left out. `more` goes to dataclasses.field.
    """
    return dataclasses.field(metadata={_REPLY: reply, _TEXT: text, _SHOW: show}, **more)


def declare_private(*, log: bool = False, **more: Any) -> Any:
    """Declare a wish's field that no caller sees; with `log`, the log line of its job has it."""
    return dataclasses.field(metadata={_REPLY: "", _TEXT: "", _LOG: log}, **more)


def get_names(field: "dataclasses.Field[Any]") -> tuple[str, str]:
    """Return a field's names in the reply and inside the file, "" where it is left out.

    Raises KeyError for a field that was declared otherwise.
    """
    reply, text = field.metadata[_REPLY], field.metadata[_TEXT]
    return field.name if reply is None else reply, field.name if text is None else text


def show_in_reply(wish: Wish) -> dict[str, Any]:
    """Return what a reply echoes of a wish, in the order of its fields."""
    return {
        name: value
        for field in _get_fields(wish)
        if (name := get_names(field)[0])
        and ((value := _show(wish, field)) or field.metadata.get(_SHOW) is None)
    }


def show_in_file(wish: Wish) -> dict[str, str]:
    """Return what a file of the piece records of its wish: what makes the same again."""
    return {
        name: _write(value)
        for field in _get_fields(wish)
        if (name := get_names(field)[1])
        and (value := _show(wish, field)) is not None
        and (value or field.metadata.get(_SHOW) is None)
    }


def show_in_log(wish: Wish) -> dict[str, Any]:
    """Return what the log records of a wish whose piece was made."""
    return {
        field.name: getattr(wish, field.name)
        for field in _get_fields(wish)
        if field.metadata.get(_LOG)
    }


def _get_fields(wish: Any) -> "tuple[dataclasses.Field[Any], ...]":
    return dataclasses.fields(wish)


def _show(wish: Any, field: "dataclasses.Field[Any]") -> Any:
    show, value = field.metadata.get(_SHOW), getattr(wish, field.name)
    return value if show is None else show(value)


def _write(value: Any) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def show_given(value: Any) -> Any:
    """Show a value as it is, where there is one."""
    return value
