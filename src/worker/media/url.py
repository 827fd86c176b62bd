"""What a caller's URL may look like, checked before anything is resolved or dialled."""

import re
import string
import unicodedata
from typing import Final
from urllib.parse import quote

import idna
from yarl import URL

from worker.errors import ImageFetchRefused
from worker.media.address import Gate, parse_address
from worker.settings import Settings

MAX_URL_CHARACTERS: Final = 8190  # what common servers accept as a request line
SHAPE: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[^/?#@:%\[\]]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[^?#]*)?)(?P<query>(?:\?[^#]*)?)(?P<fragment>(?:#.*)?)",
    re.IGNORECASE,
)
NAME: Final = re.compile(r"(?=.{1,254}$)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")

# What browsers percent-encode in each part of a URL (WHATWG, "percent-encode sets"), except a
# query's apostrophe, which RFC 3986 allows: signatures cover it as it is. "%" stays: a URL with one
# is already encoded, and a signature covers the path as its maker wrote it.
PRINTED: Final = string.digits + string.ascii_letters + string.punctuation
IN_PATH: Final = PRINTED.translate(dict.fromkeys(map(ord, '"#<>?^`{}')))
IN_QUERY: Final = PRINTED.translate(dict.fromkeys(map(ord, '"#<>')))
IN_FRAGMENT: Final = PRINTED.translate(dict.fromkeys(map(ord, '"<>`')))


def refuse_characters(text: str) -> None:
    """Refuse what has no meaning anywhere in a URL: control characters and backslashes.

    Browsers read a backslash as a slash, other clients as itself, so they differ about the host
    that follows one. Raises ImageFetchRefused.
    """
    if len(text) > MAX_URL_CHARACTERS:
        raise ImageFetchRefused(f"a URL must have at most {MAX_URL_CHARACTERS} characters")
    if "\\" in text:
        raise ImageFetchRefused("a URL must not contain a backslash; write / or %5C")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        raise ImageFetchRefused("a URL must not contain control characters")


def encode_host(host: str) -> str:
    """Return a host's name as name servers know it: lower case, other scripts as punycode.

    Refuses every character that IDNA (UTS 46) turns into a digit, a dot, a letter or nothing: the
    host that is checked must be the one that is read. Symbols are accepted, as in browsers. Raises
    UnicodeError.
    """
    if host.isascii():
        return host.lower()
    if host.rstrip(".").rpartition(".")[2].isdigit():  # in any script: no name ends in a number
        raise UnicodeError
    for character in host:
        mapped = idna.uts46_remap(character, std3_rules=False)
        if not character.isascii() and (not mapped or any(one.isascii() for one in mapped)):
            raise UnicodeError
    return ".".join(map(_encode_label, idna.uts46_remap(host, std3_rules=False).split(".")))


def _encode_label(label: str) -> str:
    if label.isascii():
        return label
    letters = "".join(one for one in label if unicodedata.category(one) != "So")
    if not letters.isascii():
        idna.check_label(letters)
    return f"xn--{label.encode('punycode').decode()}"


def _is_number(host: str) -> bool:
    """Return whether some parser may read `host` as an IPv4 address (WHATWG: ends in a number)."""
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or last.startswith("0x")


def _is_allowed(host: str, allowed: str) -> bool:
    """Return whether `host` is `allowed`, or under it if that is written "*.example.com"."""
    stars = "*." if allowed.startswith("*.") else ""
    try:
        allowed = encode_host(allowed.removeprefix(stars).rstrip("."))
    except UnicodeError:
        return False
    return host.endswith(f".{allowed}") if stars else host == allowed


def check_url(text: str, settings: Settings) -> URL:
    """Return the URL if its scheme, host and port may be dialled at all, ready to be sent.

    Other scripts in the host become punycode; in the rest, what a request may not contain is
    percent-encoded as browsers do, and what is encoded already stays as it was written. The
    addresses of the host are checked later, at the socket. Raises ImageFetchRefused.
    """
    text = text.strip(" ")
    refuse_characters(text)
    if not text.lower().startswith(("https://", "http://")):
        raise ImageFetchRefused("a URL must begin with https://")
    if "@" in re.split("[/?#]", text)[2]:
        raise ImageFetchRefused("a URL must not contain a user name or password")
    shape = SHAPE.fullmatch(text)
    port = None if shape is None or shape["port"] is None else int(shape["port"])
    if shape is None or port == 0:
        raise ImageFetchRefused("a URL must name a host, and a port only in digits")
    scheme = shape["scheme"].lower()
    try:
        host = encode_host(shape["host"])
    except UnicodeError:
        raise ImageFetchRefused(
            "a URL's host must not contain look-alikes of digits, dots or letters"
        ) from None
    default = 443 if scheme == "https" else 80
    _check_host(host.strip("[]"), port or default, Gate.from_settings(scheme, settings), settings)
    url = f"{scheme}://{host}{f':{port}' if port else ''}{_encode_rest(shape)}"
    if len(url) > MAX_URL_CHARACTERS:
        raise ImageFetchRefused(
            f"a URL must have at most {MAX_URL_CHARACTERS} characters, percent-encoded"
        )
    return URL(url, encoded=True)


def _encode_rest(shape: re.Match[str]) -> str:
    """Percent-encode what follows the host."""
    query, fragment = shape["query"], shape["fragment"]
    return (
        quote(shape["path"], safe=IN_PATH)
        + (f"?{quote(query[1:], safe=IN_QUERY)}" if query else "")
        + (f"#{quote(fragment[1:], safe=IN_FRAGMENT)}" if fragment else "")
    )


def _check_host(host: str, port: int, gate: Gate, settings: Settings) -> None:
    if not gate.has_port(port):
        raise ImageFetchRefused(
            "a URL must begin with https://, and use port 443"
            if not settings.allow_http_images
            else "a URL must use port 443, or 80 for http"
        )
    if parse_address(host) is not None:
        if not gate.can_reach(host, port):
            raise ImageFetchRefused("a URL must lead to a public address")
    elif not NAME.fullmatch(host) or _is_number(host):
        raise ImageFetchRefused("a URL must name its host in the usual spelling")
    if settings.allowed_image_hosts and not any(
        _is_allowed(host.rstrip("."), allowed) for allowed in settings.allowed_image_hosts
    ):
        raise ImageFetchRefused("a URL's host is not one that this endpoint allows")
