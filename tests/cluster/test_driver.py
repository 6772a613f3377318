"""How a run is cut into tasks."""

import pytest

pytest.importorskip("ray")

from parotid_seg.cluster.driver import MOST_TASKS, scans_per_task


@pytest.mark.parametrize(
    ("scans", "cpus", "actors", "size"),
    [
        (1, 1, 2, 1),
        (7, 1, 2, 1),
        (200, 1, 2, 2),
        (200, 8, 2, 16),
        (20, 8, 2, 3),
        (200_000, 1, 500, 10),
        (10 * MOST_TASKS, 8, 4, 16),
    ],
)
def test_scans_a_task(scans: int, cpus: int, actors: int, size: int) -> None:
    assert scans_per_task(scans, cpus, actors) == size
