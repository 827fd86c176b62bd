"""The command line: python -m worker doctor | prepare | push | run."""

import argparse
import json
import sys
from collections.abc import Sequence

from worker import log, preflight, settings
from worker.errors import WorkerError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(prog="python -m worker", description="The worker's own commands.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor = commands.add_parser("doctor", help="check this machine and say what to change")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of lines")
    commands.add_parser("run", help="serve jobs, as handler.py does")
    return top


def doctor(*, as_json: bool) -> int:
    """Print every finding of the preflight; return 1 when one is fatal."""
    findings = preflight.check(settings.read())
    broken = preflight.fatal(findings)
    if as_json:
        listed = [finding.as_json() for finding in findings]
        print(json.dumps({"ok": not broken, "findings": listed}, indent=2))  # noqa: T201 - its output
        return int(bool(broken))
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        advice = f"  -> {finding.change}" if finding.change else ""
        print(f"{finding.level:<7} {finding.check:<{width}}  {finding.found}{advice}")  # noqa: T201
    return int(bool(broken))


def run() -> int:
    """Boot and serve until told to stop; return the exit code."""
    from worker import boot, loop  # noqa: PLC0415 - torch and the SDK only where they are needed

    return loop.run(settings.read(), boot.boot)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; return its exit code."""
    given = parser().parse_args(arguments)
    log.configure()
    try:
        if given.command == "doctor":
            return doctor(as_json=given.json)
        return run()
    except WorkerError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)  # noqa: T201 - its output
        return 1


if __name__ == "__main__":
    sys.exit(main())
