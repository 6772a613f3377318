"""One table of the tables that the shares wrote, and which scans are in none of them, or in several.

    python3 gather.py scans.txt masks > summary.csv

It needs Python 3.9 and nothing else. Exit status 1 if a scan is missing (do its share again), or is in several (the
list or the number of shares has changed: remove the folders of shares that are out of date, and do the others again).
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


def repeated(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    """Scans in the tables of several shares, with these."""
    shares: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        shares.setdefault((row["source"], row.get("series") or ""), {})[row["share"]] = None
    return {" ".join(filter(None, scan)): list(found) for scan, found in shares.items() if len(found) > 1}


def main(scans: str, masks: str) -> int:
    """Write the table to stdout, and what is missing or repeated to stderr."""
    rows = rows_of(Path(masks))
    columns = dict.fromkeys(column for row in rows for column in row)  # a share that failed as a whole has fewer
    sys.stdout.reconfigure(encoding="utf-8", newline="")
    writer = csv.DictWriter(sys.stdout, list(columns), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    # Names that are no UTF-8 are in the tables as escapes, too. Lines end as in share.sh, at line feeds only.
    listed = Path(scans).read_bytes().decode("utf-8", errors="backslashreplace").split("\n")
    lost, several = missing([line.removesuffix("\r") for line in listed], rows), repeated(rows)
    for scan in lost:
        print(f"missing: {scan}", file=sys.stderr)
    for scan, shares in several.items():
        print(f"in several shares: {scan} (shares {', '.join(shares)})", file=sys.stderr)
    return 1 if lost or several else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: gather.py LIST OUT")
    sys.exit(main(*sys.argv[1:]))
