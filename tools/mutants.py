"""Change the source in one place at a time and see whether a test notices.

    python -m tools.mutants --seed 1 --room weights

A room is a folder of src/worker, or "top" for files in none; "all" is every room. The seed picks
the changes: one operator, constant, branch, statement or named argument each, and none that a
caller could not notice (words for people, types, declarations: tools/mutation/unseen.py). Each is
written into a private copy of the project, so that processes started by tests see it too. There the
tests that run the changed line are run, the likeliest and cheapest first and each with a time
limit, until one fails or hangs. Which tests run which line is recorded once and kept in
out/mutants/ as long as neither the tests nor the source that they run change; a test that takes
over a minute is left out.

What no test notices is printed. If a caller sees no difference, it belongs in
tools/equivalents.toml, with the reason; everything else needs a test. The status is 1 when a room
is below 95 %.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from tools.mutation import equivalents, record, report
from tools.mutation.choose import Mutant, find_rooms, pick_mutants
from tools.mutation.copy import Project
from tools.mutation.plan import Atlas
from tools.mutation.record import Record
from tools.mutation.report import Room
from tools.mutation.trial import Outcome, Worker, distribute, start_workers

ROOT: Final = Path(__file__).parent.parent
LEAST: Final = 0.95
COUNT: Final = 20
ALL: Final = "all"


def main(arguments: Sequence[str] | None = None, project: Project | None = None) -> int:
    """Pick mutants, try them, print what survives; return the exit status."""
    project = project or Project(ROOT)
    folder = project.root / project.source
    names = list(find_rooms(folder))
    parser = argparse.ArgumentParser(prog="mutants", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", choices=[ALL, *names], default=ALL)
    parser.add_argument("--count", type=int, default=COUNT, help="mutants to try per room")
    parser.add_argument("--workers", type=int, default=1, help="copies to try mutants in at once")
    parser.add_argument("--tests", default="*", help="only test files of this name, such as *push*")
    parser.add_argument("--list", action="store_true", help="show what the seed picks, try nothing")
    given = parser.parse_args(arguments)
    listed = equivalents.read_list()

    def is_listed(mutant: Mutant) -> bool:
        return any(entry.covers(mutant) for entry in listed)

    picked = {
        name: pick_mutants(folder, name, given.seed, given.count, is_listed)
        for name in (names if given.room == ALL else [given.room])
    }
    if given.list:
        for mutant in (mutant for mutants in picked.values() for mutant in mutants):
            say(report.format_survivor(Outcome(mutant, "unreached"), project.source))
        return 0
    start = time.monotonic()
    with start_workers(project, given.workers) as staff:
        files = [file for file in project.test_files if fnmatch(Path(file).name, given.tests)]
        records = load_records(project, files, staff)
        left_out = [
            f"left out, as it fails without a change: {name}"
            for record in records
            for name in record.failing
        ]
        atlas = Atlas(folder, records, project.root / project.tests)
        done = [try_room(name, some, atlas, staff, is_listed) for name, some in picked.items()]
    stale = equivalents.find_stale(listed, folder)
    say("\n".join([*left_out, report.format_report(done, project.source, stale)]))
    out = project.root / "out/mutants" / f"{given.room}-{given.seed}.json"
    report.write(done, out, {"seed": given.seed, "seconds": round(time.monotonic() - start)})
    return 0 if all(room.score >= LEAST for room in done) else 1


def load_records(project: Project, files: Sequence[str], staff: Sequence[Worker]) -> list[Record]:
    """Return a recording of every test file, made where no valid one is kept."""
    folder = project.root / "out/mutants/reach"
    places = {file: folder / f"{file.replace('/', '-')}.json" for file in files}
    found = {
        file: kept for file, path in places.items() if (kept := record.read(project, file, path))
    }
    missing = [file for file in files if file not in found]

    def record_one(worker: Worker, file: str) -> Record:
        made = worker.record(file)
        if not made.failing:  # a failure may be the machine's
            # the worker's own copy: the project may have changed meanwhile, and other copies have
            # marks in them while something is recorded there
            record.write(worker.project, file, made, places[file])
        return made

    for file, made in distribute(staff, missing, record_one):
        found[file] = made
        seconds = sum(test.seconds for test in made.tests)
        say(f"recorded {file}: {len(made.tests)} tests, {seconds:.1f} s")
    return [found[file] for file in files]


def try_room(
    name: str,
    mutants: Sequence[Mutant],
    atlas: Atlas,
    staff: Sequence[Worker],
    is_listed: Callable[[Mutant], bool],
) -> Room:
    """Try the mutants of a room that are not listed as equivalent."""
    to_try = [mutant for mutant in mutants if not is_listed(mutant)]
    outcomes: dict[Mutant, Outcome] = {}

    def try_one(worker: Worker, mutant: Mutant) -> Outcome:
        tests = atlas.find_tests(mutant)
        return worker.try_mutant(mutant, tests, [] if tests else atlas.find_nearby(mutant))

    for mutant, outcome in distribute(staff, to_try, try_one):
        outcomes[mutant] = outcome
        file, _, _, after = mutant.key
        place = f"{file}:{mutant.mutation.line(mutant.source)}"
        say(f"{outcome.result:<9} {outcome.seconds:5.1f} s {place}: {after[:70]}")
    return Room(name, [outcomes[m] for m in to_try], len(mutants) - len(to_try))


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    # exit by an exception, so that copies and processes are removed
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
