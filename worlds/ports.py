"""Ports for servers that are told where to listen: nobody else gets one in between.

A port that the system gave and took back may be anybody's before it is listened on: of ten runs of
all tests, one failed so. These lie below those that systems give (Linux from 32768 on, RFC 6335
from 49152 on), and each process has a block of them to itself, which a datagram socket at the
block's first port tells the others; it is closed with the process, however that ends.
"""

import os
import socket
from collections.abc import Iterator
from functools import cache
from itertools import cycle
from typing import Final

FIRST: Final = 10_000
END: Final = 32_700
SIZE: Final = 100


def take_port() -> int:
    """Return a port that nothing listens on; of this process's block the one taken longest ago.

    Raises RuntimeError where something listens on each of them.
    """
    ports = _take_block(os.getpid())
    for _ in range(SIZE):
        port = next(ports)
        with socket.socket() as probe:
            # what was sent from here a minute ago does not count: servers set this too
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if _bind(probe, port):
                return port
    raise RuntimeError("something listens on every port of this process's block")


@cache
def _take_block(process: int) -> Iterator[int]:
    """Return the first block that no process has; `process` keeps a forked one from this one's."""
    del process
    for first in range(FIRST, END, SIZE):
        owner = socket.socket(type=socket.SOCK_DGRAM)
        if _bind(owner, first):
            owner.detach()  # open as long as this process
            return cycle(range(first, first + SIZE))
        owner.close()
    raise RuntimeError("every block of ports has an owner")


def _bind(own: socket.socket, port: int) -> bool:
    try:
        own.bind(("", port))
    except OSError:
        return False
    return True
