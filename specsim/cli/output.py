"""What all commands share: strict JSON on stdout, warnings and errors on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from specsim import __version__

#: Version of the JSON that commands print; grows when a key changes its meaning.
JSON_SCHEMA_VERSION = 1

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def print_json(result: Mapping[str, Any]) -> None:
    """One strict JSON object: NaN and infinity become null."""
    document = {"schema_version": JSON_SCHEMA_VERSION, "specsim_version": __version__, **result}
    sys.stdout.write(json.dumps(strict(document), allow_nan=False, ensure_ascii=False) + "\n")


def strict(value: Any) -> Any:
    """`value` in plain JSON types: numpy scalars and arrays unwrapped, non-finite → None."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy scalar or array
        return strict(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def warn(code: str, message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"Warning [{code}]: {message}\n")


def error(message: str) -> None:
    """The one line that a failed command prints, on stderr."""
    sys.stderr.write(f"Error: {' '.join(message.split())}\n")


def print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Right-aligned columns, two spaces apart; the first column is left-aligned."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with a header, as CSV on stdout; lists are joined with spaces."""
    import csv

    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({
            key: " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            for key, value in row.items()
        })  # fmt: skip
