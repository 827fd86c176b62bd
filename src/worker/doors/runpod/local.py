"""A local test's reply on standard output, without its pictures: the SDK prints none of ours."""

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

from worker.doors.runpod.wire import Handler

LONGEST_TEXT: Final = 10_000  # twice the longest prompt


def printed(handle: Handler, config: Mapping[str, Any]) -> Handler:
    """Return `handle`, printing what it answers unless the SDK's API server was asked for.

    `config` is the SDK's, to which its start() adds the command line.
    """

    async def shown(given: dict[str, Any]) -> dict[str, Any]:
        answer = await handle(given)
        if not config["rp_args"]["rp_serve_api"]:
            sys.stdout.write(json.dumps(without_pictures(answer), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        return answer

    return shown


def without_pictures(value: Any) -> Any:
    """Return JSON with its length in place of every text longer than LONGEST_TEXT."""
    if isinstance(value, dict):
        return {key: without_pictures(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_pictures(item) for item in value]
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"<{len(value)} characters>"
    return value
