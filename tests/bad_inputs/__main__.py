"""Runs rows of the table, each in a process of its own, and prints what was said of each."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
from pathlib import Path

from tests.bad_inputs.check import Trial, complaints
from tests.bad_inputs.server import Server
from tests.bad_inputs.table import ROWS


def main() -> None:
    """Run rows and print them; the exit status says whether all are as they should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to run, with * and ?; all if none are named")
    parser.add_argument("--bad", action="store_true", help="print only what is not as it should be")
    options = parser.parse_args()
    wanted = options.names or ["*"]
    rows = [row for row in ROWS if any(fnmatch.fnmatch(row.name, name) for name in wanted)]
    wrong = 0
    for row in rows:
        # A server that is started for one row is a process of its own.
        with tempfile.TemporaryDirectory() as folder, Server() as server:
            ended, found = complaints(row, Trial.prepare(row, Path(folder)), server)
        wrong += bool(found)
        if found or not options.bad:
            print(
                f"{row.name}: exit {ended.status}, {ended.seconds:.1f} s, {ended.megabytes:.0f} MB"
            )
            print("".join(f"    {line}\n" for line in ended.stderr.splitlines()), end="")
            print("".join(f"    WRONG: {complaint}\n" for complaint in found), end="")
    print(f"{len(rows)} rows, {wrong} not as they should be")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
