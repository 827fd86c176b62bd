"""Where a LoRA comes from, by the word that a caller or the operator has for it."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal
from urllib.parse import urlsplit

from worker.setting_values import HUB_FILE, LORA_NAME

LONGEST_WORD: Final = 500  # of a name, or of a file on the hub, in characters
LONGEST_URL: Final = 8190  # what common servers accept as a request line
URL_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{0,31}://", re.IGNORECASE)
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
SHOWN: Final = re.compile(r"[\w.-]{1,100}", re.ASCII)


@dataclass(frozen=True, slots=True)
class LoraWord:
    """One LoRA as a caller wrote it; `scale` is None where none was given."""

    kind: Literal["names", "hub", "urls"]
    text: str
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a hub repository: None for the only one that it has, and for the main branch."""

    repository: str
    path: str | None = None
    revision: str | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether the revision is a commit, which never moves."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True, slots=True)
class LoraSource:
    """One LoRA to bring here: a file in LORA_DIR, one of the hub, or a URL.

    `name` is what replies call it. `is_callers` says that the caller chose the place, rather than
    the operator.
    """

    name: str
    place: Path | HubFile | str
    scale: float
    is_callers: bool


def read_word(text: str, scale: float | None = None) -> LoraWord:
    """Read a caller's word for a LoRA: a URL, org/repository[/file][@revision], or a name.

    Raises ValueError with a message for the caller.
    """
    text = text.strip()
    if not text:
        raise ValueError("is empty")
    if URL_SCHEME.match(text):
        return LoraWord("urls", check_scheme(text), scale)
    if len(text) > LONGEST_WORD:
        raise ValueError(f"must have at most {LONGEST_WORD} characters")
    if "/" in text or "\\" in text:
        read_hub_file(text)
        return LoraWord("hub", text, scale)
    return LoraWord("names", check_name(text), scale)


def check_scheme(text: str) -> str:
    """Return a URL; raises ValueError for another scheme, and for one that is too long."""
    if not text.lower().startswith(("https://", "http://")) or len(text) > LONGEST_URL:
        raise ValueError(f"must be an https URL of at most {LONGEST_URL} characters")
    return text


def check_name(text: str) -> str:
    """Return a name; raises ValueError for what can be none."""
    if not LORA_NAME.fullmatch(text):
        raise ValueError(
            "must be a name of letters, digits, - _ and ., org/repository/file, or an https URL"
        )
    return text


def read_hub_file(text: str) -> HubFile:
    """Read "org/repository[/file][@revision]"; raises ValueError with a message for the caller."""
    match = HUB_FILE.fullmatch(text)
    if match is None or not text.isprintable():
        raise ValueError("must be org/repository[/file.safetensors][@revision]")
    return HubFile(match["repository"], match["path"], match["revision"])


def name_url(url: str) -> str:
    """Return what a reply calls a LoRA of a URL: its file's name, and never its query."""
    try:
        name = PurePosixPath(urlsplit(url).path).name
    except ValueError:
        name = ""
    return name if SHOWN.fullmatch(name) else "url"
