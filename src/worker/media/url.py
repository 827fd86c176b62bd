"""What a caller's URL may look like, judged before anything is resolved or dialled."""

import re
import unicodedata
from typing import Final

from yarl import URL

from worker.errors import ImageFetchRefused
from worker.media.address import Gate, parse
from worker.settings import Settings

MAX_URL_CHARACTERS: Final = 8190  # what common servers take as one request line
IDEOGRAPHIC_FULL_STOP: Final = "\u3002"  # IDNA reads it as a dot
SHAPE: Final = re.compile(
    r"https?://(?:\[[0-9a-f:.]+\]|[^/?#@:%\[\]]+)(?::[0-9]{1,5})?(?:[/?#].*)?", re.IGNORECASE
)
NAME: Final = re.compile(r"(?=.{1,254}$)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")


def _refuse_characters(text: str) -> None:
    """Refuse what parsers read differently: the caller's meaning must be the dialler's."""
    if len(text) > MAX_URL_CHARACTERS:
        raise ImageFetchRefused(f"a URL must have at most {MAX_URL_CHARACTERS} characters")
    for character in text:
        if character == "\\":
            raise ImageFetchRefused("a URL must not contain a backslash")
        if unicodedata.category(character)[0] in "CZ":
            raise ImageFetchRefused("a URL must not contain spaces or control characters")
        if not character.isascii() and (
            character == IDEOGRAPHIC_FULL_STOP
            or unicodedata.numeric(character, None) is not None
            or unicodedata.normalize("NFKC", character).isascii()
        ):
            raise ImageFetchRefused("a URL must not contain look-alikes of digits, dots or letters")


def _is_number(host: str) -> bool:
    """Tell whether some parser may read `host` as an IPv4 address (WHATWG: ends in a number)."""
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or last.startswith("0x")


def _matches(host: str, allowed: str) -> bool:
    """Tell whether `host` is `allowed`, or under it when that is written "*.example.com"."""
    allowed = allowed.lower().rstrip(".")
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def check(text: str, settings: Settings) -> URL:
    """Return the URL if its scheme, host and port may be dialled at all.

    The addresses behind its host are judged later, at the socket. Raises ImageFetchRefused.
    """
    _refuse_characters(text)
    if not text.lower().startswith(("https://", "http://")):
        raise ImageFetchRefused("a URL must begin with https://")
    authority = re.split("[/?#]", text, maxsplit=3)[2]
    if "@" in authority:
        raise ImageFetchRefused("a URL must not contain a user name or password")
    if not SHAPE.fullmatch(text):
        raise ImageFetchRefused("a URL must name a host, and a port only in digits")
    try:
        url = URL(text)
        port = url.port
    except ValueError:
        raise ImageFetchRefused("a URL is malformed") from None
    host = (url.raw_host or "").lower()
    _check_host(host, port or 0, Gate.of(url.scheme, settings), settings)
    # A signature covers the path as its maker wrote it: leave it so, where yarl would tidy it.
    return URL(text, encoded=True) if text.isascii() else url


def _check_host(host: str, port: int, gate: Gate, settings: Settings) -> None:
    if not gate.has_port(port):
        raise ImageFetchRefused(
            "a URL must begin with https://, and use port 443"
            if not settings.allow_http_images
            else "a URL must use port 443, or 80 for http"
        )
    if parse(host) is not None:
        if not gate.permits(host, port):
            raise ImageFetchRefused("a URL must lead to a public address")
    elif not NAME.fullmatch(host) or _is_number(host):
        raise ImageFetchRefused("a URL must name its host in the usual spelling")
    if settings.allowed_image_hosts and not any(
        _matches(host.rstrip("."), allowed) for allowed in settings.allowed_image_hosts
    ):
        raise ImageFetchRefused("a URL's host is not one that this endpoint allows")
