"""Received data sets: taken whole, or refused with a status, whatever they are."""

from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from parotid_seg.node.received_objects import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    OUT_OF_RESOURCES,
    OVER,
    Refused,
    Spool,
    identify,
)
from tests.node.peers import NAME, make_series

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless)


@pytest.fixture(params=SYNTAXES, ids=[syntax.name for syntax in SYNTAXES])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str, str]:
    """A file, and the UIDs that its request would name."""
    path = make_series(tmp_path / "ct", 1, transfer_syntax=request.param)[0]
    found = pydicom.dcmread(path)
    return path, str(found.SOPClassUID), str(found.SOPInstanceUID), str(found.SeriesInstanceUID)


def test_a_whole_object(image: tuple[Path, str, str, str]) -> None:
    path, sop_class, sop_instance, series = image
    found = identify(path, sop_class, sop_instance)
    assert (found.sop_class, found.sop_instance, found.series) == (sop_class, sop_instance, series)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_object(image: tuple[Path, str, str, str], share: float) -> None:
    path, sop_class, sop_instance, _ = image
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(Refused) as refusal:
        identify(path, sop_class, sop_instance)
    assert refusal.value.status in (CANNOT_UNDERSTAND, DOES_NOT_MATCH)


def test_another_object_than_named(image: tuple[Path, str, str, str]) -> None:
    path, sop_class, sop_instance, _ = image
    for named in ((sop_class, "1.2.3"), ("1.2.3", sop_instance)):
        with pytest.raises(Refused) as refusal:
            identify(path, *named)
        assert refusal.value.status == DOES_NOT_MATCH


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_objects_are_taken_or_refused_and_name_nobody(
    image: tuple[Path, str, str, str], data: DataObject
) -> None:
    path, sop_class, sop_instance, _ = image
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(132, len(content) - 1))
        content[place : place + 4] = data.draw(st.binary(min_size=0, max_size=8))
    damaged = path.with_name("damaged.dcm")
    damaged.write_bytes(content)
    reason = ""
    try:
        identify(damaged, sop_class, sop_instance)
    except Refused as refusal:
        reason = refusal.reason
    assert NAME not in reason


def test_a_spool_that_fills_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a.dcm", 1 << 20, lambda: b"head")
    spool.write(b"first")
    assert (tmp_path / "a.dcm").exists()
    spool._file.close()
    spool._file = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
    assert spool.write(b"second") == 6
    spool.write(b"third")
    with pytest.raises(Refused, match=r"cannot be written \(No space left on device\)") as refusal:
        spool.finish()
    assert refusal.value.status == OUT_OF_RESOURCES
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_was_let_go_takes_nothing_more(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a.dcm", 1 << 20, lambda: b"head")
    spool.write(b"first")
    spool.discard(OVER)
    spool.write(b"second")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Refused, match="its association is over"):
        spool.finish()


def test_a_spool_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no data set"):
        Spool(tmp_path / "a.dcm", 1 << 20, lambda: b"head").finish()
