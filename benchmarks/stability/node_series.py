"""Whether a node that does many series holds on to anything: descriptors, threads, child processes, memory.

    python benchmarks/stability/node_series.py --series 2000 --out FILE.json        # network, disk and ledger
    python benchmarks/stability/node_series.py --series 100 --model --out FILE.json # with the packaged model

A node in this process takes made series from a peer in this process, in associations of their own, one after the other.
With `--model` each goes to a worker process as in `parotid-seg listen`; without, a stand-in fails each at once.
"""

from __future__ import annotations

import argparse
import faulthandler
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from resources import held, write_counts

from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.node.ledger import DONE, FAILED, Ledger, short_hash
from parotid_seg.node.listen_options import ListenOptions
from parotid_seg.node.segmenting import segment_with
from parotid_seg.node.send import RequestingAE
from parotid_seg.node.server import listen
from parotid_seg.node.work import Segmented
from parotid_seg.runtime.engines.load import load_backend

SLICES, FEW_SLICES = 8, 2
"""Of a series; with fewer than 8 the model is not asked."""
EVERY = 50
"""Counts are taken after so many series."""
LONGEST_S = 1200.0
"""For a series to be done; of a node that takes longer, the stacks of all threads are printed."""


def series(number: int, slices: int) -> list[Dataset]:
    """A made CT of little size, which shows noise."""
    uid, study = generate_uid(), generate_uid()
    images = []
    for index in range(slices):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
        image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = uid, study, study
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", number + 1, index + 1
        image.ImageOrientationPatient, image.PixelSpacing = [1, 0, 0, 0, 1, 0], [3, 3]
        image.ImagePositionPatient = [0, 0, 3 * index]
        image.Rows = image.Columns = 64
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 1
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        voxels = np.random.default_rng(index).integers(-100, 100, (64, 64))
        image.PixelData = voxels.astype("<i2").tobytes()
        images.append(image)
    return images


def send(port: int, images: list[Dataset]) -> None:
    """Send a series in an association of its own."""
    ae = RequestingAE("TESTER")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    ae.dimse_timeout = 60
    association = ae.associate("127.0.0.1", port)
    answers = [
        association.send_c_store(image).get("Status") if association.is_established else None for image in images
    ]
    if set(answers) != {0}:
        faulthandler.dump_traceback()
        raise SystemExit(f"the node answered {answers}")
    association.release()


def fails(folder: Path, out: Path) -> Segmented:
    """Stands in for the model."""
    return Segmented(reason="made to fail")


def run(count: int, slices: int, segment: Callable[[Path, Path], Segmented], folder: Path) -> list[dict[str, float]]:
    """Send so many series, and wait for each; the counts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ListenOptions(port=port, out=folder, allowed=("TESTER",), quiet_s=0.0, spare_mib=1)
    stop = threading.Event()
    node = threading.Thread(target=listen, args=(options, segment), kwargs={"stop": stop}, daemon=True)
    node.start()
    time.sleep(1.0)
    ledger, counts, begun = Ledger(folder / "state"), [], time.perf_counter()
    for number in range(count):
        images = series(number, slices)
        send(port, images)
        name, end = short_hash(images[0].SeriesInstanceUID), time.monotonic() + LONGEST_S
        while (record := ledger.get(name)) is None or record.status not in (DONE, FAILED):
            time.sleep(0.02)
            if time.monotonic() > end:
                faulthandler.dump_traceback()
                raise SystemExit(f"series {name} is not done after {LONGEST_S:.0f} s")
        if (number + 1) % EVERY == 0 or number + 1 == count:
            time.sleep(0.5)  # for the threads of the last association
            counts.append({"series": number + 1, "seconds": round(time.perf_counter() - begun, 1), **held()})
            print(counts[-1], flush=True)
    stop.set()
    node.join()
    return counts


def main() -> None:
    """Run, write, and fail if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=2000)
    parser.add_argument("--model", action="store_true", help="segment with the packaged model")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    segment = segment_with(load_backend(DEFAULT_MODEL, "onnxruntime")) if options.model else fails
    with tempfile.TemporaryDirectory() as folder:
        slices = SLICES if options.model else FEW_SLICES
        counts = run(options.series, slices, segment, Path(folder) / "node")
    write_counts({"series": options.series, "model": options.model}, counts, options.out)


if __name__ == "__main__":
    main()
