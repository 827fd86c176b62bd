"""One JSON line per event on standard error: with the job id, without secrets or pictures."""

import json
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import quote

import structlog

LEVELS: Final = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
SECRET_WORDS: Final = ("token", "secret", "password", "authorization", "access_key", "api_key")
# Loggers whose warnings are about deliberate choices: bitsandbytes warns at import that it lacks a
# package which fetches kernels from a hub, and on every 8-bit call that it casts.
CHATTY: Final = ("bitsandbytes", "diffusers", "transformers", "py.warnings")

# Loggers to which their libraries attach a handler and a level at import.
HANDLED: Final = ("diffusers", "huggingface_hub", "torch", "transformers")

LONGEST_TEXT: Final = 20_000  # characters; tracebacks are shorter, pictures in base64 are not

_secrets: set[str] = set()


def hide(*values: str | None) -> None:
    """Keep these values (tokens, keys) out of every log line, whatever field they are in.

    This includes their forms in a URL, in JSON and in a traceback.
    """
    for value in values:
        if value and len(value) >= 6:  # noqa: PLR2004 - shorter ones are words
            _secrets.update((value, quote(value, safe=""), json.dumps(value)[1:-1]))
            _secrets.add(repr(value)[1:-1])


def redact(value: Any, key: str = "") -> Any:
    """Return `value` without secrets and pictures.

    A secret is recognised by its field's name (unless it is a number) or as a value given to
    `hide`; a string too long to read is a picture, or as good as one, and is cut.
    """
    if any(word in key.lower() for word in SECRET_WORDS) and value:
        return value if isinstance(value, int | float) else "[hidden]"
    if isinstance(value, dict):
        return {redact(str(name)): redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, key) for item in value]
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    for secret in sorted(_secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "[hidden]")
    return (
        text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... ({len(text)} characters)"
    )


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {redact(name): redact(item, name) for name, item in event.items()}


class Ours(logging.Logger):
    """A logger whose lines reach our handler, whatever its library does to it.

    At import, so after `configure`, transformers, diffusers, huggingface_hub and torch attach a
    handler that writes to standard error, turn off propagation to the root and set a level.
    """

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802 - logging's name
        """Attach a handler, unless it would bypass our log."""
        if not (_is_handled(self.name) and type(hdlr) is logging.StreamHandler):
            super().addHandler(hdlr)

    def setLevel(self, level: int | str) -> None:  # noqa: N802 - logging's name
        """Set the level; for loggers in `CHATTY` it is always ERROR."""
        super().setLevel(logging.ERROR if self.name in CHATTY else level)

    @property
    def propagate(self) -> bool:
        """Whether lines reach the root's handler: a library's always do."""
        return self._propagate or _is_handled(self.name)

    @propagate.setter
    def propagate(self, value: bool) -> None:
        self._propagate = value


def _is_handled(name: str) -> bool:
    # torch switches its artifacts ("torch.__trace") on and off by their handlers and propagation.
    return name.partition(".")[0] in HANDLED and ".__" not in name


def _claim() -> None:
    """Take over the libraries' loggers: those that exist, and those that will be made."""
    logging.setLoggerClass(Ours)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if type(logger) is logging.Logger and _is_handled(name):
            logger.__class__ = Ours
            logger.propagate = True
            for handler in logger.handlers[:]:
                if type(handler) is logging.StreamHandler:
                    logger.removeHandler(handler)


def configure(level: str = "INFO") -> None:
    """Write events of `level` (DEBUG, INFO, WARNING, ERROR) and above to standard error.

    What libraries log through `logging` and `warnings` takes the same way, from WARNING up; for
    those in `CHATTY` from ERROR up.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    last: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        _redact,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(LEVELS[level], LEVELS["WARNING"]), force=True)
    _claim()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)


def get() -> structlog.typing.FilteringBoundLogger:
    """Return the logger; `structlog.contextvars.bound_contextvars(job_id=...)` binds a job."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
