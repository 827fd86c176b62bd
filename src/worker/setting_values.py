"""How the text of each setting is read, and what it may be.

Each validator gets text: nothing else makes settings than `settings.read`.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
)

MB: Final = 1_000_000
MAX_PORT: Final = 65535
PORT: Final = re.compile(r"[0-9]{1,5}")
BYTES: Final = re.compile(r"([0-9]{1,9}) ?(kb|mb|gb)", re.IGNORECASE)
UNITS: Final = {"KB": 1000, "MB": MB, "GB": 1000 * MB}

# As a header or a quick start writes a token.
BEARER: Final = re.compile(r"^(?:authorization\s*:\s*)?bearer\s+", re.IGNORECASE)

# A name by which callers ask for a LoRA, never a path: it begins no hidden file, and has no "..".
LORA_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,99}")
LORA_KINDS: Final = ("names", "hub", "urls")
# org/repository, a file in it, a revision. No part begins with a dot, and the characters that mean
# something in a URL or to another system's paths are in none.
_PART: Final = r"[A-Za-z0-9_-](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"
_FOLDER: Final = r"[^\x00-\x20./\\@%?#][^\x00-\x1f/\\@%?#]{0,199}"
HUB_FILE: Final = re.compile(
    rf"(?P<repository>{_PART}/{_PART})"
    rf"(?:/(?P<path>(?:{_FOLDER}/){{0,8}}{_FOLDER}\.safetensors))?"
    rf"(?:@(?P<revision>{_PART}(?:/{_PART}){{0,4}}))?"
)
HUB_FOLDER: Final = re.compile(rf"{_PART}/{_PART}(?:/{_FOLDER}){{0,8}}")
# The number of steps in the names of Lightning's files.
STEPS_IN_NAME: Final = re.compile(r"lightning-(\d{1,3})steps?\b", re.IGNORECASE)
# A key of letters and digits: 95 bits.
SHORTEST_KEY: Final = 16
Network = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int]


def unquote(text: str) -> str:
    """Return a value without blanks around it, and without one pair of quotes around it.

    Docker's --env-file keeps those of `NAME="value"`. Quotes inside stay, and so does one without a
    partner.
    """
    text = text.strip()
    if text[:1] in ('"', "'") and text.find(text[0], 1) == len(text) - 1:
        return text[1:-1].strip()
    return text


def _split_words(value: str) -> tuple[str, ...]:
    return tuple(word for part in value.split(",") if (word := unquote(part)))


def _read_networks(value: str) -> tuple[Network, ...]:
    """Read "127.0.0.0/8:8080,[::1]/128:80" as (network, port) pairs."""
    networks: list[Network] = []
    for word in _split_words(value):
        cidr, _, port = word.rpartition(":")
        try:
            network = ipaddress.ip_network(cidr.replace("[", "").replace("]", ""))
        except ValueError:
            network = None
        if network is None or not PORT.fullmatch(port) or not 0 < int(port) <= MAX_PORT:
            raise ValueError('must be a list of "CIDR:port", as in 127.0.0.0/8:8080')
        networks.append((network, int(port)))
    return tuple(networks)


def _read_loras(value: str) -> tuple[tuple[str, str], ...]:
    """Read "style=org/repository/file.safetensors,other=org/repository" as pairs."""
    parts = (word.partition("=") for word in _split_words(value))
    pairs = [(name.strip(), place.strip()) for name, _, place in parts]
    for name, place in pairs:
        if not LORA_NAME.fullmatch(name) or not HUB_FILE.fullmatch(place):
            raise ValueError(
                "must be a list of name=org/repository/file; a name has letters, digits, - _ ."
            )
    if len(dict(pairs)) < len(pairs):
        raise ValueError("must have each name once")
    return tuple(pairs)


def _read_bytes(value: str) -> int | str:
    """Read "20MB" as 20,000,000."""
    match = BYTES.fullmatch(value)
    return int(match[1]) * UNITS[match[2].upper()] if match else value


def _read_steps(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or len(set(value)) < len(value) or not all(2 <= n <= 100 for n in value):  # noqa: PLR2004 - the input's own limits
        raise ValueError("must be one or more different counts of 2 to 100, as in 8,4")
    return value


def _read_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+[^\s@]*", value, re.IGNORECASE):
        raise ValueError("must be an https:// address without a user name")
    return value


def _read_token(value: str) -> str:
    """Take a token out of "Bearer TOKEN"; only one word of ASCII can be a header's value."""
    token = unquote(BEARER.sub("", unquote(value)))
    if not re.fullmatch(r"[!#-&(-~]+", token) or token.lower() == "bearer":
        raise ValueError("must be a token alone, as in hf_...: no blanks, no quotes, ASCII only")
    return token


def _place(value: Path) -> Path:
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError("must be a path; ~ stands for no home here") from None


def _check_public(value: str) -> str:
    if "?" in value or "#" in value:
        raise ValueError("must be an https:// address that a key can follow")
    return _read_address(value)


def _read_offline(value: str) -> bool:
    """Read a switch that other programs read too, in which no value is wrong.

    Anything but a no means no network.
    """
    return value.lower() not in ("0", "false", "no", "off", "n", "f")


def _read_level(value: str) -> str:
    """Read our names of levels and, for RUNPOD_LOG_LEVEL, the SDK's."""
    theirs = {"WARN": "WARNING", "TRACE": "DEBUG", "NOTSET": "ERROR"}
    return theirs.get(value.upper(), value.upper())


def _check_lightning(value: str) -> str:
    """Check "org/repository/file-{n}steps.safetensors": {n} stands for the number of steps."""
    match = HUB_FILE.fullmatch(value)
    if match is None or match["path"] is None or match["revision"] is not None:
        raise ValueError(
            "must be org/repository/file.safetensors, with {n} where it has the number of steps"
        )
    if "{n}" not in value and STEPS_IN_NAME.search(value) is None:
        raise ValueError("must have {n} in the file's name, or a name as in Lightning-8steps")
    return value


def _check_transformer(value: str) -> str:
    """Check "org/repository" or "org/repository/folder"."""
    if not HUB_FOLDER.fullmatch(value):
        raise ValueError("must be org/repository or org/repository/folder")
    return value


def _read_keys(value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    """Check what callers will send in a header: words of ASCII that cannot be guessed in a day."""
    texts = [key.get_secret_value() for key in value]
    if texts and texts != ["none"] and any(len(text) < SHORTEST_KEY for text in texts):
        raise ValueError(f"must be keys of at least {SHORTEST_KEY} characters each, or none")
    if any(not re.fullmatch(r"[!-~]+", text) for text in texts):
        raise ValueError("must be keys of printable ASCII without blanks")
    return value


def _read_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    folded = tuple(word.lower().rstrip("/") for word in value)
    if not all(re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", word) for word in folded):
        raise ValueError("must be a list of origins, as in https://example.com")
    return folded


def _read_url_path(value: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9._~/-]*", value):
        raise ValueError("must be a path, as in /ping")
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_split_words)]
Keys = Annotated[tuple[SecretStr, ...], BeforeValidator(_split_words), AfterValidator(_read_keys)]
Origins = Annotated[Words, AfterValidator(_read_origins)]
UrlPath = Annotated[str, AfterValidator(_read_url_path)]
Port = Annotated[int, Field(ge=1, le=MAX_PORT)]
Counts = Annotated[tuple[int, ...], BeforeValidator(_split_words), AfterValidator(_read_steps)]
Loras = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_read_loras)]
LightningPlace = Annotated[str, AfterValidator(_check_lightning)]
TransformerPlace = Annotated[str, AfterValidator(_check_transformer)]
LoraKinds = Annotated[tuple[Literal["names", "hub", "urls"], ...], BeforeValidator(_split_words)]
Bytes = Annotated[int, BeforeValidator(_read_bytes)]
Token = Annotated[SecretStr, BeforeValidator(_read_token)]
Place = Annotated[Path, AfterValidator(_place)]
Address = Annotated[str, AfterValidator(_read_address)]
PublicAddress = Annotated[str, AfterValidator(_check_public)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_read_networks)]
Offline = Annotated[bool, BeforeValidator(_read_offline)]
BucketStyle = Literal["auto", "path", "virtual"]
StyleWord = Annotated[BucketStyle, BeforeValidator(str.lower)]
ServeMode = Annotated[Literal["auto", "queue", "http"], BeforeValidator(str.lower)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_read_level)]
Switch = Annotated[Literal["auto", "off"], BeforeValidator(str.lower)]
Precision = Literal["4bit", "8bit", "bf16"]
# The smallest first.
PRECISIONS: Final[tuple[Precision, ...]] = ("4bit", "8bit", "bf16")
PrecisionMode = Annotated[Literal["auto", "bf16", "8bit", "4bit"], BeforeValidator(str.lower)]
