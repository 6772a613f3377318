"""What sequence a series is, by its header, whatever is written in it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from parotid_seg.dicom.mr.acquisition import Acquisition
from parotid_seg.dicom.mr.sequences import name_of, sequence_named, sequence_of
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.series_volume import find_series
from parotid_seg.errors import ScanError
from tests.dicom_series import ct_voxels, lay, save, uid, write_enhanced, write_series
from tests.mr_studies import DIFFUSION, FLAIR, PD, STIR, T1, T2, gradient_echo, inverted, spin_echo, write_mr

pytestmark = pytest.mark.slow


GD = {"ContrastBolusAgent": "Gadobutrol"}
FS = {"ScanOptions": "FS"}
VIBE = gradient_echo(5.6, 2.5, ["SK", "SP"])
RESEARCH = {"ScanningSequence": "RM", "SequenceVariant": "NONE"}


def described(text: str) -> dict[str, str]:
    return {"SeriesDescription": text}


def typed(*words: str) -> dict[str, list[str]]:
    return {"ImageType": ["ORIGINAL", "PRIMARY", *words]}


CASES = [
    # spin echoes by repetition and echo time
    (T1, "T1"),
    (T2, "T2"),
    (PD, "PD"),
    (spin_echo(700, 25), "T1"),
    (spin_echo(3200, 563), "T2"),
    (spin_echo(1200, 12), "unclear"),
    (spin_echo(3000, 50), "unclear"),
    (spin_echo(700, 80), "unclear"),
    (spin_echo(0, 0), "unclear"),
    # inversion
    (STIR, "STIR"),
    (inverted(150, 5000, 60), "STIR"),
    (inverted(240, 6000, 100), "STIR"),
    (FLAIR, "FLAIR"),
    (inverted(1800, 5000, 388), "FLAIR"),
    (inverted(900, 2200, 10), "T1"),
    (inverted(60, 4500, 40), "unclear"),
    (inverted(0, 4500, 40), "unclear"),
    (T2 | {"InversionTime": 0.0}, "T2"),
    (T2 | {"InversionTime": 180.0}, "T2"),  # a pulse that inverts fat alone is no inversion recovery
    # gradient echoes
    (VIBE, "T1"),
    (gradient_echo(2300, 2.3, ["SP", "MP"]) | {"ScanningSequence": ["GR", "IR"], "InversionTime": 900}, "T1"),
    (gradient_echo(8.1, 3.7, ["MP"]), "T1"),
    (gradient_echo(600, 20, ["SP"]), "T2*"),
    (gradient_echo(5, 2.2, ["SS"]), "unclear"),
    # contrast agent and fat suppression
    (T1 | GD, "T1C"),
    (T1 | GD | FS, "T1C FS"),
    (T1 | FS, "T1 FS"),
    (T2 | FS, "T2 FS"),
    (T2 | GD, "T2"),
    (STIR | FS, "STIR"),
    (T1 | {"ContrastBolusAgent": "NONE"}, "T1"),
    (T1 | described("t1_tse_tra +c"), "T1C"),
    (T1 | described("T1 post Gd"), "T1C"),
    (T1 | described("AX T1 fat sat"), "T1 FS"),
    (T2 | described("t2_tse_SPAIR_cor"), "T2 FS"),
    # parts of a Dixon sequence
    (T2 | typed("DIXON", "IN_PHASE"), "T2"),
    (T2 | typed("DIXON", "WATER"), "T2 FS"),
    (VIBE | GD | typed("W", "W"), "T1C FS"),
    (T2 | typed("DIXON", "OPP_PHASE"), "opposed phase"),
    (T2 | typed("DIXON", "FAT"), "fat only"),
    (T2 | typed("FAT_FRACTION"), "map"),
    # what is none
    (DIFFUSION, "diffusion"),
    (DIFFUSION | typed("DIFFUSION", "ADC"), "ADC"),
    (T2 | {"DiffusionBValue": 50.0}, "diffusion"),
    (T2 | {"DiffusionBValue": 0.0}, "T2"),
    (DIFFUSION | {"DiffusionBValue": 0.0}, "echo planar"),
    (spin_echo(2000, 30) | {"ScanningSequence": "EP"}, "echo planar"),
    (VIBE | {"AngioFlag": "Y"}, "angiography"),
    (VIBE | described("TOF 3D neck"), "angiography"),
    (T1 | typed("SUB"), "subtraction"),
    (T1 | described("T1 sub"), "subtraction"),
    (T2 | typed("T2 MAP"), "map"),
    (T1 | typed("P", "ND"), "phase"),
    (T1 | described("localizer"), "localizer"),
    # descriptions only where physics is silent
    (T1 | described("T2 STIR"), "T1"),
    (spin_echo(1200, 12) | described("t1_tse_tra"), "T1"),
    (RESEARCH | described("t2_stir_cor"), "STIR"),
    (RESEARCH | described("T2 FLAIR"), "FLAIR"),
    (RESEARCH | described("t2* gre"), "T2*"),
    (RESEARCH | described("T1 and T2"), "unclear"),
    (RESEARCH | described("neck") | {"ProtocolName": "PDw"}, "PD"),
    (RESEARCH | described("T1CE"), "T1C"),
    (RESEARCH, "unclear"),
]


@pytest.mark.parametrize(("attributes", "expected"), CASES)
def test_classic_series(tmp_path: Path, attributes: dict[str, Any], expected: str) -> None:
    write_mr(tmp_path / "mr", attributes, shape=(7, 8, 8))
    (series,) = find_series((tmp_path / "mr").iterdir()).series
    assert sequence_of(series) == expected


def enhanced(**attributes: Any) -> Callable[..., None]:
    """Set attributes of the one functional group, or of the object, that holds each."""
    groups = {
        "AcquisitionContrast": "MRImageFrameTypeSequence",
        "ComplexImageComponent": "MRImageFrameTypeSequence",
        "RepetitionTime": "MRTimingAndRelatedParametersSequence",
        "EffectiveEchoTime": "MREchoSequence",
        "InversionRecovery": "MRModifierSequence",
        "InversionTimes": "MRModifierSequence",
        "Spoiling": "MRModifierSequence",
        "DiffusionBValue": "MRDiffusionSequence",
        "ContrastBolusAgentAdministered": "ContrastBolusUsageSequence",
    }

    def change(_: object, dataset: Dataset) -> None:
        (shared,) = dataset.SharedFunctionalGroupsSequence
        for keyword, value in attributes.items():
            if keyword not in groups:
                setattr(dataset, keyword, value)
                continue
            if groups[keyword] not in shared:
                setattr(shared, groups[keyword], [Dataset()])
            setattr(shared[groups[keyword]].value[0], keyword, value)

    return change


SPIN = {"EchoPulseSequence": "SPIN", "EchoPlanarPulseSequence": "NO"}


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (SPIN | {"AcquisitionContrast": "T1"}, "T1"),
        (SPIN | {"AcquisitionContrast": "PROTON_DENSITY"}, "PD"),
        (SPIN | {"AcquisitionContrast": "UNKNOWN", "RepetitionTime": 4000.0, "EffectiveEchoTime": 90.0}, "T2"),
        (SPIN | {"AcquisitionContrast": "T2", "InversionRecovery": "YES", "InversionTimes": [180.0]}, "STIR"),
        (SPIN | {"AcquisitionContrast": "T2", "SpectrallySelectedSuppression": "FAT"}, "T2 FS"),
        (SPIN | {"AcquisitionContrast": "T1", "ComplexImageComponent": "PHASE"}, "phase"),
        (SPIN | {"AcquisitionContrast": "T1", "ContrastBolusAgentSequence": [Dataset()]}, "T1C"),
        (
            SPIN
            | {
                "AcquisitionContrast": "T1",
                "ContrastBolusAgentSequence": [Dataset()],
                "ContrastBolusAgentAdministered": "NO",
            },
            "T1",
        ),
        ({"EchoPulseSequence": "BOTH", "RepetitionTime": 4000.0, "EffectiveEchoTime": 90.0}, "unclear"),
        (
            {
                "EchoPulseSequence": "GRADIENT",
                "Spoiling": "RF",
                "RepetitionTime": 6.0,
                "EffectiveEchoTime": 2.0,
            },
            "T1",
        ),
        (SPIN | {"AcquisitionContrast": "T2", "DiffusionBValue": 50.0}, "diffusion"),
        ({"EchoPulseSequence": "GRADIENT", "TimeOfFlightContrast": "YES", "AcquisitionContrast": "T1"}, "angiography"),
    ],
)
def test_enhanced_series(tmp_path: Path, attributes: dict[str, Any], expected: str) -> None:
    write_enhanced(tmp_path / "mr.dcm", ct_voxels((7, 8, 8)) + 1000, modality="MR", change=enhanced(**attributes))
    (series,) = find_series([tmp_path / "mr.dcm"]).series
    assert sequence_of(series) == expected


def test_an_object_converted_from_classic_ones(tmp_path: Path) -> None:
    def change(_: object, dataset: Dataset) -> None:
        (shared,) = dataset.SharedFunctionalGroupsSequence
        converted = Dataset()
        for keyword, value in STIR.items():
            setattr(converted, keyword, value)
        shared.UnassignedSharedConvertedAttributesSequence = [converted]

    write_enhanced(tmp_path / "mr.dcm", ct_voxels((7, 8, 8)) + 1000, modality="MR", kind="legacy", change=change)
    (series,) = find_series([tmp_path / "mr.dcm"]).series
    assert sequence_of(series) == "STIR"


def test_each_volume_of_a_series_is_told_by_its_own_slices(tmp_path: Path) -> None:
    """Proton density and T2 of one double echo; in phase and opposed phase of one Dixon sequence."""

    def echo(number: int, attributes: dict[str, Any]) -> Callable[..., None]:
        def change(_: object, dataset: Dataset) -> None:
            dataset.SOPInstanceUID = uid(dataset.SOPInstanceUID, str(number))
            for keyword, value in attributes.items():
                setattr(dataset, keyword, value)

        return change

    first, second = PD | {"EchoNumbers": 1}, spin_echo(3000, 90) | {"EchoNumbers": 2}
    write_series(tmp_path / "mr", ct_voxels((7, 8, 8)), modality="MR", names="A", change=echo(1, first))
    write_series(tmp_path / "mr", ct_voxels((7, 8, 8), 1), modality="MR", names="B", change=echo(2, second))
    series = find_series((tmp_path / "mr").iterdir()).series
    assert {each.part: sequence_of(each) for each in series} == {"echo-1": "PD", "echo-2": "T2"}


def test_a_series_in_several_planes_is_a_localizer(tmp_path: Path) -> None:
    for name, affine in {"A": lay(), "B": lay((3, 1, 1), row=(0, 1, 0), column=(0, 0, -1))}.items():

        def change(_: object, dataset: Dataset, name: str = name) -> None:
            dataset.SOPInstanceUID = uid(dataset.SOPInstanceUID, name)
            for keyword, value in VIBE.items():
                setattr(dataset, keyword, value)

        voxels = ct_voxels((12, 24, 24)) + 1000
        write_series(tmp_path / "mr", voxels, affine, modality="MR", names=name, change=change)
    series = find_series((tmp_path / "mr").iterdir()).series
    assert [sequence_of(each) for each in series] == ["localizer", "localizer"]


def test_ct(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", ct_voxels())
    (series,) = find_series((tmp_path / "ct").iterdir()).series
    assert sequence_of(series) == "CT"


def test_a_file_that_has_changed_since(tmp_path: Path) -> None:
    write_mr(tmp_path / "mr", T1 | {"PatientName": "Secret^Name"})
    (series,) = find_series((tmp_path / "mr").iterdir()).series
    path = series.slices[0].path
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = uid("another")
    save(dataset, path)
    with pytest.raises(ScanError, match="found another image than when the series was read"):
        sequence_of(series)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ScanError) as caught:
        sequence_of(series)
    assert str(caught.value).startswith(f"{path}: ")
    assert "Secret" not in str(caught.value)
    path.unlink()
    with pytest.raises(ScanError, match="cannot be read"):
        sequence_of(series)


KNOWN = {sequence for _, sequence in CASES} | {"FLAIR FS", "PD FS", "perfusion", "tagging", "localizer"}
hostile = st.text(max_size=12) | st.sampled_from(["SE", "GR", "IR", "T1", "FS", "P", "1e400", "-5", "nan", "\\\\"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Series, Dataset]:
    """A series, and its first slice's dataset."""
    (series,) = find_series(write_mr(tmp_path_factory.mktemp("study") / "mr", T1, shape=(7, 8, 8))).series
    return series, pydicom.dcmread(series.slices[0].path)


@settings(max_examples=60)
@given(values=st.dictionaries(st.sampled_from([*STIR, "ScanOptions", "ContrastBolusAgent", "ProtocolName"]), hostile))
def test_whatever_stands_in_a_header_a_known_word_comes_out(
    plain: tuple[Series, Dataset], values: dict[str, str]
) -> None:
    series, dataset = plain[0], copy.deepcopy(plain[1])
    for keyword, text in values.items():
        dataset.add_new(keyword, "LO", text)  # another kind of value than it should have
    save(dataset, series.slices[0].path)
    assert sequence_of(series) in KNOWN


NOTHING = Acquisition(frozenset(), frozenset(), None, None, None, "", False, False, False, False, "")


def test_nothing_at_all_is_unclear() -> None:
    assert name_of(NOTHING) == "unclear"


@pytest.mark.parametrize(
    ("channel", "sequence"),
    [
        *((name, "T1") for name in ("T1", "t1", "T1w", "T1-weighted", "MR_T1", "mri t1")),
        *((name, "T1C") for name in ("T1C", "T1CE", "T1 Gd", "t1+c", "T1w_gad", "T1 post", "T1_contrast", "T1-KM")),
        *((name, "T2") for name in ("T2", "t2W", "MR T2")),
        *((name, "T2 FS") for name in ("T2FS", "T2_fs", "T2 fat sat", "t2w-fatsuppressed")),
        *((name, "T1C FS") for name in ("T1CFS", "T1 Gd FS", "T1fs Gd", "t1ce_fatsat")),
        *((name, "STIR") for name in ("STIR", "stir", "T2 STIR", "MR-STIR")),
        *((name, "FLAIR") for name in ("FLAIR", "T2-FLAIR")),
        *((name, "PD") for name in ("PD", "pdw", "Proton density")),
        *((name, "CT") for name in ("CT", "ct")),
        *((name, "MR") for name in ("MR", "MRI")),
        *((name, None) for name in ("", "T3", "ADC", "T12", "T2C", "STIR FS", "image", "T1T2", "PET", "T2*")),
    ],
)
def test_names_of_channels(channel: str, sequence: str | None) -> None:
    assert sequence_named(channel) == sequence


def test_every_sequence_is_a_channels_name_or_none() -> None:
    """What `sequence_of` answers can be asked for by the same word, or not at all."""
    channels = {"T1", "T1 FS", "T1C", "T1C FS", "T2", "T2 FS", "PD", "PD FS", "STIR", "FLAIR", "FLAIR FS"}
    assert {sequence_named(word) for word in channels} == channels
    assert {word for word in KNOWN if sequence_named(word)} == channels
