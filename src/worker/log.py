"""One JSON line an event on standard error, with the job id, without secrets, prompts or pictures."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

LEVELS: Final = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
SECRET_WORDS: Final = ("token", "secret", "password", "authorization", "access_key", "api_key")

_secrets: set[str] = set()


def hide(*values: str | None) -> None:
    """Never let these values (tokens, keys) appear in a log line, whatever field they are in."""
    _secrets.update(value for value in values if value and len(value) >= 6)  # noqa: PLR2004 - shorter ones are words


def redact(value: Any, key: str = "") -> Any:
    """Return `value` without secrets: by field name and by every value given to `hide`."""
    if any(word in key.lower() for word in SECRET_WORDS) and value:
        return "[hidden]"
    if isinstance(value, str):
        for secret in _secrets:
            value = value.replace(secret, "[hidden]")
        return value
    if isinstance(value, dict):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: redact(item, name) for name, item in event.items()}


def configure(level: str = "INFO") -> None:
    """Write events of `level` (DEBUG, INFO, WARNING, ERROR) and above to standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.captureWarnings(capture=True)


def get() -> structlog.typing.FilteringBoundLogger:
    """Return the logger; bind the job id with `structlog.contextvars.bound_contextvars(job_id=...)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
