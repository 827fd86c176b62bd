"""README and docs/ say what the code does: tables, examples, commands and links match it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools import readme
from worker import settings
from worker.edge import reply as replies
from worker.edge.reply import format_answer, make_failure, make_success
from worker.errors import Detail, InvalidInput
from worker.families.catalogue import CATALOGUE
from worker.tasks import registry
from worker.tasks.request import Request, parse
from worlds.published import EDIT, IMAGE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}


def rows(table: str) -> list[list[str]]:
    """Return the cells of a table of the reference, without its header."""
    body = REFERENCE.partition(f"<!-- {table} -->\n")[2].partition("<!-- end -->")[0]
    lines = body.strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", REFERENCE, re.DOTALL)


@pytest.mark.parametrize("page", readme.PAGES)
def test_every_table_is_what_the_code_gives(page: str) -> None:
    assert readme.fill(page, readme.PAGES[page]) == PAGES[page], "run: make readme"


def test_the_hub_s_listing_names_every_model() -> None:
    text = readme.HUB.read_text(encoding="utf-8")
    assert readme.hub_listing() == text, "run: make readme"
    (row,) = (row for row in json.loads(text)["config"]["env"] if row["key"] == "MODEL")
    named = row["input"]["description"].partition(": ")[2].split(", ")
    shipped = {name for names in CATALOGUE.groups.values() for name in names}
    assert set(named[:-1]) == set(CATALOGUE.names) - shipped


def test_readme_is_read_in_a_few_minutes() -> None:
    """The tables live in docs/; what README promises stands there with its command."""
    assert 6_000 <= len(README.encode()) <= 9_000


def test_the_input_table_has_every_field_and_alias() -> None:
    table: dict[str, list[str]] = {}
    for row in rows("input"):  # a field that differs between tasks has a row for each kind
        table.setdefault(words(row[0])[0], []).extend(words(row[1]))
    assert {alias for name, others in table.items() for alias in (name, *others)} == set(
        registry.map_words()
    )
    for name, others in table.items():
        assert all(registry.map_words()[alias] == name for alias in others)


def test_the_settings_table_has_every_variable_with_its_default() -> None:
    table = {tuple(words(row[0])): row[2] for row in rows("settings")}
    assert set(table) == set(settings.list_variables())
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
    assert shown == format_answer(make_failure(error))


def test_the_reply_has_the_keys_that_are_shown() -> None:
    shown = next(json.loads(block) for block in blocks("json") if '"images"' in block)
    request = parse(
        {"prompt": "a hat on the cat", "image": "https://example.com/cat.png", "width": 1023},
        (IMAGE, EDIT),
        settings.read({}),
    )
    assert isinstance(request, Request)
    entry = {"base64": "", "mime_type": "image/png", "width": 1008, "height": 1024, "seed": 42}
    (wish,) = request.make_wishes(request.asked.draft)
    reply = make_success(
        request.task.key,
        [entry],
        wish,
        request.model,
        timings_ms=replies.sum_timings({}, request.task.timings),
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


def links() -> list[tuple[str, str]]:
    """Return every link of every page that leads into the repository."""
    return [
        (page, target)
        for page, text in PAGES.items()
        for target in sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", text)))
    ]


@pytest.mark.parametrize(("page", "target"), links())
def test_a_link_leads_to_a_file_and_a_heading(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert anchor in slugs


FOLDERS = "bench|builder|checkpoints|docs|src|tests|tools|training|worlds"
NAMED = sorted(
    {
        name
        for text in PAGES.values()
        for name in re.findall(rf"(?<![\w/.:-])(?:\./)?((?:{FOLDERS})/[\w/.-]+\w)", text)
    }
)


@pytest.mark.parametrize("name", NAMED)
def test_a_file_that_is_named_exists(name: str) -> None:
    assert list(ROOT.glob(name.replace("NAME", "*")))


TARGETS = sorted(
    {
        t
        for text in PAGES.values()
        for t in re.findall(r"(?:`|^)make ([a-z][\w-]+)", text, re.MULTILINE)
    }
)


@pytest.mark.parametrize("target", TARGETS)
def test_a_command_that_is_named_exists(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_plain_text(page: str) -> None:
    assert PAGES[page].isascii()
    assert "badge" not in PAGES[page]


def test_a_card_has_a_row_per_way_of_running_and_what_failed_has_one_too() -> None:
    plain = {
        "median_s": 2.0,
        "step_ms": 410.4,
        "of_floor": 1.32,
        "phases_ms": {"text": 50.0, "denoise": 1641.6, "decode": 100.0, "png": 20.0},
        "peaks_gb": {"text": 0.1, "denoise": 0.84},
        "computed_gb": {"denoise": 0.87},
    }
    both = plain | {"median_s": 1.0, "difference": 0.0052, "compiled": False}
    sides = {"plain": plain, "both": both, "stock": {"error": "OutOfMemoryError: 2 GiB"}}
    shown = readme.show_card(
        {"machine": {"device": "A card", "torch": "2.11"}, "cases": {"bf16/image": sides}}
    )
    lines = shown.splitlines()
    assert lines[0] == "A card, torch 2.11:"
    assert "| `bf16/image` | plain | 2.00 | 1.00 | 410 | 1.32 | 50 |  | 1642 |" in lines[4]
    assert lines[4].endswith("| 0.84 | 0.87 |  |")
    assert "| both, not compiled | 1.00 | 2.00 |" in lines[5]
    assert lines[5].endswith("| 5.2e-03 |")
    assert "| stock | OutOfMemoryError |" in lines[6]
    assert {line.count("|") for line in lines[2:]} == {15}
