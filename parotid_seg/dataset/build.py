"""`parotid-seg dataset`: DICOM folders to a data set in nnU-Net's raw layout.

Contours come first, then the lists of patients, then the scans without contours: which of those may be trained on
depends on the lists. dataset.json is written last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.dataset.cases import ENDING, Making
from parotid_seg.dataset.dataset_options import DEFAULTS, DataSetOptions
from parotid_seg.dataset.find_scans import (
    FILE,
    MODALITY,
    SERIES,
    CandidateScan,
    NotUsed,
    find_candidates,
    write_left_out,
)
from parotid_seg.dataset.private import ABSENT, LABELLED, UNLABELLED, DataSetCase, Private, locked_data_set, write_cases
from parotid_seg.dataset.roi_names import RoiNames, read_names
from parotid_seg.dataset.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    Splits,
    assign,
    check_counts,
    check_test_patients,
    listed,
    roles_of,
)
from parotid_seg.errors import InputError, OptionError
from parotid_seg.files import is_taken, make_folder_in
from parotid_seg.records import write_record
from parotid_seg.scan.label_set import DESCRIPTION, read_splits
from parotid_seg.wording import Progress, Say, counted, some_of


@dataclass(frozen=True)
class Built:
    """The result of a run.

    Attributes:
        labelled, unlabelled: number of cases, those of earlier runs included.
        made: cases that this run made, or made again.
        flagged: labelled cases whose labels need review, see "look_at_it" and "notes" in cases.csv.
        left_out: files, series, structure sets and ROIs that were not used.
        look_at: those of them that look usable and need review.
        private: the folder that lists them.
    """

    labelled: int
    unlabelled: int
    made: int
    flagged: int
    left_out: int
    look_at: int
    private: Path

    @property
    def exit_status(self) -> int:
        """0 all done, 3 something that looks usable was not used, 1 there is no case at all."""
        if not self.labelled + self.unlabelled:
            return 1
        return 3 if self.look_at else 0


def build(
    dicom: Sequence[Path],
    out: Path,
    options: DataSetOptions = DEFAULTS,
    *,
    say: Say = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Built:
    """Make a data set, or continue one: existing cases of the same images and contours stay as they are.

    Args:
        dicom: folders and files, searched at any depth.
        out: the data set's folder, made if missing.
        options: see `DataSetOptions`.
        say: called with a line for each new case, and for each unused item that needs review.
        progress: called with the name of a step, the amount done, and the total amount.

    Raises:
        InputError: if an argument is wrong, there is no CT series, or `out` holds something else.
        OutputError: if a file cannot be written, cases finished before stay; or if DATA.private is a link.
    """
    names = RoiNames(options.labels, read_names(options.names) if options.names else {})
    data = out.resolve()
    beside = options.private.resolve() if options.private else data.with_name(f"{data.name}.private")
    if not options.private and is_taken(beside):
        make_folder_in(beside.parent, beside.name)  # refuses a link
    if beside.is_relative_to(data):
        raise OptionError(f"--private: {beside}: lies in the data set, which may be passed on; expected another place")
    not_used: list[NotUsed] = []

    def skip(item: NotUsed) -> None:
        not_used.append(item)
        if item.review:
            say(f"not used: {item}")

    progress("headers", 0, 1)
    candidates = find_candidates(dicom, (data, beside), names, options, skip, say)
    if not candidates:
        raise InputError(
            f"{', '.join(map(str, dicom))}: found no {MODALITY} series, expected DICOM studies{_in_short(not_used)}"
        )
    with locked_data_set(data, beside, names.labels) as private:
        making = Making(data, private, names.labels, say, progress, skip)
        making.forget_lost()
        cases = making.cases_of(candidates)
        earlier = read_splits(data / "splits.json")
        _check_lists(private, earlier, [case for each, case in cases.items() if each.contoured], options)
        scans = making.labelled(cases)
        splits, roles = _lists(private, earlier, options)
        _say_others(private, cases.values(), say)
        _say_lists(private, splits, options, say)
        making.unlabelled(scans, roles)
        write_record(splits, data / "splits.json")
        write_cases(private, roles, _identities(cases) if options.identify else {}, beside / "cases.csv")
        write_left_out(not_used, beside / "left_out.csv")
        write_record(_description(data, private, splits), data / DESCRIPTION)
        counts = Counter(case.kind for case in private.cases.values())
    look_at = sum(found.review for found in not_used)
    flagged = sum(case.kind == LABELLED and case.to_look_at for case in private.cases.values())
    return Built(counts[LABELLED], counts[UNLABELLED], making.made, flagged, len(not_used), look_at, beside)


def _in_short(not_used: Sequence[NotUsed]) -> str:
    """The first of the files and series that are not used, for an error; folders of series come first."""
    files = [each for each in not_used if each.kind in (FILE, SERIES)]
    files.sort(key=lambda each: not each.place.is_dir())
    return f"; not used: {some_of(map(str, files), 2, '; ')}" if files else ""


def _check_lists(private: Private, earlier: Splits, contoured: Sequence[DataSetCase], options: DataSetOptions) -> None:
    """Check the lists of patients and how many are to be held out, before anything is converted.

    Args:
        private: all cases.
        earlier: content of splits.json.
        contoured: cases of scans with contours, of which some may turn out to be unusable.
        options: how many patients to hold out.

    Raises:
        InputError: if a patient is in two lists, a test patient is in another one, or too many are to be held out.
    """
    everyone = {case.name: case.patient for case in private.cases.values()}
    check_test_patients(everyone, private.lists, earlier)
    roles = private.lists | roles_of(everyone, earlier)
    people = {case.patient for case in contoured}
    people |= {case.patient for case in private.cases.values() if case.kind == LABELLED}
    people |= {patient for patient, role in roles.items() if role == TEST}
    check_counts(len(people), roles, options.validation, options.test)


def _say_others(private: Private, found: Iterable[DataSetCase], say: Say) -> None:
    """Print which cases stay although their scans are not among those of this run."""
    names = {case.name for case in found}
    if others := [case.name for case in private.cases.values() if case.kind != ABSENT and case.name not in names]:
        say(f"of earlier runs, and not among these scans: {counted(len(others), 'case')}, kept ({some_of(others)})")


def _say_lists(private: Private, splits: Splits, options: DataSetOptions, say: Say) -> None:
    """Print who is held out, and what differs from what was asked for."""
    held_out = len({private.cases[name].patient for name in splits[VALIDATION] if name in private.cases})
    locked = sum(role == TEST for role in private.lists.values())
    if away := locked - len({private.cases[name].patient for name in splits.get(TEST, ()) if name in private.cases}):
        say(f"{away} of {locked} locked patients have no scans with contours here now; --test counts them, too")
    if options.validation is not None and held_out != options.validation:
        say(f"{held_out} patients are held out, not {options.validation}: each stays in the list he or she was in")
    if locked < options.test:
        say(
            f"--test {options.test}: {locked} locked in all, and no further new patients to lock; the others stay in "
            "their lists. To lock more, add new patients and give the same command again"
        )
    for name in (VALIDATION, TEST):
        if splits.get(name):
            say(f"{name}: {', '.join(splits[name])}")
    if not (splits[TRAIN] and splits[VALIDATION]):
        counts = f"found {len(splits[TRAIN])} for training and {len(splits[VALIDATION])} for validation"
        say(f"too few patients with contours to train on labels: {counts}, expected at least 1 of each")


def _lists(private: Private, earlier: Splits, options: DataSetOptions) -> tuple[Splits, dict[str, str]]:
    """The lists of cases, and the list of each patient, which is remembered."""
    everyone = {case.name: case.patient for case in private.cases.values()}
    labelled = {case.name: case.patient for case in private.cases.values() if case.kind == LABELLED}
    roles = private.lists | roles_of(everyone, earlier)
    roles |= assign(labelled, roles, options.validation, options.test)
    private.lists = roles
    private.save()
    splits = listed(labelled, roles)
    for name, cases in earlier.items():  # added by a user
        splits.setdefault(name, []).extend(case for case in cases if case not in everyone)
    return splits, roles


def _description(data: Path, private: Private, splits: Splits) -> dict[str, object]:
    """The content of dataset.json."""
    cases = [case for case in private.cases.values() if case.kind == LABELLED]
    values = {"background": 0} | {label: value for value, label in enumerate(private.labels, start=1)}
    counts = {
        "patients": len({case.patient for case in cases}),
        **{name: len(listed) for name, listed in splits.items()},
        "unlabelled": sum(case.kind == UNLABELLED for case in private.cases.values()),
        "contoured": {label: sum(label in case.labels for case in cases) for label in private.labels},
    }
    return {
        "name": data.name,
        "channel_names": {"0": MODALITY},
        "labels": values,
        "numTraining": len(list((data / "imagesTr").glob(f"*_0000{ENDING}"))),
        "file_ending": ENDING,
        "counts": counts,
    }


def _identities(cases: Mapping[CandidateScan, DataSetCase]) -> dict[str, dict[str, str]]:
    """Patient ID and UIDs of each case of this run."""
    return {
        case.name: {
            "patient_id": candidate.patient_id or candidate.patient,
            "study_uid": candidate.series.study_uid,
            "series_uid": candidate.series.series_uid,
        }
        for candidate, case in cases.items()
    }
