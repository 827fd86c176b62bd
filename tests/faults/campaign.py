"""Run every fault with several seeds and print what came of it: `python -m faults.campaign`."""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from faults import driver, machine, network
from faults.machine import NotPermitted
from faults.network import Case
from faults.room import SOON, TOKEN, Room

from worker import log
from worker.errors import HubUnreachable, WorkerError

CASES = (*network.CASES, *machine.CASES)
HANG_S = 180.0


@dataclass(frozen=True)
class Outcome:
    """What one trial gave: `fault` is None when all was as it should be."""

    result: str
    fault: str | None
    seconds: float


def trial(case: Case, seed: int, home: Path) -> Outcome:
    """Run one fault once, in an empty home; it has HANG_S seconds.

    Raises NotPermitted when this machine cannot do the fault.
    """
    start = time.monotonic()
    outcome: list[tuple[str, str | None]] = []
    refused: list[NotPermitted] = []

    def run() -> None:
        try:
            with case.home(home, seed) as made:
                if case.stalls:
                    made.patience = SOON
                outcome.append(_judge(case, made))
        except NotPermitted as error:
            refused.append(error)
        except BaseException as error:  # noqa: BLE001 - a broken trial is a finding, not an end
            outcome.append(("broken", f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_S)
    if refused:
        raise refused[0]
    result, fault = outcome[0] if outcome else ("hang", f"still running after {HANG_S:.0f} s")
    return Outcome(result, fault, time.monotonic() - start)


def _judge(case: Case, made: Room) -> tuple[str, str | None]:
    result = "recovered"
    try:
        case.run(made)
    except HubUnreachable:
        result = "try later"
    except WorkerError as error:
        result = error.code
        shown = [secret for secret in (str(made.home), TOKEN, "127.0.0") if secret in error.message]
        if shown:
            return result, f"the message shows {shown[0]}"
    if wrong := made.wrong():
        return "wrong bytes", f"wrong bytes under {', '.join(wrong)}"
    if result == "recovered" and (missing := made.missing()):
        return "incomplete", f"without {', '.join(missing)}"
    if result != case.expected:
        return result, f"expected {case.expected}"
    return result, None


def main() -> int:
    """Run the campaign; the exit code tells whether every trial ended as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="run faults whose name has this in it")
    options = parser.parse_args()
    log.configure("ERROR")
    from faults import preparing  # noqa: PLC0415 - imports torch, which the tests do without

    cases = [case for case in (*CASES, *preparing.CASES) if options.only in case.name]
    if any(case.group == "prepare" for case in cases):
        driver.PRELOADED.append("faults.preparing")
        preparing.right()  # what every trial is compared with; no trial's time
    results: Counter[str] = Counter()
    print(f"{'group':8} {'fault':42} {'expected':20} {'as expected':>11} {'slowest':>8}")
    for case in cases:
        outcomes: list[Outcome] = []
        skipped = ""
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    outcomes.append(trial(case, seed, Path(folder) / "home"))
                except NotPermitted as error:
                    skipped = str(error)
        good = sum(outcome.fault is None for outcome in outcomes)
        results["trials"] += len(outcomes)
        results["as expected"] += good
        results["seconds"] += round(sum(outcome.seconds for outcome in outcomes))
        results["skipped"] += bool(skipped)
        for outcome in outcomes:
            results[outcome.result] += 1
        slowest = max((outcome.seconds for outcome in outcomes), default=0)
        print(
            f"{case.group:8} {case.name:42} {case.expected:20} {good:>5} of {len(outcomes):<2}"
            f" {slowest:6.1f} s {f'skipped: {skipped}' if skipped else ''}",
            flush=True,
        )
        for seed, outcome in enumerate(outcomes):
            if outcome.fault:
                print(f"         seed {seed}: {outcome.result}: {outcome.fault}", flush=True)
    print(
        f"\n{len(cases)} faults, {results['trials']} trials: {results['as expected']} as expected,"
        f" {results['wrong bytes']} with wrong bytes under a final name, {results['hang']} hangs,"
        f" {results['skipped']} faults skipped; {results['seconds']} s"
    )
    return 0 if results["as expected"] == results["trials"] else 1


if __name__ == "__main__":
    sys.exit(main())
