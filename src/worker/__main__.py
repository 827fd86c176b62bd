"""The command line: python -m worker doctor | playground | prepare | push | run | serve."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker import system
from worker.errors import InvalidSettings, WeightsUnavailable, WorkerError
from worker.finding import Finding


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the complete command line."""
    top = argparse.ArgumentParser(prog="python -m worker", description="The worker's own commands.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor = commands.add_parser("doctor", help="check this machine and say what to change")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of lines")
    commands.add_parser("run", help="serve jobs, as handler.py does")
    commands.add_parser("serve", help="serve HTTP, as SERVE=http does")
    page = commands.add_parser("playground", help="serve the page for an endpoint, on loopback")
    page.add_argument("--endpoint", required=True, metavar="ID", help="the id of a queue endpoint")
    page.add_argument("--port", type=int, metavar="N", help="8000 unless given")
    prepare = commands.add_parser("prepare", help="make a model's bundle, on a volume ahead of use")
    prepare.add_argument("model", metavar="MODEL", help="as the variable MODEL")
    prepare.add_argument("--precision", metavar="P", help="as PRECISION_MODE")
    prepare.add_argument("--out", metavar="DIR", help="as MODEL_DIR")
    push = commands.add_parser("push", help="upload a bundle to a repository of the hub")
    push.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder that prepare printed")
    push.add_argument("repository", metavar="REPO", help="org/name; made private if it is new")
    return top


def doctor(*, as_json: bool) -> int:
    """Print every finding of the preflight and the trials; return 1 when one is fatal."""
    from worker import preflight, settings, trial  # noqa: PLC0415 - the system is checked first

    given = settings.read()
    findings = [*preflight.check(given), *trial.try_bucket(given)]
    findings += trial.try_attention(preflight.find_usable_gpu())
    return show(findings, as_json=as_json)


def show(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print findings, as JSON or a line each; return 1 when one is fatal."""
    broken = [finding for finding in findings if finding.level == "fatal"]
    if as_json:
        listed = [finding.as_json() for finding in findings]
        print(json.dumps({"ok": not broken, "findings": listed}, indent=2))  # noqa: T201 - its output
        return int(bool(broken))
    column = max(len(finding.check) for finding in findings)
    for finding in findings:
        advice = f"  -> {finding.change}" if finding.change else ""
        print(f"{finding.level:<7} {finding.check:<{column}}  {finding.found}{advice}")  # noqa: T201
    return int(bool(broken))


def run(instead: Mapping[str, str] | None = None) -> int:
    """Boot and serve until stopped, as handler.py does; return the exit code.

    `instead` takes precedence over the environment.
    """
    from worker import boot, entrance  # noqa: PLC0415 - torch and the doors only where needed
    from worker.doors import start  # noqa: PLC0415

    return start.run(entrance.open_door, boot.boot, instead=instead)


def open_page(endpoint_id: str, port: int | None) -> int:
    """Serve the page for an endpoint of RunPod's queue until stopped; return the exit code."""
    from worker import log, settings  # noqa: PLC0415 - the system is checked first
    from worker.doors.http import relay  # noqa: PLC0415 - only here

    chosen = settings.read_caller(port)
    log.configure(chosen.log_level)
    try:
        return relay.serve_page(chosen, endpoint_id)
    except OSError as error:
        raise InvalidSettings(f"--port {chosen.http_port}: {error.strerror}") from None


def prepare(model: str, precision: str | None, out: str | None) -> int:
    """Prepare the bundles of MODEL's words and print their folders."""
    from worker import boot, log, settings  # noqa: PLC0415 - torch only where it is needed

    given = {"MODEL": model, "PRECISION_MODE": precision, "MODEL_DIR": out}
    chosen = settings.read(instead={name: value for name, value in given.items() if value})
    log.configure(chosen.log_level)
    for folder in boot.prepare(chosen):
        print(folder)  # noqa: T201 - its output
    return 0


def push(bundle: Path, repository: str) -> int:
    """Upload a bundle with all its components and print the commit."""
    from worker import settings  # noqa: PLC0415 - the system is checked first
    from worker.bundle import layout  # noqa: PLC0415 - only here
    from worker.weights import push as hub  # noqa: PLC0415 - only here

    try:
        verified = layout.verify(bundle, "full")
    except FileNotFoundError:
        raise WeightsUnavailable("push: the folder holds no bundle (no manifest.json)") from None
    print(hub.push(layout.list_files(verified), repository, settings.read()))  # noqa: T201 - its output
    return 0


def answer(given: argparse.Namespace) -> int:
    """Run the command that was given; return its exit code."""
    match given.command:
        case "doctor":
            code = doctor(as_json=given.json)
        case "playground":
            code = open_page(given.endpoint, given.port)
        case "prepare":
            code = prepare(given.model, given.precision, given.out)
        case "push":
            code = push(given.bundle, given.repository)
        case "serve":
            code = run({"SERVE": "http"})
        case _:
            code = run()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = make_parser().parse_args(arguments)
    if fault := system.find_fault():
        return show([fault], as_json=given.command == "doctor" and given.json)
    from worker import log  # noqa: PLC0415 - the system is checked first

    log.configure()
    try:
        return answer(given)
    except WorkerError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)  # noqa: T201 - its output
        return 1


if __name__ == "__main__":
    sys.exit(main())
