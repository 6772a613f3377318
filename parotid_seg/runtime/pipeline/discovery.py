"""Finds the scans of a command line, and names their masks.

For a model with several channels, files of one folder named CASE_0000, CASE_0001 ... are one case, as in nnU-Net. Files
without the name of an image may be DICOM; series are identified by their headers, and the series of a study are one
case, even in several folders. `infer` and `inspect` both use this module, so that they agree.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.dicom.read.series import Series, series_key
from parotid_seg.errors import OptionError, ScanError
from parotid_seg.files import exists
from parotid_seg.models import example_folder
from parotid_seg.records import is_plain_name
from parotid_seg.runtime.pipeline.sources import Scan, place_of
from parotid_seg.scan.intensity import is_ct
from parotid_seg.scan.nifti import ENDINGS
from parotid_seg.scan.other_formats import image_name, is_readable, is_segmentation, unread
from parotid_seg.scan.search import STRAY, Searched, Skipped, search

log = logging.getLogger(__name__)

LONGEST_NAME = 230
"""Most bytes of a name; file systems allow 255."""


@dataclass(frozen=True)
class Case:
    """One scan to segment.

    Attributes:
        name: unique in the output folder.
        scan: its sources.
        dose: the file of its planned dose; None without --dose.
    """

    name: str
    scan: Scan
    dose: Path | None = None


def find_scans(
    arguments: Sequence[Path],
    channels: Sequence[str],
    ignore: Iterable[Path] = (),
    *,
    skip: Callable[[Skipped], None] = lambda _: None,
) -> tuple[list[Scan], list[ScanError]]:
    """Scans under the given files and folders, each once, in a fixed order.

    Folders are searched at any depth for images and DICOM series, except hidden files; see `search`. For a model with
    one channel each image file and each series of its modality and sequence is a scan. For a model with several
    channels any channel's NIfTI file represents its case, and a further channel is an error; for series see
    `studies.scans_of`.

    Args:
        arguments: files and folders.
        channels: the model's channel names.
        ignore: files and folders that are results, not scans.
        skip: called with found items that are not scans for the model, or repeat one.

    Returns:
        The scans, and an error for each argument that is missing or contains no scan, for each unusable file, and for
        each series and study that cannot be a scan.
    """
    missing = [ScanError("no such file or folder", path=each) for each in arguments if not exists(each)]
    log.info("searching %s", ", ".join(map(str, arguments)))
    searched = search([each for each in arguments if exists(each)], ignore)
    log.info("files found: %d", len(searched.files))
    below = {path for files in searched.below.values() for path in files}
    inside = _sort([path for path in searched.files if path in below], channels)
    alone = _sort([path for path in searched.files if path not in below], channels)
    errors = [*missing, *inside.errors, *alone.errors]
    errors += [each.as_error() for each in searched.left_out if each.refused]
    errors += [_of_no_use(Skipped(path, "neither NIfTI nor DICOM")) for path in alone.strays]
    not_used = [*(each for each in searched.left_out if not each.refused), *inside.left_out, *alone.left_out]
    scans = {place_of(scan[0]): scan for scan in (*alone.scans, *inside.scans)}
    if series := {place_of(each): each for each in (*alone.series, *inside.series)}:
        from parotid_seg.dicom.mr.studies import scans_of

        of_series, wrong, others = scans_of(series.values(), channels)
        scans |= {place_of(scan[0]): scan for scan in of_series}
        errors += wrong
        not_used += others
    errors = [*_nothing_in(searched, {*inside.useful, *alone.useful}, not_used), *errors]
    if not scans and not errors:
        errors = list(map(_of_no_use, not_used))
    for each in not_used:
        skip(each)
    return list(scans.values()), errors


def example_for(channels: Sequence[str], option: str) -> Path:
    """The folder of the packaged example, for a model with these channels.

    Args:
        channels: the model's channel names.
        option: the option that names other scans, for the error.

    Raises:
        OptionError: if the model does not take the example, which is a CT.
        InputError: if it is not installed.
    """
    if len(channels) != 1 or not is_ct(channels[0]):
        hint = f"name a folder of scans of the model's: {', '.join(channels)}"
        raise OptionError(f"{option}: the packaged example is a CT; {hint}")
    return example_folder()


@dataclass
class _Sorted:
    """Sorted files.

    Attributes:
        scans, series: images, and series of the model's modality.
        errors: errors of files that look usable but are not.
        left_out: items that are not scans for the model.
        strays: irrelevant files.
        useful: files of scans, series and errors.
    """

    scans: list[Scan]
    series: list[Series]
    errors: list[ScanError]
    left_out: list[Skipped]
    strays: list[Path]
    useful: list[Path]


def _sort(files: Sequence[Path], channels: Sequence[str]) -> _Sorted:
    """Sort files by kind."""
    images = [path for path in files if is_readable(path)]
    masks = [path for path in files if is_segmentation(path)]
    scans, errors = scans_in_files(images, channels)
    nifti_files = {*images, *masks}
    series, refused, others = _in_dicom([path for path in files if path not in nifti_files], channels)
    strays = [path for each in others if each.kind == STRAY for path in each.files]
    not_read = {path: reason for path in strays if (reason := unread(path))}
    errors += [each.as_error() for each in refused]
    errors += [ScanError(reason, path=path) for path, reason in not_read.items()]
    left_out = [each for each in others if each.kind != STRAY]
    left_out += [Skipped(path, "a segmentation, no scan", kind="segmentation", files=(path,)) for path in masks]
    useful = [*images, *not_read, *(path for each in refused for path in each.files)]
    useful += [one.path for each in series for one in each.slices]
    return _Sorted(scans, series, errors, left_out, [path for path in strays if path not in not_read], useful)


def scans_in_files(files: Iterable[Path], channels: Sequence[str]) -> tuple[list[Scan], list[ScanError]]:
    """Scans of some NIfTI files, and errors for unusable ones."""
    scans: list[Scan] = []
    errors = []
    for path in files:
        try:
            scans.append(_scan_of(path, channels))
        except ScanError as error:
            errors.append(error)
    return scans, errors


def _in_dicom(files: Sequence[Path], channels: Sequence[str]) -> tuple[list[Series], list[Skipped], list[Skipped]]:
    """Series of the model's modality, unreadable series, and other DICOM files."""
    if not files:
        return [], [], []
    from parotid_seg.dicom.mr.studies import kinds_taken
    from parotid_seg.dicom.read.series_volume import find_series

    found = find_series(files, kinds_taken(channels))
    refused = [each for each in found.left_out if each.refused]
    return list(found.series), refused, [each for each in found.left_out if not each.refused]


def _nothing_in(searched: Searched, useful: set[Path], not_used: Sequence[Skipped]) -> list[ScanError]:
    """Errors for folders without files of scans or errors."""
    lost = [each.path for each in searched.left_out if each.refused]
    errors = []
    for folder, files in searched.below.items():
        if useful.intersection(files) or any(path.is_relative_to(folder) for path in lost):
            continue
        why = next((f"; not used: {each.reason}" for each in not_used if {*each.files} & {*files}), "")
        expected = "expected NIfTI (.nii, .nii.gz, .hdr with .img), NRRD (.nrrd) or DICOM files"
        errors.append(ScanError(f"no scan in this folder, {expected}{why}", path=folder))
    return errors


def _of_no_use(skipped: Skipped) -> ScanError:
    """The error for files that were named individually but are not scans."""
    return skipped.as_error("expected a NIfTI file (.nii, .nii.gz) or the images of a DICOM series")


def _scan_of(path: Path, channels: Sequence[str]) -> Scan:
    """The scan of a file, which may be one of its channels.

    Raises:
        ScanError: if a model with these channels cannot use it.
    """
    if len(channels) == 1:
        return (path,)
    match = re.fullmatch(r"(.+)_(\d{4})(\.nii(?:\.gz)?)", path.name, re.IGNORECASE)
    takes = f"the model takes {len(channels)} channels ({', '.join(channels)})"
    if match is None:
        raise ScanError(f"{takes}, expected files CASE_0000 to CASE_{len(channels) - 1:04d}", path=path)
    stem, number, ending = match[1], int(match[2]), match[3]
    if number >= len(channels):
        raise ScanError(f"one more sequence of case {stem}, but {takes}; it was not used", path=path)
    return tuple(_channel_file(path.parent, f"{stem}_{index:04d}", ending) for index in range(len(channels)))


def _channel_file(folder: Path, stem: str, ending: str) -> Path:
    """A channel's file with the given ending if it exists, else with any other."""
    expected = folder / f"{stem}{ending}"
    others = (folder / f"{stem}{other}" for other in ENDINGS)
    return next((path for path in (expected, *others) if path.exists()), expected)


def name_cases(scans: Sequence[Scan], taken: Mapping[str, Path]) -> list[Case]:
    """Give every scan a unique name, also where a file system ignores case or the form of accents.

    NIfTI files keep their names. DICOM series get the name of their folder; if it holds several scans, with the series'
    number and what distinguishes volumes of one series, or for scans of several series with a short name of the study.
    Scans of equal names are distinguished by the folders above them, if these differ, and else by a number.

    Args:
        scans: with absolute paths; the first channel counts.
        taken: names that the output folder already uses, with the places of their scans. A scan keeps its name if it is
            reached by another link.
    """
    by_place = {place_of(scan[0]): scan for scan in scans}
    name_paths = {place: _place_named(scan) for place, scan in by_place.items()}
    uses = Counter(name_paths.values())
    own_names = {
        place: _own_name(scan, name_paths[place], uses[name_paths[place]] == 1) for place, scan in by_place.items()
    }
    equal = Counter((name_paths[place], _folded(name)) for place, name in own_names.items())
    for place, scan in by_place.items():
        if isinstance(scan[0], Series) and equal[name_paths[place], _folded(own_names[place])] > 1:
            own_names[place] += f"_{scan[0].key}"
    names = {place: _short(name) for place, name in own_names.items()}
    above = {place: path.parts[1:-1] for place, path in name_paths.items()}
    depth = 1
    while depth < 8 and (doubled := _in_several_folders(names, above)):
        for place, name in names.items():
            if _folded(name) in doubled and len(above[place]) >= depth:
                names[place] = _short("_".join((*above[place][-depth:], own_names[place])))
        depth += 1
    owners = {_folded(name): place for name, place in taken.items()}
    earlier_names = {Path(os.path.realpath(place)): name for name, place in taken.items()}
    earlier_names |= {place: name for name, place in taken.items()}
    cases = []
    for place, scan in by_place.items():
        earlier = earlier_names.get(place) or earlier_names.get(Path(os.path.realpath(place)))
        name = earlier or names[place]
        number = 2
        while not earlier and owners.get(_folded(name), place) != place:
            name = f"{names[place]}-{number}"
            number += 1
        owners[_folded(name)] = place
        cases.append(Case(name, scan))
    return cases


def _in_several_folders(names: Mapping[Path, str], above: Mapping[Path, tuple[str, ...]]) -> set[str]:
    """The folded names that scans of different folders have.

    Args:
        names: by the scans' places.
        above: the folders above each scan.
    """
    folders: dict[str, set[tuple[str, ...]]] = {}
    for place, name in names.items():
        folders.setdefault(_folded(name), set()).add(above[place])
    return {name for name, found in folders.items() if len(found) > 1}


def _place_named(scan: Scan) -> Path:
    """The path that a scan is named after: its first file, or the deepest folder that contains all of its series."""
    if isinstance(scan[0], Path):
        return scan[0]
    from parotid_seg.dicom.mr.studies import folder_of

    return folder_of([each for each in scan if isinstance(each, Series)])


def _own_name(scan: Scan, name_path: Path, alone: bool) -> str:
    """A name without folders above; never empty or dots only, which would name the output folder or one above it.

    Args:
        scan: the scan.
        name_path: see `_place_named`.
        alone: whether no other scan has this place.
    """
    source = scan[0]
    if not isinstance(source, Series):
        name = image_name(source).removesuffix("_0000")
        return name if is_plain_name(name) else source.name
    if alone:
        return name_path.name or source.key
    if len(scan) > 1:
        return f"{name_path.name}_{series_key(source.study_uid)}"
    if source.number is None:
        return f"{name_path.name}_{source.key}"
    return "_".join(filter(None, (name_path.name, str(source.number), source.part)))


def _folded(name: str) -> str:
    """A name as file systems compare it that ignore case and the form of accents, as those of Windows and macOS, and
    network folders."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _short(name: str) -> str:
    """A name that leaves room for an ending and a number in a file name; a truncated one ends in a hash of the
    whole."""
    content = os.fsencode(name)
    if len(content) <= LONGEST_NAME:
        return name
    mark = f"-{hashlib.sha256(content).hexdigest()[:8]}"
    return content[: LONGEST_NAME - len(mark)].decode(errors="ignore") + mark
