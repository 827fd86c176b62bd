"""Names of files for repositories and revisions: what differs never shares one."""

import hashlib
from typing import Final
from urllib.parse import quote

MAIN: Final = "main"
# File systems allow 255 bytes; a part's name adds its owner, a bundle's its precision.
LONGEST: Final = 120
DIGITS: Final = 16


def file_name(repository: str, revision: str = MAIN) -> str:
    """Return "org--name", with "@revision" unless that is main.

    The hub allows no "--" in names and tells no two repositories apart by case. Other signs of a
    revision are percent-encoded (RFC 3986), and the end of a long name becomes a digest.
    """
    name = quote(repository.lower().replace("/", "--"), safe="")
    if revision != MAIN:
        name += f"@{quote(revision, safe='')}"
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:DIGITS]
    return f"{name[: LONGEST - DIGITS - 1]}~{digest}"


def commit_name(repository: str, commit: str) -> str:
    """Return the name of the folder of what is downloaded of a commit."""
    return f"{repository.replace('/', '--')}-{commit}"


def same(repository: str, other: str) -> bool:
    """Tell whether two names mean one repository: the hub ignores their case."""
    return repository.casefold() == other.casefold()
