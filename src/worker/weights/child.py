"""The child process that downloads one file with hf_transfer: `python -m worker.weights.child`.

hf_transfer waits forever on a stalled connection and cannot be interrupted; a process can be
killed. The request arrives as JSON on standard input, so that the address and its signature appear
in no process list. Standard output carries the bytes so far, one number per line, and finally
`done` or a JSON object {"error": ..., "errno": ...}.
"""

import ctypes
import json
import math
import os
import re
import signal
import sys
import time
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1
REPORT_S: Final = 0.2


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends for any reason (prctl(2), Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def main() -> None:
    """Make the transfer that standard input requests."""
    request: dict[str, Any] = json.load(sys.stdin)
    die_with(request.pop("parent"))
    import hf_transfer  # noqa: PLC0415 - from here on the parent's death ends this process

    done, last = 0, -math.inf

    def count(chunk: int) -> None:
        nonlocal done, last
        done += chunk
        if time.monotonic() - last >= REPORT_S:
            last = time.monotonic()
            print(done, flush=True)  # noqa: T201 - the parent reads it

    try:
        hf_transfer.download(**request, callback=count)
    except Exception as error:  # noqa: BLE001 - it raises plain Exception for everything
        number = re.search(r"os error (\d+)", str(error))
        fault = {"error": str(error), "errno": int(number[1]) if number else None}
        print(json.dumps(fault))  # noqa: T201 - the parent reads it
    else:
        print("done")  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    main()
