"""Run the cases on the pretend device: `make pretend-gpu`, a JSON line each and a table.

--only NAME... runs these cases; --write keeps what was seen in bench/results/pretend.json, for
docs/numbers.md and bench/roofline.py. The exit status is 1 when a case has a fault.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Final

import torch

from bench.real_shapes import shapes
from tools.pretend import report
from tools.pretend.cases import list_cases
from tools.pretend.run import run_cases
from worker import log

RESULTS: Final = Path(__file__).resolve().parents[2] / "bench" / "results" / "pretend.json"


def main() -> int:
    """Run the cases and return the exit status."""
    parser = argparse.ArgumentParser(description="the worker's own code on a pretend CUDA device")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--write", action="store_true", help=f"keep the records in {RESULTS.name}")
    given = parser.parse_args()
    log.configure("ERROR")
    torch.set_num_threads(1)
    every = list_cases()
    cases = [case for case in every if not given.only or case.name in given.only]
    if unknown := set(given.only) - {case.name for case in every}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    records = []
    for seen in run_cases(cases, shapes.full()):
        records.append(report.make_record(seen))
        print(json.dumps(records[-1]), flush=True)
    lines = [report.HEADER, ("---",) * len(report.HEADER), *map(report.make_row, records)]
    print(*(f"| {' | '.join(line)} |" for line in lines), sep="\n")
    if given.write:
        RESULTS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    faults = [f"{record['case']}: {fault}" for record in records for fault in record["faults"]]
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
