"""A long text cut into passages that are spoken one after the other: at sentences where it can."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

# Characters: a model that speaks is worst at texts much longer or shorter than its training's, and
# other servers of it cut at about the same length.
MOST: Final = 280
LEAST: Final = 20

PARAGRAPH: Final = "\n\n"
BLANK_LINE: Final = re.compile(r"\s*\n[^\S\n]*\n\s*")
# Where a sentence ends: after its marks, what closes a quotation, and tags that belong to it. A
# full stop after one capital or a number is none: "J. Smith", "3. Eggs".
SENTENCE: Final = re.compile(
    r"(?<![.?!…])(?:(?<!\b[A-Z])(?<!\d)[.]|[?!…])[.?!…]*[\"'”’»)\]]*(?:\s*<\w+>)*\s+"  # noqa: RUF001 - closing marks
    r"|[。？！]+[」』”’）]*\s*"  # noqa: RUF001 - the marks of Chinese and Japanese
)
CLAUSE: Final = re.compile(r"[,;:、，；]+\s*")  # noqa: RUF001 - the marks of Chinese and Japanese
SPACE: Final = re.compile(r"\s+")
# What is a pause, or nothing, to whoever reads aloud; `*`, `#`, `@`, `%` and `&` are words.
PAUSING: Final = r" \n.,;:!?…\-–—_=~|()\[\]{}\"'`«»„“”‘’、，；：。？！"  # noqa: RUF001 - marks of many languages
# So many of them in a row say all that there is to say. A model learned no more of them, and writes
# what nobody said where there are (the embedded one from 11 commas on).
MOST_PAUSING: Final = 8
RUN: Final = re.compile(rf"[{PAUSING}]{{{MOST_PAUSING + 1},}}")


def clean(text: str) -> str:
    """Return a text with one space between words, and two line ends where a line was blank.

    Of more than 8 pausing marks and spaces in a row it has 8 at most: the first and the last, or
    the first and a blank line where one is among them.
    """
    paragraphs = BLANK_LINE.split(text.strip())
    return RUN.sub(_limit_run, "\n\n".join(" ".join(one.split()) for one in paragraphs))


def _limit_run(run: re.Match[str]) -> str:
    end = PARAGRAPH if PARAGRAPH in run[0] else run[0][-1]
    first = run[0][: MOST_PAUSING - len(end)]
    return (first.rstrip() if end.isspace() else first) + end


def split(text: str, most: int = MOST) -> tuple[str, ...]:
    """Cut a clean text into passages; joined they are the text again.

    Each has at most so many characters but for the space at its end, and none has less than 20 (a
    quarter of the most, if that is less) unless it is the only one. They end at a blank line, a
    sentence, a comma, a word, or in one, in this order of preference.
    """
    pieces: list[str] = []
    for paragraph in re.split(r"(?<=\n\n)", text):
        pieces += _fit(paragraph, (SENTENCE, CLAUSE, SPACE), most)
    return tuple(_join_short(pieces, most))


def _measure(piece: str) -> int:
    return len(piece.strip())


def _fit(piece: str, ends: Sequence[re.Pattern[str]], most: int) -> list[str]:
    """Cut a piece that is too long at the first kind of end, and what is still too long further."""
    if _measure(piece) <= most:
        return [piece]
    if not ends:
        return [piece[start : start + most] for start in range(0, len(piece), most)]
    parts = (part for cut in _divide(piece, ends[0]) for part in _fit(cut, ends[1:], most))
    return _pack(parts, lambda joined: _measure(joined) <= most)


def _divide(piece: str, end: re.Pattern[str]) -> Iterator[str]:
    start = 0
    for match in end.finditer(piece):
        yield piece[start : match.end()]
        start = match.end()
    if start < len(piece):
        yield piece[start:]


def _pack(parts: Iterable[str], may_join: Callable[[str], bool]) -> list[str]:
    packed: list[str] = []
    for part in parts:
        if packed and may_join(packed[-1] + part):
            packed[-1] += part
        else:
            packed.append(part)
    return packed


def _join_short(pieces: list[str], most: int) -> list[str]:
    """Join each short piece to a neighbour; where that is too long, cut both anew in the middle."""
    joined, least = list(pieces), min(LEAST, most // 4)
    while len(joined) > 1:
        short = next((i for i, piece in enumerate(joined) if _measure(piece) < least), None)
        if short is None:
            break
        beside = [i for i in (short - 1, short + 1) if 0 <= i < len(joined)]
        other = min(beside, key=lambda i: _measure(joined[i]))
        first = min(short, other)
        both = joined[first] + joined[first + 1]
        joined[first : first + 2] = [both] if _measure(both) <= most else _split_in_half(both)
    return joined


def _split_in_half(piece: str) -> list[str]:
    """Cut a piece at the space nearest to its middle, or there, with enough on both sides."""
    middle = len(piece) // 2
    spaces = [match.end() for match in SPACE.finditer(piece)]
    near = [end for end in spaces if abs(end - middle) < middle // 2]
    place = min(near, key=lambda end: abs(end - middle), default=middle)
    return [piece[:place], piece[place:]]
