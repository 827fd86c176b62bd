"""The HTTP door under load and abuse, with the embedded model: `make load`.

REQUESTS requests by CONNECTIONS callers at once, of every kind below; each accepted one must have
exactly one answer, the right one, each 429 a Retry-After, and nothing may grow: memory,
descriptors, threads, tasks.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from worlds.doorway import Doorway

ROOT: Final = Path(__file__).resolve().parents[1]
KEY: Final = "a-key-that-nobody-guesses"
LIMIT_BYTES: Final = 300_000
LEAST_ACCEPTED: Final = 500
GROWTH_MB: Final = 40
# How often each kind comes, of 100.
KINDS: Final[Mapping[str, int]] = {
    "good": 58,
    "queued": 6,
    "invalid": 6,
    "hang-up": 8,
    "slow": 4,
    "too large": 5,
    "wrong key": 5,
    "broken form": 4,
    "no JSON": 4,
}
ACCEPTED: Final = ("good", "queued")


class Load:
    """The callers, and what came back to them."""

    def __init__(self, door: Doorway, requests: int, seed: int) -> None:
        self.door = door
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.ids: Counter[str] = Counter()
        self.seconds: list[float] = []
        self._left = requests
        self._random = random.Random(seed)
        self._headers = {"Authorization": f"Bearer {KEY}"}

    async def run(self, connections: int) -> None:
        """Make every request."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=600)
        async with (
            aiohttp.ClientSession(self.door.url, connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(connections):
                group.create_task(self._call_repeatedly(session))

    async def _call_repeatedly(self, session: aiohttp.ClientSession) -> None:
        calls: dict[str, Callable[[aiohttp.ClientSession], Awaitable[None]]] = {
            "good": self._draw,
            "queued": self._queue,
            "invalid": self._send_invalid,
            "hang-up": self._hang_up,
            "slow": self._send_slowly,
            "too large": self._send_too_much,
            "wrong key": self._use_wrong_key,
            "broken form": self._send_broken_form,
            "no JSON": self._send_no_json,
        }
        while self._left > 0:
            self._left -= 1
            kind = self._random.choices([*KINDS], [*KINDS.values()])[0]
            self.counts[f"sent {kind}"] += 1
            try:
                await calls[kind](session)
            except (aiohttp.ClientError, OSError) as error:
                self.faults.append(f"{kind}: {type(error).__name__}: {error}")

    def _make_body(self) -> dict[str, Any]:
        return {
            "prompt": "a red circle",
            "seed": self._random.randrange(1 << 40),
            "size": "64x64",
            "num_inference_steps": 4,
            "response_format": "b64_json",
        }

    async def _post(
        self, session: aiohttp.ClientSession, path: str, expected: int, **named: Any
    ) -> tuple[int, Any]:
        """Send one request; its status must be `expected`, or 429 with a Retry-After."""
        headers = {**self._headers, **named.pop("headers", {})}
        async with session.post(path, headers=headers, **named) as response:
            value = await response.json()
            self.counts[f"status {response.status}"] += 1
            if response.status == 429:
                after = int(response.headers.get("Retry-After", "0"))
                if not 1 <= after <= 60:
                    self.faults.append(f"429 with Retry-After {after}")
                await asyncio.sleep(min(after, 5) * (0.5 + self._random.random()))
            elif response.status != expected:
                self.faults.append(f"{path}: {response.status}, not {expected}: {str(value)[:200]}")
            if request_id := response.headers.get("x-request-id"):
                self.ids[request_id] += 1
            return response.status, value

    async def _draw(self, session: aiohttp.ClientSession) -> None:
        body, start = self._make_body(), time.monotonic()
        status, reply = await self._post(session, "/v1/images/generations", 200, json=body)
        if status == 200:
            self.counts["accepted"] += 1
            self.seconds.append(time.monotonic() - start)
            if reply["worker"]["seed"] != body["seed"] or not reply["data"][0]["b64_json"]:
                self.faults.append("another job's answer")

    async def _queue(self, session: aiohttp.ClientSession) -> None:
        body = self._make_body()
        status, queued = await self._post(session, "/run", 200, json={"input": body})
        if status != 200:
            return
        self.counts["accepted"] += 1
        while True:
            path = f"/status/{queued['id']}"
            async with session.get(path, headers=self._headers) as response:
                state = await response.json()
            if state["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
                break
            await asyncio.sleep(0.3)
        if state["status"] != "COMPLETED" or state["output"]["seed"] != body["seed"]:
            self.faults.append(f"queued: {str(state)[:200]}")

    async def _send_invalid(self, session: aiohttp.ClientSession) -> None:
        await self._post(session, "/generate", 400, json={"prompt": "x", "width": "wide"})

    async def _hang_up(self, session: aiohttp.ClientSession) -> None:
        del session
        body = json.dumps(self._make_body()).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.door.port)
        writer.write(self._make_head(len(body)) + body)
        await writer.drain()
        await asyncio.sleep(self._random.random() * 2)
        writer.transport.abort()
        del reader

    async def _send_slowly(self, session: aiohttp.ClientSession) -> None:
        del session
        reader, writer = await asyncio.open_connection("127.0.0.1", self.door.port)
        writer.write(self._make_head(1000))
        for _ in range(20):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.1)
        writer.transport.abort()
        del reader

    async def _send_too_much(self, session: aiohttp.ClientSession) -> None:
        body = {"prompt": "x" * (LIMIT_BYTES + 1)}
        await self._post(session, "/generate", 413, json=body)

    async def _use_wrong_key(self, session: aiohttp.ClientSession) -> None:
        headers = {"Authorization": "Bearer wrong-wrong-wrong-wrong"}
        await self._post(session, "/generate", 401, json=self._make_body(), headers=headers)

    async def _send_broken_form(self, session: aiohttp.ClientSession) -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        data = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx'
        await self._post(session, "/v1/images/edits", 400, data=data, headers=headers)

    async def _send_no_json(self, session: aiohttp.ClientSession) -> None:
        headers = {"Content-Type": "application/json"}
        await self._post(session, "/run", 400, data=b"{", headers=headers)

    def _make_head(self, length: int) -> bytes:
        lines = ("POST /generate HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
        head = "\r\n".join((*lines, f"Authorization: Bearer {KEY}", f"Content-Length: {length}"))
        return f"{head}\r\n\r\n".encode()


def read_metrics(door: Doorway) -> dict[str, float]:
    """Return the door's own counters."""
    page = door.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    rows = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def measure(door: Doorway) -> dict[str, float]:
    """Return what may not grow."""
    folder = Path(f"/proc/{door.process.pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    return {
        "memory_mb": int(status["VmRSS"].split()[0]) / 1024,
        "descriptors": len(list((folder / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "tasks": read_metrics(door)["worker_tasks"],
    }


def settled(door: Doorway) -> dict[str, float]:
    """Return what may not grow, once nothing runs."""
    for _ in range(300):
        counters = read_metrics(door)
        if not counters["worker_jobs_in_flight"] and not counters["worker_jobs_waiting"]:
            break
        time.sleep(0.1)
    time.sleep(2)  # connections that were aborted
    return measure(door)


def main() -> int:
    """Run the load; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    environ = {
        "MODEL": "tiny-image",
        "API_KEYS": KEY,
        "MAX_BODY_BYTES": str(LIMIT_BYTES),
        "HTTP_QUEUE": "24",
        "LIGHTNING_STEPS": "4",
        "MIN_STORAGE_FREE_GB": "0",
    }
    with Doorway(environ, (sys.executable, "-u", str(ROOT / "handler.py"))) as door:
        door.opened()
        warm = Load(door, given.requests // 10, given.seed + 1)
        asyncio.run(warm.run(given.connections))
        before, counted, start = settled(door), read_metrics(door), time.monotonic()
        load = Load(door, given.requests, given.seed)
        asyncio.run(load.run(given.connections))
        took, after = time.monotonic() - start, settled(door)
        ends = {
            name: read_metrics(door)[name] - value
            for name, value in counted.items()
            if name.startswith("worker_jobs_total")
        }
        log = door.process.stderr
    faults = load.faults
    accepted = load.counts["accepted"]
    refused = load.counts["status 429"]
    completed = ends['worker_jobs_total{end="completed"}']
    hung_up = ends['worker_jobs_total{end="cancelled"}']
    if given.requests >= 2000 and accepted < LEAST_ACCEPTED:
        faults.append(f"only {accepted} were accepted")
    finished_anyway = completed - accepted  # a caller that hung up too late
    if not 0 <= finished_anyway <= load.counts["sent hang-up"] - hung_up:
        faults.append(f"{completed:g} were made for {accepted} callers and {hung_up:g} cancels")
    if repeated := [name for name, count in load.ids.items() if count > 1]:
        faults.append(f"{len(repeated)} answers came twice")
    if after["memory_mb"] > before["memory_mb"] + GROWTH_MB:
        faults.append("memory has grown")
    faults += [
        f"{name} have grown from {before[name]:g} to {after[name]:g}"
        for name in ("descriptors", "tasks")
        if after[name] > before[name] + 2
    ]
    if "Traceback" in log:
        faults.append("the log has a traceback")
    result = {
        "requests": given.requests,
        "connections": given.connections,
        "seconds": round(took, 1),
        "accepted": accepted,
        "refused": refused,
        "cancelled": hung_up,
        "median_s": round(sorted(load.seconds)[len(load.seconds) // 2], 2),
        "counts": dict(sorted(load.counts.items())),
        "before": before,
        "after": after,
        "faults": faults[:20],
    }
    print(json.dumps(result, indent=2))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
