"""Change the source in one place at a time and see whether a test notices.

    python -m tools.mutants --seed 1 --room weights

A room is a folder of src/worker, or "top" for the files that lie in none; "all" is every room. The
seed draws the changes: one operator, constant, branch, statement or named argument each, but none
that a caller could not notice (words for people, types, declarations: tools/mutation/unseen.py).
Each is written into a private copy of the project, so that processes which tests start see it, and
the tests that run the changed line are run there, the likeliest and cheapest first, with a time
limit each, until one fails or hangs. Which tests run which line is recorded once and kept in
out/mutants/ for as long as neither they nor the source that they run change; a test over a minute
is left out.

What no test notices is printed. If nothing that a caller sees is another, it belongs into
tools/equivalents.toml, with the reason; everything else wants a test. The status is 1 when a room
is below 95 %.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from tools.mutation import equivalents, record, report
from tools.mutation.choose import Mutant, chosen, rooms
from tools.mutation.copy import Project
from tools.mutation.plan import Atlas
from tools.mutation.record import Record
from tools.mutation.report import Room
from tools.mutation.trial import Outcome, Worker, shared_out, workers

ROOT: Final = Path(__file__).parent.parent
LEAST: Final = 0.95
COUNT: Final = 20
ALL: Final = "all"


def main(arguments: Sequence[str] | None = None, project: Project | None = None) -> int:
    """Draw mutants, try them, print what survives; return the exit status."""
    project = project or Project(ROOT)
    folder = project.root / project.source
    names = list(rooms(folder))
    parser = argparse.ArgumentParser(prog="mutants", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", choices=[ALL, *names], default=ALL)
    parser.add_argument("--count", type=int, default=COUNT, help="mutants a room")
    parser.add_argument("--workers", type=int, default=1, help="copies that are tried side by side")
    parser.add_argument(
        "--tests", default="*", help="only files of tests of this name, such as *push*"
    )
    parser.add_argument("--list", action="store_true", help="show what the seed draws, try nothing")
    given = parser.parse_args(arguments)
    drawn = {
        name: chosen(folder, name, given.seed, given.count)
        for name in (names if given.room == ALL else [given.room])
    }
    listed = equivalents.listed()
    if given.list:
        for mutant in (mutant for mutants in drawn.values() for mutant in mutants):
            say(report.survivor(Outcome(mutant, "unreached"), project.source))
        return 0
    start = time.monotonic()
    with workers(project, given.workers) as staff:
        files = [file for file in project.test_files if fnmatch(Path(file).name, given.tests)]
        records = recorded(project, files, staff)
        left_out = [
            f"left out, as it fails without a change: {name}"
            for record in records
            for name in record.failing
        ]
        atlas = Atlas(folder, records, project.root / project.tests)
        done = [tried(name, mutants, atlas, staff, listed) for name, mutants in drawn.items()]
    stale = equivalents.stale(listed, folder)
    say("\n".join([*left_out, report.text(done, project.source, stale)]))
    out = project.root / "out/mutants" / f"{given.room}-{given.seed}.json"
    report.written(done, out, {"seed": given.seed, "seconds": round(time.monotonic() - start)})
    return 0 if all(room.score >= LEAST for room in done) else 1


def recorded(project: Project, files: Sequence[str], staff: Sequence[Worker]) -> list[Record]:
    """Return a recording of every file of tests, made where none that is right is kept."""
    kept = project.root / "out/mutants/reach"
    places = {file: kept / f"{file.replace('/', '-')}.json" for file in files}
    found = {
        file: held for file, path in places.items() if (held := record.read(project, file, path))
    }
    missing = [file for file in files if file not in found]
    for file, made in shared_out(staff, missing, Worker.recorded):
        if not made.failing:  # else it may have been the machine
            # not the project itself, which may be at work meanwhile
            record.written(staff[0].project, file, made, places[file])
        found[file] = made
        seconds = sum(test.seconds for test in made.tests)
        say(f"recorded {file}: {len(made.tests)} tests, {seconds:.1f} s")
    return [found[file] for file in files]


def tried(
    name: str,
    mutants: Sequence[Mutant],
    atlas: Atlas,
    staff: Sequence[Worker],
    listed: Sequence[equivalents.Equivalent],
) -> Room:
    """Try the mutants of a room that are not listed as equivalent."""
    wanted = [m for m in mutants if not any(entry.covers(m) for entry in listed)]
    outcomes: dict[Mutant, Outcome] = {}
    for mutant, outcome in shared_out(staff, wanted, lambda w, m: w.tried(m, atlas.reaching(m))):
        outcomes[mutant] = outcome
        file, _, _, after = mutant.key
        place = f"{file}:{mutant.mutation.line(mutant.source)}"
        say(f"{outcome.result:<9} {outcome.seconds:5.1f} s {place}: {after[:70]}")
    return Room(name, [outcomes[m] for m in wanted], len(mutants) - len(wanted))


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    # end as by an error, so that copies and processes go
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
