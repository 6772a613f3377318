"""Contours that no model agrees with: the patients of a data set whose labels may be wrong.

    python benchmarks/quality/contours.py DATA MASKS [MASKS ...] --out FILE.json --pictures DIR

MASKS are folders with the masks of held-out patients, such as results/cross-validation/teacher/masks: a network that
was trained on a contour agrees with its errors. Patients that only some of the folders have are compared with those.

A gland is listed if its DSC is below --below in every folder, with the volumes, and with what all masks show of it:

- sides exchanged: left and right agree with each other's contour;
- the contour stops short: 35 % or more of the mask lie beyond one of its ends, while the rest agrees;
- the contour goes on beyond one end of the mask in the same way.

A listed contour is not proven wrong: the models may share an error. Look at the pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from resources import machine_and_versions

from parotid_seg.commission.faults import signs_of
from parotid_seg.files import make_folder, write_text
from parotid_seg.metrics import dice
from parotid_seg.runtime.evaluation import exchanged_in
from parotid_seg.runtime.report.overlay import draw_case, save_picture
from parotid_seg.scan.nifti import NiftiScan, read_mask, read_nifti
from parotid_seg.scan.volume import Mask
from parotid_seg.train.data.data_set import open_data_set

WINDOW = (-200.0, 300.0)
"""HU of black and white in the pictures."""


def doubts(contours: Mask, masks: Sequence[Mask], names: Sequence[str], below: float) -> dict[str, Any]:
    """The glands of a patient whose contours no mask agrees with.

    Args:
        contours: label map (D, H, W) in the canonical order.
        masks: of the models, at least one; each of the same voxels.
        names: of the labels by value, background first.
        below: highest DSC that is a doubt.

    Returns:
        For each such gland its DSC with each mask and what all masks show (`signs`).
    """
    signs = [signs_of(contours, mask, names) for mask in masks]
    exchanged = all(each.exchanged and exchanged_in({"": each.exchanged}, "", "")[1] for each in signs)
    found: dict[str, Any] = {}
    for value, name in enumerate(names[1:], start=1):
        if not (contours == value).any():
            continue
        dsc = [dice(contours == value, mask == value) for mask in masks]
        if max(dsc) >= below:
            continue
        words = ["sides exchanged"] if exchanged else []
        for text, ends in (
            ("the contour stops short", [each.missing for each in signs]),
            ("the contour goes on beyond the masks", [each.beyond for each in signs]),
        ):
            shared = [end for end in ends[0] if end.structure == name and all(end in other for other in ends[1:])]
            words += [f"{text}: {end}, {min(each[end] for each in ends):.0%}" for end in shared]
        found[name] = {"dsc": [round(each, 4) for each in dsc], "signs": words}
    return found


def listed(
    data: Path,
    names: Sequence[str],
    folders: Sequence[Path],
    labels: Sequence[str],
    below: float,
    pictures: Path | None,
) -> tuple[dict[str, Any], int]:
    """The patients with a doubt, the lowest DSC first, and how many glands were compared.

    Args:
        data: data set in nnU-Net's raw layout.
        names: its patients with contours.
        folders: of the masks.
        labels: names by value, background first.
        below: see `doubts`.
        pictures: folder for a picture of each listed patient.
    """
    found: dict[str, Any] = {}
    glands = 0
    for name in names:
        held = [folder for folder in folders if (folder / f"{name}.nii.gz").exists()]
        if not held:
            continue
        scan = read_nifti(data / "imagesTr" / f"{name}_0000.nii.gz")
        contours, _ = read_mask(data / "labelsTr" / f"{name}.nii.gz", like=scan)
        masks = [read_mask(folder / f"{name}.nii.gz", like=scan)[0] for folder in held]
        glands += sum((contours == value).any() for value in range(1, len(labels)))
        if not (doubtful := doubts(contours, masks, labels, below)):
            continue
        for structure, each in doubtful.items():
            value = labels.index(structure)
            each["contour_ml"], *each["masks_ml"] = (_ml(part == value, scan) for part in (contours, *masks))
        found[name] = {"masks": [name_of(folder) for folder in held], "structures": doubtful}
        if pictures:
            title = f"{name}: contours white; " + ", ".join(f"{n} DSC {max(e['dsc']):.2f}" for n, e in doubtful.items())
            volumes = {label: _ml(masks[0] == value, scan) for value, label in enumerate(labels) if value}
            picture = draw_case(scan.volume, WINDOW, masks[0], labels, volumes, title, reference=contours)
            save_picture(picture, pictures / f"{name}.png")
    lowest = {name: min(max(gland["dsc"]) for gland in each["structures"].values()) for name, each in found.items()}
    return {name: found[name] for name in sorted(found, key=lowest.__getitem__)}, glands


def name_of(folder: Path) -> str:
    """What a folder of masks is called: its parent's name if it is a recipe's "masks"."""
    return folder.parent.name if folder.name == "masks" else folder.name


def _ml(part: np.ndarray[Any, np.dtype[np.bool_]], scan: NiftiScan) -> float:
    return round(float(np.count_nonzero(part) * np.prod(scan.volume.spacing_mm) / 1000), 1)


def table(found: Mapping[str, Any]) -> str:
    """A row for each listed gland."""
    lines = ["| patient | gland | DSC with each mask | contour, ml | masks, ml | signs |", "|---|---|---|---|---|---|"]
    for name, patient in found.items():
        for structure, each in patient["structures"].items():
            dsc = ", ".join(f"{value:.2f} ({by})" for value, by in zip(each["dsc"], patient["masks"], strict=True))
            volumes = ", ".join(map(str, each["masks_ml"]))
            signs = "; ".join(each["signs"])
            lines.append(f"| {name} | {structure} | {dsc} | {each['contour_ml']} | {volumes} | {signs} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """List, draw, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set in nnU-Net's raw layout")
    parser.add_argument("masks", type=Path, nargs="+", help="folders with masks of held-out patients")
    parser.add_argument("--below", type=float, default=0.65, help="highest DSC of a listed gland")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="folder for a picture of each listed patient")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    data = open_data_set(arguments.data, "segment", None)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (arguments.data / "labelsTr").glob("*.nii.gz"))
    if arguments.pictures:
        make_folder(arguments.pictures)
    found, glands = listed(arguments.data, names, arguments.masks, data.labels, arguments.below, arguments.pictures)
    print(table(found), end="")
    record = {
        "date": time.strftime("%F"),
        **machine_and_versions(),
        "masks": [name_of(folder) for folder in arguments.masks],
        "below": arguments.below,
        "glands_compared": int(glands),
        "patients": found,
    }
    write_text(json.dumps(record, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
