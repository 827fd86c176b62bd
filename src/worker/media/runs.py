"""Runs of tiny pieces that mean nothing: one pattern skips thousands of them at a time.

A file of 20 MB has up to ten million, which take seconds one by one. A possessive quantifier would
skip them all at once, but Python before 3.11.5 matches those wrongly (cpython issue 106052), and
Debian 12 has 3.11.2; a greedy one takes 300 bytes of memory per piece, so it is bounded.
"""

import re
from typing import Final

STEP: Final = 10_000


def compile_run(piece: bytes, step: int = STEP) -> re.Pattern[bytes]:
    """Compile the pattern of a run of up to `step` pieces, in which a dot is any byte."""
    return re.compile(b"(?:%b){1,%d}" % (piece, step), re.DOTALL)


def skip_run(run: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Return where the run that begins at `at` ends, which is `at` where none begins."""
    while match := run.match(data, at):
        at = match.end()
    return at
