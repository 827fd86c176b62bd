"""Every code block of README and docs is run by `make first-hour`, checked, or says why not."""

import pytest

from tools.blocks import REASONS, Block, list_blocks
from tools.first_hour import read_pages

PAGES = read_pages()


@pytest.mark.parametrize("block", PAGES, ids=lambda block: block.place)
def test_a_block_is_run_checked_shown_or_says_why_not(block: Block) -> None:
    assert block.choose_use()


def test_every_reason_is_used() -> None:
    assert {block.reason for block in PAGES} - {None} == set(REASONS)


def test_a_mark_exempts_the_next_block_only() -> None:
    page = "<!-- not run: needs Docker -->\n```sh\na\n```\n\ntext\n\n```sh\nb\n```\n\n    c\n"
    found = list_blocks("p.md", page)
    assert [(b.place, b.language, b.text, b.reason) for b in found] == [
        ("p.md:2", "sh", "a\n", "needs Docker"),
        ("p.md:8", "sh", "b\n", None),
        ("p.md:12", "", "c\n", None),
    ]
    assert [block.choose_use() for block in found[:2]] == ["skip", "run"]


@pytest.mark.parametrize(
    ("language", "text", "use"),
    [
        ("sh", "make test\n", "run"),
        ("sh", 'curl -s "https://api.runpod.ai/v2/$ENDPOINT_ID/run"\n', "call"),
        ("sh", "npm install runpod-sdk\n", "call"),
        ("python", "import runpod\n", "call"),
        ("js", 'import runpod from "runpod-sdk";\n', "call"),
        ("json", '{"a": 1}\n[2]\n', "check"),
        ("text", "a -> b\n", "show"),
    ],
)
def test_the_language_says_what_is_done(language: str, text: str, use: str) -> None:
    assert Block("p.md", 1, language, text, None).choose_use() == use


@pytest.mark.parametrize(
    ("language", "text", "reason", "fault"),
    [
        ("", "make test\n", None, "no language is neither run nor marked"),
        ("powershell", "dir\n", None, "powershell is neither run nor marked"),
        ("sh", "make test\n", "too slow", "unknown reason 'too slow'"),
        ("json", '{"a": 1} {"b": ...}\n', None, "p.md:7: Expecting value"),
    ],
)
def test_a_block_that_nothing_vouches_for_is_refused(
    language: str, text: str, reason: str | None, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        Block("p.md", 7, language, text, reason).choose_use()
