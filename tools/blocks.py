"""The code blocks of a page: what each is, and whether it is run, checked or only shown.

`sh` is run in the project's folder; what calls RunPod's API, in whatever language, or installs what
that takes, as a caller of the worker on loopback; `json` must be JSON; `text` is shown.
`<!-- not run: REASON -->` in the line before a block exempts it.
"""

import json
import re
from dataclasses import dataclass
from typing import Final, Literal

from markdown_it import MarkdownIt

MARK: Final = re.compile(r"<!-- not run: (.+?) -->\s*")
REASONS: Final = (
    "needs Docker",
    "needs the image, where make image-check runs it",
    "needs Windows",
    "needs a hub with the weights",
    "names a picture that is an example",
)
CALL: Final = re.compile(r"https://api\.runpod\.ai/|^(?:npm|pip) install ", re.MULTILINE)
CALLERS: Final = {"python": "py", "js": "mjs"}

Use = Literal["run", "call", "check", "show", "skip"]


@dataclass(frozen=True, slots=True)
class Block:
    """A code block, the line of its page where it starts, and the reason of its mark."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        """Where it stands, as editors open it."""
        return f"{self.page}:{self.line}"

    def choose_use(self) -> Use:
        """Return what is done with it; raises ValueError if nothing says so, or if JSON is not."""
        if self.reason is not None:
            if self.reason not in REASONS:
                raise ValueError(f"{self.place}: unknown reason {self.reason!r}: {REASONS}")
            return "skip"
        if self.language == "json":
            check_json(self)
            return "check"
        if self.language == "sh":
            return "call" if CALL.search(self.text) else "run"
        if self.language in CALLERS:
            return "call"
        if self.language == "text":
            return "show"
        raise ValueError(
            f"{self.place}: {self.language or 'no language'} is neither run nor marked"
        )


def check_json(block: Block) -> None:
    """Check that a block is one JSON value or several; raises ValueError."""
    decoder, text = json.JSONDecoder(), block.text.strip()
    while text:
        try:
            _, end = decoder.raw_decode(text)
        except ValueError as error:
            raise ValueError(f"{block.place}: {error}") from None
        text = text[end:].lstrip()


def list_blocks(page: str, text: str) -> list[Block]:
    """Return the code blocks of a page of Markdown, fenced or indented, in order."""
    found, mark = [], None
    for token in MarkdownIt().parse(text):
        match = MARK.fullmatch(token.content) if token.type == "html_block" else None
        if token.type in {"fence", "code_block"}:
            line = (token.map or [0])[0] + 1
            found.append(Block(page, line, token.info.strip(), token.content, mark))
        mark = match[1] if match else None
    return found
