"""`python -m validation [NAME …|all]`: predictions against reality, with the errors.

Exits 1 when an error leaves its bound, or, with --no-regress FILE, only when an error has
grown by more than a tenth since that file was written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from specsim.cli.output import strict
from specsim.errors import SpecsimError
from validation.comparisons import COMPARISONS, available, run
from validation.report import as_json, regressions, write
from validation.rows import missed


def main(arguments: list[str] | None = None) -> int:
    """Run comparisons; see the module."""
    parser = argparse.ArgumentParser(prog="python -m validation", description=__doc__)
    parser.add_argument("names", nargs="*", default=["all"], metavar="NAME",
                        help=f"{', '.join(COMPARISONS)} or all")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--write", type=Path, metavar="DIR",
                        help="write accuracy.md, accuracy.json and figures there")  # fmt: skip
    parser.add_argument("--no-regress", type=Path, metavar="FILE",
                        help="fail only on errors that grew since this accuracy.json")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (SpecsimError, OSError, ValueError) as problem:
        print(f"Error: {' '.join(str(problem).split())}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    names = available() if "all" in options.names else options.names
    unknown = [name for name in names if name not in available()]
    if unknown:
        raise ValueError(f"unknown comparison {unknown[0]!r}; expected {', '.join(available())}")
    before = None
    if options.no_regress is not None:
        before = json.loads(options.no_regress.read_text(encoding="utf-8"))
    comparisons = []
    for name in names:
        start = time.monotonic()
        comparisons.append(run(name))
        print(f"{name}: {len(comparisons[-1].rows)} rows in {time.monotonic() - start:.1f} s",
              file=sys.stderr)  # fmt: skip
    document = strict(as_json(comparisons))
    if options.write is not None:
        for path in write(comparisons, options.write):
            print(f"wrote {path}", file=sys.stderr)
    if options.json:
        print(json.dumps(document, allow_nan=False, ensure_ascii=False))
    else:
        for comparison in comparisons:
            summary = comparison.as_dict()
            verdict = {True: "all bounds kept", False: "bounds missed", None: "nothing to test"}
            print(f"{comparison.name}: {verdict[comparison.passed]}"
                  + (f", median error {100 * summary['median_error']:.1f} %"
                     if summary["median_error"] is not None else ""))  # fmt: skip
    failed = [f"{c.name}: {row.name}: {row.error:.4f} > {row.bound}"
              for c in comparisons for row in missed(c.rows)]  # fmt: skip
    grown = [] if before is None else regressions(document, before)
    for line in failed:
        print(f"missed: {line}", file=sys.stderr)
    for line in grown:
        print(f"regressed: {line}", file=sys.stderr)
    return int(bool(grown)) if before is not None else int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
