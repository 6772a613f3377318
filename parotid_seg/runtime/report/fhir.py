"""report.json: the report for machines, in the shape of FHIR R4.

A `Bundle` of type "collection" holds for each case, worst first,

- a `DiagnosticReport`: `identifier` the case's name, `status` "preliminary" ("cancelled" for a case that failed, its
  `conclusion` then tells why), `issued` the time of the report, `conclusion` the flags joined by "; ",
  `conclusionCode` each flag by its code (see `flags.FlagCode`) with the structure it is about and its value as
  extensions, `result` references to its observations;
- an `Observation` for each structure: `status` "preliminary", `code` the volume (SNOMED CT 118565006), `bodySite` the
  parotid gland (SNOMED CT 45289007; other structures by name only) with its side (SNOMED CT 7771000, 24028007) in
  HL7's extension "observation-structureLaterality", `valueQuantity` in mL (UCUM), `device` the engine and the model's
  hash, and as `component` the agreement of both looks, if there were two;
- for both glands an `Observation` of the ratio of the larger to the smaller volume.

There is no `subject`: the file says nothing about who the patient is. Whoever knows adds it. Only with `--identify`
each DICOM case of the run has a `Patient` (`name`, `identifier`, `birthDate`), the `subject` of all its resources.

Codes of SNOMED CT are those that DICOM (PS3.16) uses for sites, sides and measurements. Resources are addressed by
UUIDs that follow from case and mask (or from the file that failed), so that the same results have the same addresses.
Characters that cannot be seen, which a FHIR string must not hold, are told by their numbers.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from parotid_seg.files import visible
from parotid_seg.flags import Flag
from parotid_seg.records import record_text
from parotid_seg.runtime.report.cases import Judged
from parotid_seg.runtime.report.flag_text import sentence, sentences
from parotid_seg.runtime.report.patients import Patient
from parotid_seg.scan.labels import is_parotid, plain_name, side_of

SNOMED, UCUM = "http://snomed.info/sct", "http://unitsofmeasure.org"
VOLUME, PAROTID = ("118565006", "Volume"), ("45289007", "Parotid gland")
SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
LATERALITY = "http://hl7.org/fhir/StructureDefinition/observation-structureLaterality"
FLAG = "urn:parotid-seg:flag"
"""System of the flags' codes, and the beginning of their extensions' addresses."""
NAMESPACE = uuid.UUID("6f3c1c0e-6d53-4d0b-9d0e-3b5c0f7f2a51")

Resource = dict[str, Any]


def bundle(cases: Sequence[Judged], when: datetime) -> str:
    """The file's text.

    Args:
        cases: in the report's order.
        when: the time of the report, with its zone.
    """
    issued = when.isoformat(timespec="seconds")
    entries = [entry for case in cases for entry in _of_case(case, issued)]
    content = {"resourceType": "Bundle", "type": "collection", "timestamp": issued, "entry": entries}
    return record_text(content)


def _of_case(case: Judged, issued: str) -> list[Resource]:
    observations = [] if case.failed else [_volume(case, name) for name in case.entry.volumes_ml]
    if case.ratio and not case.failed:
        observations.append(_ratio(case))
    entries = [_entry(case, str(number), resource) for number, resource in enumerate(observations)]
    report = {
        "resourceType": "DiagnosticReport",
        "identifier": [{"value": visible(case.name)}],
        "status": "cancelled" if case.failed else "preliminary",
        "code": {"text": "Segmentation of the parotid glands"},
        "issued": issued,
    }
    if entries:
        report["result"] = [{"reference": entry["fullUrl"]} for entry in entries]
    if case.patient:
        patient = _entry(case, "patient", _who(case.patient))
        for resource in (report, *observations):
            resource["subject"] = {"reference": patient["fullUrl"]}
        entries.append(patient)
    conclusion = case.reason if case.failed else sentences(case.flags)
    if conclusion:
        report["conclusion"] = visible(conclusion)
    if case.flags and not case.failed:
        report["conclusionCode"] = [_flag(flag) for flag in case.flags]
    return [_entry(case, "report", report), *entries]


def _flag(flag: Flag) -> Resource:
    """A flag as a CodeableConcept."""
    coded: Resource = {"coding": [{"system": FLAG, "code": str(flag.code)}], "text": visible(sentence(flag))}
    about: list[Resource] = (
        [{"url": f"{FLAG}:structure", "valueString": visible(flag.structure)}] if flag.structure else []
    )
    if flag.value is not None:
        about.append({"url": f"{FLAG}:value", "valueDecimal": round(flag.value, 4)})
    return {**coded, "extension": about} if about else coded


def _who(patient: Patient) -> Resource:
    """A FHIR Patient. A birth date that is no date is left out: FHIR takes none."""
    who: Resource = {"resourceType": "Patient"}
    if patient.name:
        who["name"] = [{"text": visible(patient.name)}]
    if patient.id:
        who["identifier"] = [{"value": visible(patient.id)}]
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", patient.birth_date):
        who["birthDate"] = patient.birth_date
    return who


def _entry(case: Judged, part: str, resource: Resource) -> Resource:
    content = case.entry.mask_sha256 or case.entry.source
    address = uuid.uuid5(NAMESPACE, json.dumps([case.name, content, part]))
    return {"fullUrl": f"urn:uuid:{address}", "resource": resource}


def _observation(case: Judged, code: Resource, value: Resource) -> Resource:
    entry = case.entry
    ran = ", ".join(filter(None, (entry.backend, entry.device, entry.precision)))
    model = f"model {entry.model}" if entry.model else ""
    return {
        "resourceType": "Observation",
        "status": "preliminary",
        "code": code,
        "valueQuantity": value,
        "device": {"display": visible("; ".join(filter(None, ("parotid-seg", ran, model))))},
    }


def _volume(case: Judged, name: str) -> Resource:
    quantity = {"value": case.entry.volumes_ml[name], "unit": "mL", "system": UCUM, "code": "mL"}
    found = _observation(case, _coded(*VOLUME), quantity)
    site = _coded(*PAROTID) if is_parotid(name) else {}
    found["bodySite"] = {**site, "text": visible(plain_name(name))}
    if side := side_of(name):
        laterality = {"url": LATERALITY, "valueCodeableConcept": _coded(*SIDES[side])}
        found["bodySite"]["extension"] = [laterality]
    if name in case.entry.agreement:
        alike = {"value": case.entry.agreement[name], "system": UCUM, "code": "1"}
        code = {"text": "Agreement with the look in the mirror (DSC)"}
        found["component"] = [{"code": code, "valueQuantity": alike}]
    return found


def _ratio(case: Judged) -> Resource:
    code = {"text": "Ratio of the larger to the smaller parotid gland's volume"}
    return _observation(case, code, {"value": round(case.ratio or 0.0, 3), "system": UCUM, "code": "1"})


def _coded(code: str, display: str) -> Resource:
    return {"coding": [{"system": SNOMED, "code": code, "display": display}]}
