"""README says what the code does: its tables, examples, commands and links are held to it."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from worlds.published import EDIT, IMAGE

from worker import settings
from worker.edge import fields
from worker.edge.reply import failure, success
from worker.edge.request import Request, parse
from worker.errors import Detail, InvalidInput
from worker.media.deliver import Encoded

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(table: str) -> list[list[str]]:
    """Return the cells of a README table, without its header."""
    body = README.partition(f"<!-- {table} -->\n")[2].partition("<!-- end -->")[0]
    lines = body.strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_table_is_what_the_code_gives_now() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "builder" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    assert readme.filled(README) == README, "run: python builder/readme.py"


def test_the_input_table_has_every_field_and_alias() -> None:
    table = {words(row[0])[0]: words(row[1]) for row in rows("input")}
    assert {alias for name, others in table.items() for alias in (name, *others)} == set(
        fields.NAMES
    )
    for name, others in table.items():
        assert all(fields.NAMES[alias] == name for alias in others)


def test_the_settings_table_has_every_variable_with_its_default() -> None:
    table = {tuple(words(row[0])): row[2] for row in rows("settings")}
    assert set(table) == set(settings.variables())
    defaults = settings.read({})
    for names, default in table.items():
        value = getattr(defaults, names[0].lower())
        if isinstance(value, bool):
            assert default == f"`{str(value).lower()}`"
        elif isinstance(value, int | float):
            assert default in (f"`{value}`", f"`{value // 1_000_000} MB`")


def test_the_examples_of_the_errors_section_are_real() -> None:
    message = "must be at least 64 (got 3)"
    error = InvalidInput(f"width: {message}", details=[Detail("width", message)])
    shown = next(json.loads(block) for block in blocks("json") if '"error"' in block)
    assert shown == failure(error)


def test_the_reply_has_the_keys_that_are_shown() -> None:
    shown = next(json.loads(block) for block in blocks("json") if '"images"' in block)
    request = parse(
        {"prompt": "a hat on the cat", "image": "https://example.com/cat.png", "width": 1023},
        (IMAGE, EDIT),
        settings.read({}),
    )
    assert isinstance(request, Request)
    picture = Encoded(b"", "image/png", 1008, 1024, 42)
    entry = {
        "base64": "",
        "mime_type": picture.mime_type,
        "width": picture.width,
        "height": picture.height,
        "seed": picture.seed,
    }
    reply = success(
        request,
        [entry],
        lightning_enabled=True,
        timings_ms={},
        peak_vram_mb=0,
        adjusted={"width": (1023, 1008)},
    )

    def keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: keys(item) for key, item in value.items()}
        return [keys(item) for item in value] if isinstance(value, list) else type(value)

    assert keys(shown) == keys(reply)


def test_the_call_that_is_shown_is_a_right_job() -> None:
    (call,) = re.findall(r"-d '(\{.*\})'", README)
    assert isinstance(parse(json.loads(call)["input"], (IMAGE,), settings.read({})), Request)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_a_link_leads_to_a_file(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(#([^)]+)\)", README))))
def test_a_link_inside_leads_to_a_heading(target: str) -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    assert target in {heading.lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b(?:bench|tests)/[\w/.]+\w", README))))
def test_a_file_that_is_named_exists(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"^ {4}make (\w+)", README, re.MULTILINE)))
)
def test_a_command_that_is_named_exists(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_readme_is_plain_text() -> None:
    assert README.isascii()
    assert "badge" not in README
