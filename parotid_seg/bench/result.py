"""The results of `parotid-seg bench` as stored in bench.json; docs/bench.md describes every field."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from parotid_seg.bench.end_to_end import EndToEnd
from parotid_seg.bench.mask_parity import EngineParity
from parotid_seg.bench.roofline import Peaks, Roofline
from parotid_seg.bench.stats import Latency
from parotid_seg.records import finite_or_none, record_text
from parotid_seg.runtime.engines.base import ExecutionInfo

if TYPE_CHECKING:
    from parotid_seg.bench.layers import Layers

SCHEMA = "parotid-seg bench"
SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Speed:
    """One engine at one batch size.

    Attributes:
        batch_size: samples at once.
        chunks: number of different chunks in the rotation.
        slices: that a chunk labels.
        real, noise: of chunks of scans and of noise, one at a time.
        ahead_ms: milliseconds per chunk with several under way; None where the engine takes one at a time.
        median_ms: of rounds in which the machine was undisturbed (see `machine_probe`), with as many in flight as the
            engine takes.
        slices_a_second: at that median.
        spread: half the width of the 95 % interval of that median, over the median.
        undisturbed: share of such rounds.
        rounds_ms, transfers_ms: median of each round, and time of a transfer between the machine's cores around it, by
            launch of the process; what `bench compare` compares.
        peak_mib: largest resident set of the process, with engine and inputs, with batches up to this size.
        gpu_mib: more memory of the GPU in use than before the process started; None on the CPU.
        roofline: how close it comes to the machine's peaks; None where there is no peak to set it against.
        parity: comparison of its masks with the model file's; None where there was nothing to compare with.
    """

    batch_size: int
    chunks: int
    slices: int
    real: Latency
    noise: Latency
    ahead_ms: float | None
    median_ms: float
    slices_a_second: float
    spread: float
    undisturbed: float
    rounds_ms: tuple[tuple[float, ...], ...]
    transfers_ms: tuple[tuple[float, ...], ...]
    peak_mib: float
    gpu_mib: float | None
    roofline: Roofline | None
    parity: EngineParity | None


@dataclass(frozen=True)
class Row:
    """One engine.

    Attributes:
        name: for example "OpenVINO BF16".
        ran: what really ran.
        cold_s: from starting a process to the first chunk's labels, of each launch.
        warm_s: to load the model once more in the same process, with a first chunk.
        speeds: by batch size.
        end_to_end: times from scan files to mask files; None if it failed.
        layers: see `layers.Layers`; None unless asked for.
    """

    name: str
    ran: ExecutionInfo
    cold_s: tuple[float, ...]
    warm_s: tuple[float, ...]
    speeds: tuple[Speed, ...]
    end_to_end: EndToEnd | None
    layers: Layers | None

    @property
    def best(self) -> Speed:
        """The batch size of the most slices per second."""
        return max(self.speeds, key=lambda speed: speed.slices_a_second)


@dataclass(frozen=True)
class Result:
    """One run of `parotid-seg bench`.

    Attributes:
        made: date and time, UTC.
        machine: processor, cores, memory, GPU, versions; its state before and after.
        model: file, hash, precision, cost of a sample.
        inputs: the scans that were measured with.
        peaks: the machine's peaks, by device.
        rows: the engines.
        left_out: engines and batch sizes that could not be measured, and why.
        remarks: what may have disturbed the measurement.
    """

    made: str
    machine: dict[str, Any]
    model: dict[str, Any]
    inputs: dict[str, Any]
    peaks: dict[str, Peaks]
    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]

    @property
    def all_same(self) -> bool:
        """Whether everything that was asked for was measured and gives the model's masks."""
        parities = [speed.parity for row in self.rows for speed in row.speeds]
        return not self.left_out and all(parity is None or parity.within for parity in parities)

    def to_json(self) -> str:
        """As JSON text; what is not finite becomes null."""
        content = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(self)}
        return record_text(finite_or_none(content))
