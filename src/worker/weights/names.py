"""File names for repositories and revisions: no two of them share one."""

import hashlib
from typing import Final
from urllib.parse import quote

MAIN: Final = "main"
# File systems allow 255 bytes; a part's name adds its owner, a bundle's name its precision.
LONGEST_FILE_NAME: Final = 120
DIGEST_DIGITS: Final = 16


def make_file_name(repository: str, revision: str = MAIN) -> str:
    """Return "org--name", with "@revision" unless that is main.

    The hub allows no "--" in names and ignores their case. Other characters of a revision are
    percent-encoded (RFC 3986), and the end of a long name becomes a digest.
    """
    name = quote(repository.lower().replace("/", "--"))
    if revision != MAIN:
        name += f"@{quote(revision, safe='')}"
    if len(name) <= LONGEST_FILE_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:DIGEST_DIGITS]
    return f"{name[: LONGEST_FILE_NAME - DIGEST_DIGITS - 1]}~{digest}"


def make_commit_name(repository: str, commit: str) -> str:
    """Return the name of the folder of what is downloaded of a commit."""
    return f"{repository.replace('/', '--')}-{commit}"


def is_same_repository(repository: str, other: str) -> bool:
    """Return whether two names mean the same repository: the hub ignores their case."""
    return repository.casefold() == other.casefold()
