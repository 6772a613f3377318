"""Options that send the cases of a run to a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from parotid_seg.errors import OptionError
from parotid_seg.options import Option, OptionGroup

ADDRESS = re.compile(r"local|auto|[^/:\s]+:\d{1,5}")


@dataclass(frozen=True)
class ClusterOptions(OptionGroup, panel="Cluster"):
    """The cluster and the resources of each worker; without an address the run is local."""

    cluster: Annotated[
        str | None,
        Option(
            "--cluster",
            "Run on a Ray cluster: HOST:PORT of its head, auto (the one this machine is in) or local "
            "(this machine's cores). SCAN and DIR may be URLs then (s3://, gs://).",
            metavar="ADDRESS",
        ),
    ] = None
    worker_cpus: Annotated[
        int | None, Option("--worker-cpus", "With --cluster: cores of each worker. Default: 1.", metavar="N", least=1)
    ] = None
    worker_gpus: Annotated[
        float | None,
        Option(
            "--worker-gpus",
            "With --cluster: GPUs of each worker, or a share such as 0.25. Default: 1 with --device cuda.",
            metavar="N",
            least=0,
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check that the options fit each other.

        Raises:
            OptionError: for an invalid address, an invalid share of GPUs, or worker options without a cluster.
        """
        super().__post_init__()
        if self.cluster is None:
            for option, value in (("--worker-cpus", self.worker_cpus), ("--worker-gpus", self.worker_gpus)):
                if value is not None:
                    raise OptionError(f"{option}: sets the resources of a cluster's worker, expected --cluster as well")
        elif not ADDRESS.fullmatch(self.cluster):
            raise OptionError(f"--cluster: found {self.cluster!r}, expected local, auto or HOST:PORT")
        if self.worker_gpus is not None and self.worker_gpus > 1 and self.worker_gpus % 1:
            raise OptionError(f"--worker-gpus: found {self.worker_gpus:g}, expected 0 to 1, or a whole number")

    @property
    def cpus(self) -> int:
        """Cores of each worker."""
        return 1 if self.worker_cpus is None else self.worker_cpus

    def gpus(self, device: str) -> float:
        """GPUs of each worker whose model runs on "cpu" or "cuda"."""
        return float(device == "cuda") if self.worker_gpus is None else self.worker_gpus
