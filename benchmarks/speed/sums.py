"""What many scans cost, from what was measured of few: core-hours, money, bytes, and what is in the way first.

    python benchmarks/speed/sums.py benchmarks/results/DATE-cluster.json [--price 0.04]

Takes the parts `cores` and `tasks` of benchmarks/speed/cluster.py and prints Markdown. More cores are taken to do
proportionally more, which was measured for two.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FLEETS = {"2 cores": 2, "16 cores": 16, "64 cores": 64, "16 x 64 cores": 1024}
SCANS = (10**3, 10**4, 10**5, 10**6, 10**7)
STORAGE_MB_S = {"1 Gbit/s network": 110, "10 Gbit/s network": 1100, "parallel file system, 10 GB/s": 10_000}
SCANS_A_TASK = 2


def time(hours: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("days", 24.0), ("h", 1.0)):
        if hours >= 2 * size:
            return f"{hours / size:,.0f} {unit}"
    return f"{hours * 60:,.0f} min"


def table(header: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def sums(found: dict[str, Any], price: float) -> str:
    """The tables.

    Args:
        found: what benchmarks/speed/cluster.py wrote.
        price: of a core for an hour.
    """
    kinds = {name: (each["seconds_a_case"], each) for name, each in found["cores"].items()}
    parts = []
    for name, (core_s, each) in kinds.items():
        read, written = each["mb_read"], each["mb_written"]
        parts.append(f"{name}: {core_s:.2f} s of a core a scan, {read:.1f} MB read, {written:.2f} MB written.\n")
        rows = [
            [
                f"{scans:,}",
                f"{scans * core_s / 3600 * price:,.2f}",
                *(time(scans * core_s / 3600 / cores) for cores in FLEETS.values()),
                f"{scans * read / 1e3:,.1f}",
                f"{scans * written / 1e3:,.1f}",
            ]
            for scans in SCANS
        ]
        parts.append(table(["scans", f"cost at {price:g} a core-hour", *FLEETS, "GB read", "GB written"], rows))
    limits = [
        [place, *(f"{speed / each['mb_read'] * core_s:,.0f}" for core_s, each in kinds.values())]
        for place, speed in STORAGE_MB_S.items()
    ]
    handed = found["tasks"]["done_a_second"] * SCANS_A_TASK
    limits.append(
        [f"Ray's client, {handed:,.0f} scans/s", *(f"{handed * core_s:,.0f}" for core_s, _ in kinds.values())]
    )
    parts.append("Cores at which something else is in the way first:\n")
    parts.append(table(["", *kinds], limits))
    return "\n".join(parts)


def main() -> None:
    """Print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--price", type=float, default=0.04, help="of a core for an hour")
    arguments = parser.parse_args()
    print(sums(json.loads(arguments.result.read_text()), arguments.price))


if __name__ == "__main__":
    main()
