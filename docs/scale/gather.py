"""One table of the tables that the shares wrote, and which scans of the list are in none of them.

    python3 gather.py scans.txt masks > summary.csv

It needs Python 3.9 and nothing else. Exit status 1 if a scan is missing: do its share again.
"""

import csv
import sys
from pathlib import Path


def rows_of(masks: Path) -> list[dict[str, str]]:
    """The rows of all shares, each with the name of its share's folder."""
    found = []
    for table in sorted(masks.glob("*/summary.csv"), key=lambda path: path.parent.name.zfill(9)):
        with table.open(encoding="utf-8", newline="") as file:
            found += [{"share": table.parent.name, **row} for row in csv.DictReader(file)]
    return found


def missing(scans: list[str], rows: list[dict[str, str]]) -> list[str]:
    """Scans without a row. Rows tell files by their whole paths, links followed, and series below their folder."""
    sources = [Path(row["source"]) for row in rows]
    seen = {path for source in sources for path in (source, *source.parents)}
    return [scan for scan in scans if scan and seen.isdisjoint((Path(scan).absolute(), Path(scan).resolve()))]


def main(scans: str, masks: str) -> int:
    """Write the table to stdout and what is missing to stderr."""
    rows = rows_of(Path(masks))
    columns = dict.fromkeys(column for row in rows for column in row)  # a share that failed as a whole has fewer
    sys.stdout.reconfigure(encoding="utf-8", newline="")
    writer = csv.DictWriter(sys.stdout, list(columns), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    # Names that are no UTF-8 are in the tables as escapes, too.
    lost = missing(Path(scans).read_text(encoding="utf-8", errors="backslashreplace").splitlines(), rows)
    for scan in lost:
        print(f"missing: {scan}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: gather.py LIST OUT")
    sys.exit(main(*sys.argv[1:]))
