"""A job's own bucket as RunPod's callers write it: the object `s3Config` next to the input."""

import difflib
from collections.abc import Mapping
from typing import Any, Final, get_args

from worker.errors import Detail, ImageFetchRefused, InvalidInput, WorkerError
from worker.media.s3 import Bucket, CallersBucket
from worker.media.url import check_url
from worker.setting_values import BucketStyle
from worker.settings import Settings

S3_CONFIG: Final = "s3Config"
ENDPOINT: Final = f"{S3_CONFIG}.endpointUrl"
# The keys of a job's own bucket, and whether it must have them.
BUCKET_KEYS: Final[Mapping[str, bool]] = {
    "endpointUrl": True,
    "accessId": True,
    "accessSecret": True,
    "bucketName": False,
    "region": False,
    "sessionToken": False,
    "style": False,
}
STYLES: Final[Mapping[str, BucketStyle]] = {word: word for word in get_args(BucketStyle)}
LONGEST_VALUE: Final = 4096  # a session token may have over 2000 characters
LONGEST_NAME: Final = 60
MOST_UNKNOWN: Final = 10


def read_bucket(given: Any, settings: Settings) -> CallersBucket | None:
    """Return the bucket that a job brings, or what is wrong with it; None if it brings none.

    The policy for image URLs applies to its endpoint. Raises InvalidInput if it is not an object.
    """
    if given is None:
        return None
    if not isinstance(given, dict):
        message = "must be an object"
        raise InvalidInput(f"{S3_CONFIG}: {message}", details=[Detail(S3_CONFIG, message)])
    unknown = _list_unknown_keys(given)
    try:
        bucket: Bucket | WorkerError = _read(given, unknown, settings)
    except (InvalidInput, ImageFetchRefused) as error:
        bucket = error
    return CallersBucket(bucket, ENDPOINT, tuple(map(_format, unknown)))


def _read(given: Mapping[str, Any], unknown: list[Detail], settings: Settings) -> Bucket:
    """Read the bucket by BUCKET_KEYS; raises InvalidInput or ImageFetchRefused."""
    values: dict[str, str] = {}
    details: list[Detail] = []
    for key, is_required in BUCKET_KEYS.items():
        value = given.get(key)
        if value is None and not is_required:
            continue
        try:
            values[key] = _read_value(value)
        except ValueError as error:
            details.append(Detail(f"{S3_CONFIG}.{key}", str(error)))
    style = STYLES.get(values.get("style", "auto").lower())
    if style is None:
        details.append(Detail(f"{S3_CONFIG}.style", f"must be one of {', '.join(STYLES)}"))
    if not details and style is not None:
        try:
            bucket = Bucket(
                endpoint=values["endpointUrl"],
                access_key_id=values["accessId"],
                secret_access_key=values["accessSecret"],
                name=values.get("bucketName"),
                region=values.get("region"),
                session_token=values.get("sessionToken"),
                style=style,
            )
            check_url(bucket.make_address("probe"), settings)
        except ImageFetchRefused as error:
            detail = Detail(ENDPOINT, error.message)
            raise ImageFetchRefused(_format(detail), details=[detail]) from None
        except ValueError as error:
            details.append(Detail(S3_CONFIG, str(error)))
        else:
            if not (unknown and settings.strict_input):
                return bucket
    details += unknown
    raise InvalidInput("; ".join(map(_format, details)), details=details)


def _read_value(value: Any) -> str:
    """Return a value without blanks around it; raises ValueError."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a string that is not empty")
    if len(value) > LONGEST_VALUE:
        raise ValueError(f"must have at most {LONGEST_VALUE} characters")
    return value.strip()


def _list_unknown_keys(given: Mapping[str, Any]) -> list[Detail]:
    """Return a fault for each unknown key, with the known one that was probably meant."""
    names = {name.lower(): name for name in BUCKET_KEYS}
    details = []
    for key in [key for key in given if key not in BUCKET_KEYS][:MOST_UNKNOWN]:
        close = difflib.get_close_matches(key.lower()[:LONGEST_NAME], names)
        shown = key if key.isascii() and key.isprintable() else ascii(key)
        message = (
            f"is not a known key; did you mean {names[close[0]]}?"
            if close
            else "is not a known key"
        )
        details.append(Detail(f"{S3_CONFIG}.{shown[:LONGEST_NAME]}", message))
    return details


def _format(detail: Detail) -> str:
    return f"{detail.field}: {detail.message}"
