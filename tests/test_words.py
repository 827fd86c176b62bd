"""The words of docs/contributing.md: what is to be written otherwise does not occur in any form."""

import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "worker"
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
# Where the words themselves are listed. The changelog is not read: it quotes older versions.
TABLE_PAGE = "docs/contributing.md"
TABLE = re.compile(r"^\| instead of \| write \|\n(?:\|.*\n)+", re.MULTILINE)
# file or page -> what may stand there, because it is not ours to choose
ALLOWED = {
    "bundle/repair.py": r'"mended"',  # a folder on volumes that are in use
    "docs/troubleshooting.md": r"`mended/`",  # the same
    "weights/sequential.py": r"\.tell\(\)",  # a file's own method
}
# "4 bytes a pixel", "once a second": a row of the table gives two of these as examples
UNITS = (
    r"(?:second|minute|hour|job|picture|file|pixel|channel|volume|model|module|weight|event|step"
    r"|request|row|line|shard|block|tensor|layer|start|component|worker)"
)
NUMBERS = r"(?:\d[\d.,]*|one|two|three|four|five|six|seven|eight|nine|ten|twenty)"
THINGS = r"(?:bytes?|bits?|float\d+|[kKMG]B|lines?|rows?|files?|folders?|sentences?|updates?|times)"
FOR_EACH = rf"\b(?:(?:{NUMBERS}|an?) {THINGS}|once|twice) an? {UNITS}\b"


def forms(words: str) -> str:
    """Return a pattern for a word or phrase in its forms; in names, _ joins its words."""
    return r"\b" + r"[ _-]".join(map(re.escape, words.split())) + r"(?:s|ed|ing)?\b"


def rows() -> list[str]:
    table = TABLE.search((ROOT / TABLE_PAGE).read_text(encoding="utf-8"))
    assert table is not None
    return [line.split("|")[1].strip() for line in table[0].splitlines()[2:]]


def refused() -> list[str]:
    """Return the words of the table's rows without a bracket; those with one depend on meaning."""
    return [word for row in rows() if "(" not in row for word in row.split(", ")]


REFUSED = re.compile("|".join([*map(forms, refused()), FOR_EACH]), re.IGNORECASE)


def words_of(source: str) -> Iterator[str]:
    """Yield what Python code says: adjacent comments or strings as one text, and each name."""
    texts: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind in {"COMMENT", "STRING", "FSTRING_MIDDLE"}:
            texts.append(token.string.strip("#\"' "))
        elif kind not in {"NL", "NEWLINE", "INDENT", "DEDENT", "FSTRING_START", "FSTRING_END"}:
            yield " ".join(texts)
            texts = []
            if kind == "NAME":
                yield split(token.string)
    yield " ".join(texts)


def split(name: str) -> str:
    """Return the words of a name in snake_case or CamelCase."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_+", " ", name).strip()


def find(texts: Iterable[str]) -> list[str]:
    """Return every refused word, with the words around it."""
    found = []
    for text in texts:
        line = " ".join(re.sub(r"[_#]", " ", text).split())
        matches = REFUSED.finditer(line)
        found += [line[max(0, match.start() - 30) : match.end() + 30] for match in matches]
    return found


def read(path: Path, name: str) -> str:
    """Return a file's text without the table and without what is allowed in it."""
    text = TABLE.sub("", path.read_text(encoding="utf-8"))
    return re.sub(ALLOWED[name], "None", text) if name in ALLOWED else text


@pytest.mark.parametrize("name", FILES)
def test_names_comments_and_messages_use_the_words_of_the_table(name: str) -> None:
    assert find(words_of(read(SOURCE / name, name))) == []


@pytest.mark.parametrize("name", PAGES)
def test_pages_use_the_words_of_the_table(name: str) -> None:
    assert find([read(ROOT / name, name)]) == []


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_occurs(name: str) -> None:
    path = ROOT / name if name in PAGES else SOURCE / name
    assert re.search(ALLOWED[name], path.read_text(encoding="utf-8"))


def test_a_word_is_found_wherever_it_is_written_and_in_every_form() -> None:
    assert {"tell", "told", "held", "wanted", "mend", "set aside", "shall"} <= set(refused())
    for source in (
        "told = 1",
        "def tell_apart(): ...",
        "class StrangerError(Exception): ...",
        "# it was set\n# aside\n",
        '"""Mended\n    in place."""',
        'raise ValueError("this has been set "\n    "aside")',
        'f"{name} held"',
        "x = box.held",
        "FOR_EVER = 1",
    ):
        assert find(words_of(source + "\n")), source
    assert not find(
        words_of("# shallow, withheld, stellar, for every one, amended, a set, aside\n")
    )


def test_per_is_not_written_as_an_article() -> None:
    (examples,) = (row.partition(" (")[0] for row in rows() if row.endswith("(for each)"))
    for example in (*examples.split(", "), "once a second", "half a byte a weight"):
        assert find([example])
    assert not find(
        ["4 bytes per pixel, a file of a model, two in a row, the bytes that a model takes"]
    )
