"""What this door counts, as text that Prometheus reads."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from worker.edge.reply import Failure
from worker.jobs.job import Answer

# Upper bounds of the histogram of seconds.
SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Meters:
    """Counters of jobs and of what they took; no word of a caller is a label."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()
        self._buckets: dict[str, Counter[float]] = defaultdict(Counter)
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self._memory_mb = 0

    def note(self, end: str, answer: Answer | None = None) -> None:
        """Count one job by its end: completed, failed, cancelled or refused."""
        self.ends[end] += 1
        if isinstance(answer, Failure):
            self._codes[answer.code] += 1
        elif answer is not None and "timings_ms" in answer:
            self._note_success(answer)

    def _note_success(self, output: Mapping[str, Any]) -> None:
        for phase, spent_ms in output["timings_ms"].items():
            seconds = spent_ms / 1000
            self._counts[phase] += 1
            self._sums[phase] += seconds
            for bound in SECONDS:
                self._buckets[phase][bound] += seconds <= bound
        self._sizes[output.get("batch", {}).get("size", 1)] += 1
        self._memory_mb = max(self._memory_mb, output.get("peak_vram_mb", 0))

    def write(self, *, waiting: int, inside: int, tasks: int, is_ready: bool) -> str:
        """Return the page of metrics."""
        lines = self._list_lines(waiting, inside, tasks, is_ready=is_ready)
        return "\n".join([*lines, ""])

    def _list_lines(
        self, waiting: int, inside: int, tasks: int, *, is_ready: bool
    ) -> Iterator[str]:
        yield from _open("worker_ready", "gauge", "Whether jobs are accepted.")
        yield f"worker_ready {int(is_ready)}"
        yield from _open("worker_jobs_waiting", "gauge", "Jobs in the waiting line.")
        yield f"worker_jobs_waiting {waiting}"
        yield from _open("worker_jobs_in_flight", "gauge", "Jobs that are being handled.")
        yield f"worker_jobs_in_flight {inside}"
        yield from _open("worker_tasks", "gauge", "Tasks of the event loop.")
        yield f"worker_tasks {tasks}"
        yield from _open("worker_jobs_total", "counter", "Jobs by their end.")
        for end in ("completed", "failed", "cancelled", "refused"):
            yield f'worker_jobs_total{{end="{end}"}} {self.ends[end]}'
        yield from _open("worker_failures_total", "counter", "Failed jobs by their code.")
        for code, count in sorted(self._codes.items()):
            yield f'worker_failures_total{{code="{code}"}} {count}'
        yield from _open("worker_phase_seconds", "histogram", "Seconds of each phase of a job.")
        for phase in self._counts:
            for bound in SECONDS:
                count = self._buckets[phase][bound]
                yield f'worker_phase_seconds_bucket{{phase="{phase}",le="{bound:g}"}} {count}'
            count = self._counts[phase]
            yield f'worker_phase_seconds_bucket{{phase="{phase}",le="+Inf"}} {count}'
            yield f'worker_phase_seconds_sum{{phase="{phase}"}} {self._sums[phase]:g}'
            yield f'worker_phase_seconds_count{{phase="{phase}"}} {count}'
        yield from _open("worker_batch_size_total", "counter", "Jobs by the size of their batch.")
        for size, count in sorted(self._sizes.items()):
            yield f'worker_batch_size_total{{size="{size}"}} {count}'
        name = "worker_device_memory_peak_bytes"
        yield from _open(name, "gauge", "The most device memory that a job has taken.")
        yield f"{name} {self._memory_mb * 1024 * 1024}"


def _open(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
