"""An actor without its cluster: what it refuses, and that it says so instead of raising."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import nibabel
import pytest

from parotid_seg.cluster.driver_messages import RunRequest
from parotid_seg.cluster.host import ActorConfig, Host, _Cases, load_on_host
from parotid_seg.cluster.ray_executor import model_for_hosts
from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError, OutputError
from parotid_seg.files import hash_file
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import ExecutionInfo
from parotid_seg.runtime.engines.engine_file import read_sidecar
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.model_options import ModelOptions
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, OutputFailure, WorkerConfig
from parotid_seg.version import VERSION
from tests.fakes.sidecars import write_sidecar

MODEL = model_for_hosts(ModelOptions(), InferOptions())
RAN = ExecutionInfo("onnxruntime", "cpu", "fp32")


@pytest.fixture(scope="module")
def contract() -> Contract:
    return read_model(DEFAULT_MODEL).contract


def errand(out: Path, contract: Contract, token: str = "token") -> RunRequest:
    (out / token).touch()
    return RunRequest(WorkerConfig(out, contract, ("decides",), InferOptions(pictures=False)), (), "", token)


def test_another_version_of_the_package() -> None:
    (answer,) = Host(None, "0.0.1")({"jobs": b""})
    said = pickle.loads(answer["answer"])
    assert isinstance(said, OutputFailure)
    assert f"found parotid-seg {VERSION}, expected 0.0.1" in said.message


def test_a_host_that_does_not_see_the_results(tmp_path: Path, contract: Contract) -> None:
    order = ActorConfig(MODEL, errand(tmp_path, contract), 1, RAN)
    (tmp_path / "token").unlink()
    with pytest.raises(OutputError, match="not the folder that the command sees there"):
        _Cases(order)


def test_a_host_that_computes_otherwise(tmp_path: Path, contract: Contract) -> None:
    with pytest.raises(ModelError, match=r"expected .*fp16.* as elsewhere"):
        _Cases(ActorConfig(MODEL, errand(tmp_path, contract), 1, ExecutionInfo("onnxruntime", "cpu", "fp16")))


def test_cases_are_done_and_a_scan_of_no_use_is_told(
    tmp_path: Path, contract: Contract, head: nibabel.Nifti1Image
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    nibabel.save(head.slicer[:, :, 3:15], scans / "s.nii.gz")
    cases = _Cases(ActorConfig(MODEL, errand(tmp_path, contract), 1, RAN))
    jobs = [CaseRequest(Case(name, (scans / f"{name}.nii.gz",)), None) for name in ("s", "gone")]
    ended = {finished.entry.case: finished for finished in cases.do(jobs)}
    assert ended["s"].status == "done", ended["s"].entry.reason
    assert ended["s"].ran.backend.startswith("onnxruntime")
    assert (tmp_path / ended["s"].entry.mask).is_file()
    assert ended["gone"].entry.failure == f"{scans}/gone.nii.gz: no such file, expected the case's channel CT"
    away = [CaseRequest(Case("s", (tmp_path / "elsewhere" / "s.nii.gz",)), None)]
    with pytest.raises(OutputError, match="elsewhere: no such folder, which the command sees"):
        list(cases.do(away))
    cases.end()


def test_a_bug_costs_its_scans_only() -> None:
    class Broken:
        def do(self, jobs: object) -> Iterator[CaseResult]:
            yield CaseResult("done", Entry("a", "/a.nii", "", "done"))
            raise RuntimeError("engine")

        def end(self) -> None:
            pass

    host = Host(None, VERSION)
    host._cases = Broken()  # type: ignore[assignment]
    jobs = [CaseRequest(Case(name, (Path(f"/{name}.nii"),)), None) for name in "abc"]
    said = [pickle.loads(answer["answer"]) for answer in host({"jobs": pickle.dumps(jobs)})]
    assert [(each.entry.case, each.status) for each in said] == [("a", "done"), ("b", "failed"), ("c", "failed")]
    assert said[1].entry.failure.startswith("/b.nii: unexpected RuntimeError on host ")
    assert host._cases is None, "it starts afresh"


def test_an_engine_travels_with_its_sidecar(tmp_path: Path, contract: Contract) -> None:
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"engine")
    write_sidecar(engine, contract)
    model = model_for_hosts(ModelOptions(engine), InferOptions())
    assert (model.backend, model.device) == ("tensorrt", "cuda")
    (tmp_path / "host").mkdir()
    for name, content in model.files.items():
        (tmp_path / "host" / name).write_bytes(content)
    assert read_sidecar(tmp_path / "host" / "m.engine") == read_sidecar(engine)
    engine.unlink()
    with pytest.raises(ModelError, match=r"m\.engine"):
        model_for_hosts(ModelOptions(engine), InferOptions())


def test_the_model_travels_as_bytes() -> None:
    backend = load_on_host(MODEL, 1)
    assert backend.model_sha256 == hash_file(DEFAULT_MODEL)
    backend.close()
