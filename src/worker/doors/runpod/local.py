"""A local test's reply, printed without its pictures; the SDK's own print of it is dropped."""

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

from worker.doors.runpod.wire import Handler

LONGEST_TEXT: Final = 10_000  # twice the longest prompt


def add_printing(handle: Handler, config: Mapping[str, Any]) -> Handler:
    """Return `handle` made to print its answers, unless the SDK's API server was requested.

    `config` is the SDK's, to which its start() adds the command line.
    """

    async def handle_and_print(given: dict[str, Any]) -> dict[str, Any]:
        answer = await handle(given)
        if not config["rp_args"]["rp_serve_api"]:
            sys.stdout.write(json.dumps(omit_pictures(answer), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        return answer

    return handle_and_print


def omit_pictures(value: Any) -> Any:
    """Return JSON with every text longer than LONGEST_TEXT replaced by its length."""
    if isinstance(value, dict):
        return {key: omit_pictures(item) for key, item in value.items()}
    if isinstance(value, list):
        return [omit_pictures(item) for item in value]
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"<{len(value)} characters>"
    return value
