"""A container's first process: what it takes to be one, where this machine lets anyone be one."""

import subprocess
from functools import cache
from typing import Final

# The process that follows is number 1 of a namespace of its own, and ends with this one.
AS_FIRST: Final = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@cache
def explain_refusal() -> str | None:
    """Return why no process can be the first of its own here, None where one can."""
    try:
        tried = subprocess.run((*AS_FIRST, "true"), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no unshare (util-linux)"
    if tried.returncode == 0:
        return None
    return f"no namespace of processes here: {tried.stderr.strip()[:100]}"
