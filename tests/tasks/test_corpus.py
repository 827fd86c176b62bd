"""More than 150 bad inputs in 15 families: each gets its code, quickly, and leaves no trace.

After each, the next good job is byte-identical; no reply and no log line leaks; nothing is dialled
that the settings do not open.
"""

import asyncio
import base64
import gzip
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import pytest
from corpus import begun, pictures, web, words
from corpus.case import Case, Family

from worker import log, settings
from worker.jobs.serve import Worker
from worker.media import dial
from worlds.files import gradient, saved
from worlds.site import HOST, INSIDE, Site, tapped
from worlds.standin import StandIns, answered

SECRETS = re.compile(
    r"Traceback|site-packages|/worker/|127\.0\.0\.|root:|hidden-secret|AKIDEXAMPLE"
    rf"|\b{re.escape(socket.gethostname())}\b"
)
CASES = [*words.CASES, *pictures.CASES, *web.CASES, *begun.CASES]
CPU_SECONDS = 2.0  # of this process, since a neighbour may take the machine's
TOTAL_S = 60
EXTRA_MB = 300
LIMITS = {"FETCH_TOTAL_S": f"{TOTAL_S}", "FETCH_CONNECT_S": f"{TOTAL_S}", "BUCKET_URL_TTL_S": "60"}
GOOD = {
    "prompt": "a good job",
    "image": base64.b64encode(saved(gradient(), "PNG")).decode("ascii"),
    "seed": 42,
    "num_images": 2,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        site.files["/good.png"] = good = saved(gradient(), "PNG")
        site.files |= {
            quote(path, safe="/").partition("%3F")[0]: good for path in web.PATHS.values()
        }
        site.files["/packed"] = packed = gzip.compress(good)
        site.files["/broken"] = packed[:-9]
        site.files["/bomb"] = bomb = gzip.compress(bytes(500_000_000), 1)
        site.files["/bombs"] = gzip.compress(bomb)
        site.names.answers |= {
            "inside.test": [INSIDE],
            "mixed.test": [HOST, INSIDE],
            "mapped.test": ["::ffff:127.0.0.2"],
            "metadata.test": ["169.254.169.254"],
            "turning.test": [HOST, "10.0.0.1"],
            "silent.test": ["silence"],
            "stranger.test": [HOST],
            "xn--ehq000d.example": [HOST],
        }
        yield site


@pytest.fixture(autouse=True)
def _trust(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SSL_CERT_FILE", str(site.authority))
    dial.make_tls_context.cache_clear()
    yield
    dial.make_tls_context.cache_clear()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The replies of one worker, and what the first of its jobs cost."""

    replies: list[dict[str, Any]]
    seconds: float
    cpu_seconds: float
    extra_mb: int


@pytest.fixture(scope="module")
def good(site: Site) -> list[str]:
    """Return the pictures of the good job of a worker that has seen nothing bad."""
    return drawn(run(site, {}, {"input": GOOD}).replies[-1])


def run(site: Site, environ: Mapping[str, str], *jobs: dict[str, Any]) -> Outcome:
    """Give the jobs to one worker, one after the other."""
    chosen = settings.read({**site.environ, **LIMITS, **environ})

    async def serve() -> Outcome:
        worker = Worker(chosen, StandIns())
        forget_peak()
        before, started, used = memory("VmRSS"), time.monotonic(), time.process_time()
        first = await answered(worker, {"id": "job-0", **jobs[0]})
        seconds, used = time.monotonic() - started, time.process_time() - used
        extra = memory("VmHWM") - before
        others = [await answered(worker, {"id": "job-1", **job}) for job in jobs[1:]]
        return Outcome([first, *others], seconds, used, extra)

    return asyncio.run(serve())


def drawn(reply: dict[str, Any]) -> list[str]:
    """Return the pictures of a reply."""
    assert "error" not in reply, reply
    return [image["base64"] for image in reply["images"]]


def memory(name: str) -> int:
    """Return VmRSS or VmHWM in MB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if name in x)
    return int(line.split()[1]) // 1024


def forget_peak() -> None:
    """Let VmHWM start again from here."""
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bad_input_gets_its_code_and_leaves_no_trace(
    case: Case, site: Site, good: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    site.put_statuses[:] = [403] if case.name == "forbidden" else [307]
    job = case.job(site)
    log.configure("DEBUG")
    with tapped() as dialled:
        outcome = run(site, case.environ, job, {"input": GOOD})
    bad, following = outcome.replies
    assert bad.get("error_code") == case.code, bad
    assert outcome.cpu_seconds < CPU_SECONDS
    assert outcome.seconds < TOTAL_S / 2
    assert outcome.extra_mb < EXTRA_MB
    assert drawn(following) == good
    assert site.allows(dialled)
    assert site.intruders == 0
    _leaks_nothing(case, job, bad, capfd.readouterr().err)


def _leaks_nothing(case: Case, job: dict[str, Any], reply: dict[str, Any], logged: str) -> None:
    facts = {name: value for name, value in reply.items() if name != "images"}
    replied = json.dumps(facts, allow_nan=False)
    for line in logged.splitlines():
        assert json.loads(line)["event"], line
    for text in (replied, logged):
        assert not SECRETS.search(text), text[:1000]
        assert len(text) < 40_000
    if case.code is not None:
        assert reply["error"].startswith(f"{case.code}: ")
        keys = {"error", "error_code", "error_type", "retryable", "details"}
        assert set(reply) - {"warnings"} == keys
        assert reply.get("warnings") != []
        assert "not JSON" not in replied
    prompt = (job.get("input") or {}).get("prompt") if isinstance(job.get("input"), dict) else None
    if isinstance(prompt, str) and len(prompt) > 8:
        assert json.dumps(prompt)[1:-1] not in logged


def test_the_corpus_is_as_large_as_it_says() -> None:
    families = Counter(case.family for case in CASES)
    assert set(families) == set(get_args(Family))
    assert len(families) == 15
    assert min(families.values()) >= 10
    assert len({str(case) for case in CASES}) == len(CASES)
    assert sum(case.code is not None for case in CASES) >= 150


@pytest.mark.parametrize("page", ["README.md", "docs/security.md"])
def test_the_number_of_inputs_is_the_one_that_is_written(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    assert f"{len(CASES)} bad and odd inputs" in text
