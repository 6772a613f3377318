"""Compressed series equal their uncompressed twins, whatever encoder wrote them and whatever headers contradict.

A cell of the matrix is an encoder, a precision and sign of its codestream, and BitsStored and PixelRepresentation of
the header. The same values are written uncompressed under the same header; both must be read as these values.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from parotid_seg.dicom.read import decoders
from parotid_seg.dicom.read.series_volume import find_series
from parotid_seg.errors import ScanError
from parotid_seg.flags import FlagCode
from parotid_seg.scan.volume import Volume
from tests.dicom.reading import compress_with_gdcm, read_only
from tests.dicom_series import lay, save, write_enhanced

pytestmark = pytest.mark.slow


SHAPE = (3, 32, 36)
SPACING = (7.0, 1.0, 1.0)
BITS = (8, 10, 12, 15, 16)
GDCM_NAMES = {
    JPEGLossless: "JPEGLosslessProcess14",
    JPEGLosslessSV1: "JPEGLosslessProcess14_1",
    JPEGLSLossless: "JPEGLSLossless",
    JPEG2000Lossless: "JPEG2000Lossless",
    RLELossless: "RLELossless",
}
DECODED_BY = {
    JPEGLossless: {"python-gdcm", "pylibjpeg-libjpeg"},
    JPEGLosslessSV1: {"python-gdcm", "pylibjpeg-libjpeg"},
    JPEGLSLossless: {"pyjpegls"},
    JPEG2000Lossless: {"pylibjpeg-openjpeg"},
    RLELossless: {"pydicom"},
}
"""Packages of which the one that is installed is taken."""
DCMTK = {
    JPEGLossless: ("dcmcjpeg", "+el"),
    JPEGLosslessSV1: ("dcmcjpeg", "+e1"),
    JPEGLSLossless: ("dcmcjpls", "+el"),
    RLELossless: ("dcmcrle",),
}


def waves(bits: int, signed: bool, share: float = 1.0) -> NDArray[Any]:
    """Smooth values (slices, rows, columns) over the whole range of so many bits, or the lower share of it."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    found = np.sin(z + y / 5) + np.cos(x / 6 - z / 2)
    found = (found - found.min()) / (found.max() - found.min()) * share
    return np.rint(found * ((1 << bits) - 1)).astype(np.int64) - ((1 << bits - 1) if signed else 0)


def words(values: NDArray[Any], bits: int, signed: bool) -> NDArray[Any]:
    """Values as words of as few bytes as so many bits take, negative ones cut to those bits if words are unsigned."""
    size = 1 if bits <= 8 else 2
    patterns = (values.astype(np.int64) & ((1 << bits) - 1)).astype(f"u{size}")
    if not signed:
        return np.ascontiguousarray(patterns)
    above = 8 * size - bits
    return np.ascontiguousarray((patterns << above).view(f"i{size}") >> above)


def with_openjpeg(image: NDArray[Any], bits: int) -> bytes:
    from openjpeg.utils import encode_array

    return encode_array(image, bits_stored=bits, photometric_interpretation=2)


def with_openjpeg_in_a_box(image: NDArray[Any], bits: int) -> bytes:
    from openjpeg.utils import encode_array

    return encode_array(image, bits_stored=bits, photometric_interpretation=2, codec_format=1)


def with_pyjpegls(image: NDArray[Any], bits: int) -> bytes:
    from jpeg_ls import encode_buffer

    return bytes(encode_buffer(image.tobytes(), *image.shape, 1, bits))


def with_pyjpegls_least(image: NDArray[Any], bits: int) -> bytes:
    """With as many bits as the largest word takes, which vary from slice to slice."""
    from jpeg_ls import encode_array

    return bytes(encode_array(image))


def with_imagecodecs(image: NDArray[Any], bits: int) -> bytes:
    return pytest.importorskip("imagecodecs").ljpeg_encode(image, bitspersample=bits)


def with_gdcm(syntax: pydicom.uid.UID) -> Callable[..., bytes]:
    def encode(image: NDArray[Any], bits: int) -> bytes:
        dataset = pydicom.Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3"
        dataset.Rows, dataset.Columns = image.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * image.itemsize, bits, bits - 1
        dataset.PixelRepresentation = int(image.dtype.kind == "i")
        dataset.PixelData = image.tobytes()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.dcm"
            save(dataset, path)
            compress_with_gdcm(path, GDCM_NAMES[syntax])
            found = pydicom.dcmread(path)
        assert found.file_meta.TransferSyntaxUID == syntax
        return next(generate_frames(found.PixelData, number_of_frames=1))

    return encode


ENCODERS = {
    "openjpeg": (with_openjpeg, JPEG2000Lossless, (False, True)),
    "openjpeg, JP2": (with_openjpeg_in_a_box, JPEG2000Lossless, (False, True)),
    "openjpeg, lossy syntax": (with_openjpeg, JPEG2000, (False, True)),
    "pyjpegls": (with_pyjpegls, JPEGLSLossless, (False,)),
    "pyjpegls, near-lossless syntax": (with_pyjpegls, JPEGLSNearLossless, (False,)),
    "pyjpegls, least bits": (with_pyjpegls_least, JPEGLSLossless, (False,)),
    "imagecodecs, JPEG SV1": (with_imagecodecs, JPEGLosslessSV1, (False,)),
}
"""What encodes an image, its transfer syntax, and whether its codestream can be unsigned and signed."""
PRECISIONS = [(8, 8), (8, 12), (8, 16), (10, 10), (10, 16), (12, 12), (12, 16), (15, 15), (15, 16), (16, 12), (16, 13)]
PRECISIONS += [(16, 16), (13, 13), (12, 10), (13, 16)]
"""Of the codestream, and BitsStored."""
TWINS = ("openjpeg, lossy syntax", "pyjpegls, near-lossless syntax")
"""Encoders that write what another one does, under another transfer syntax: some precisions do."""
CELLS = [(name, *each) for name in ENCODERS for each in PRECISIONS[:: 3 if name in TWINS else 1]]


def write(path: Path, values: NDArray[Any], stored: int, signed: bool) -> Path:
    """The values as one uncompressed multi-frame file under such a header."""

    def change(index: int, dataset: pydicom.Dataset) -> None:
        size = 1 if stored <= 8 else 2
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * size, stored, stored - 1
        dataset.PixelRepresentation = int(signed)
        dataset.PixelData = values.astype(f"<{'ui'[signed]}{size}").tobytes()

    return write_enhanced(path, values, lay(SPACING), intercept=0, order=range(len(values)), change=change)


def pack(path: Path, encode: Callable[..., bytes], syntax: pydicom.uid.UID) -> Path:
    """The same file, compressed: `encode` gives a codestream of a frame's stored values."""
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([encode(frame) for frame in dataset.pixel_array])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = syntax
    packed = path.with_name("packed.dcm")
    dataset.save_as(packed, enforce_file_format=True)
    return packed


def compressed(
    tmp_path: Path,
    values: NDArray[Any],
    encode: Callable[..., bytes],
    syntax: pydicom.uid.UID,
    stored: int,
    signed: bool,
) -> tuple[NDArray[Any], Volume]:
    """Voxels and volume read from the compressed series."""
    return read_only([pack(write(tmp_path / "plain.dcm", values, stored, signed), encode, syntax)])


@pytest.mark.parametrize("stored", sorted({stored for _, stored in PRECISIONS}))
@pytest.mark.parametrize("signed", [False, True])
def test_the_uncompressed_twins(tmp_path: Path, stored: int, signed: bool) -> None:
    values = waves(stored, signed)
    voxels, volume = read_only([write(tmp_path / "plain.dcm", values, stored, signed)])
    np.testing.assert_array_equal(voxels, values)
    assert volume.decoders == ()


@pytest.mark.parametrize(("name", "bits", "stored"), CELLS)
@pytest.mark.parametrize("signed", [False, True])
def test_every_encoder_precision_and_sign(tmp_path: Path, name: str, signed: bool, bits: int, stored: int) -> None:
    encode, syntax, kinds = ENCODERS[name]
    values = waves(min(bits, stored), signed)
    for kind in kinds:

        def packed(frame: NDArray[Any], kind: bool = kind) -> bytes:
            return encode(words(frame, bits, kind), bits)

        voxels, volume = compressed(tmp_path, values, packed, syntax, stored, signed)
        np.testing.assert_array_equal(voxels, values)
        assert len(volume.decoders) == 1


@pytest.mark.parametrize("bits", [8, 10, 12, 13, 15])
@pytest.mark.parametrize("name", ["openjpeg", "pyjpegls", "imagecodecs, JPEG SV1"])
def test_values_of_0_and_more_may_take_all_bits_of_a_short_codestream(tmp_path: Path, name: str, bits: int) -> None:
    """As encoders that count the bits of the largest value write them, under a header that says signed."""
    encode, syntax, _ = ENCODERS[name]
    values = waves(bits, signed=False)
    voxels, volume = compressed(
        tmp_path, values, lambda frame: encode(words(frame, bits, signed=False), bits), syntax, 16, True
    )
    np.testing.assert_array_equal(voxels, values)
    (flag,) = volume.flags
    assert (flag.code, flag.detail) == (FlagCode.SIGN_FROM_PIXELS, "values of 0 and more")


@pytest.mark.parametrize("offset", [-1024, 0])
def test_encoders_that_count_the_bits_of_each_slice(tmp_path: Path, offset: int) -> None:
    """Slices of one series then differ in precision; the highest bit is set in some of them only."""
    values = waves(12, signed=False) + offset
    voxels, _ = compressed(
        tmp_path,
        values,
        lambda frame: with_pyjpegls_least(words(frame, 16, signed=False), 16),
        JPEGLSLossless,
        16,
        True,
    )
    np.testing.assert_array_equal(voxels, values)


def test_pixels_that_fit_one_sign_as_well_as_the_other_are_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 12, SHAPE)
    with pytest.raises(ScanError, match=r"it is unclear .* a two's complement; found \d\d% of the pairs"):
        compressed(
            tmp_path,
            values,
            lambda frame: with_pyjpegls(words(frame, 12, signed=False), 12),
            JPEGLSLossless,
            16,
            True,
        )


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beyond_those_stored_do_not_count(tmp_path: Path, signed: bool) -> None:
    """Whole words were compressed, with overlays or whatever else is in their upper bits."""
    values = waves(12, signed)

    def encode(frame: NDArray[Any]) -> bytes:
        return with_openjpeg(words(frame & 0x0FFF | 0x5000, 16, signed=False), 16)

    np.testing.assert_array_equal(compressed(tmp_path, values, encode, JPEG2000Lossless, 12, signed)[0], values)


def test_bits_that_count_may_be_the_highest(tmp_path: Path) -> None:
    values = waves(12, signed=False)
    path = pack(
        write(tmp_path / "plain.dcm", values, 12, signed=False),
        lambda frame: with_openjpeg(frame << 4 | 9, 16),
        JPEG2000Lossless,
    )
    dataset = pydicom.dcmread(path)
    dataset.HighBit = 15
    dataset.save_as(path)
    np.testing.assert_array_equal(read_only([path])[0], values)


@pytest.mark.parametrize("signed", [False, True])
def test_loss_does_not_turn_the_brightest_into_the_darkest(tmp_path: Path, signed: bool) -> None:
    """A codestream of more bits than those stored may hold values a little beyond their range."""
    values = waves(12, signed)

    def encode(frame: NDArray[Any]) -> bytes:
        image = frame.astype(np.int64)
        return with_openjpeg(words(np.where(image == values.max(), image + 3, image), 16, signed), 16)

    np.testing.assert_array_equal(compressed(tmp_path, values, encode, JPEG2000, 12, signed)[0], values)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL])
def test_high_throughput_jpeg_2000(tmp_path: Path, syntax: pydicom.uid.UID, bits: int, signed: bool) -> None:
    codecs = pytest.importorskip("imagecodecs")
    for kind in (False, True):
        values = waves(bits, signed)

        def packed(frame: NDArray[Any], kind: bool = kind) -> bytes:
            return codecs.htj2k_encode(words(frame, bits, kind), reversible=True)

        voxels, volume = compressed(tmp_path, values, packed, syntax, bits, signed)
        np.testing.assert_array_equal(voxels, values)
        assert volume.decoders[0].startswith("pylibjpeg-openjpeg")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", GDCM_NAMES)
def test_files_of_gdcm(tmp_path: Path, syntax: pydicom.uid.UID, bits: int, signed: bool) -> None:
    """Its codestreams have 8 or 16 bits, whatever BitsStored is."""
    values = waves(bits, signed)
    voxels, volume = compressed(tmp_path, values, lambda frame: with_gdcm(syntax)(frame, bits), syntax, bits, signed)
    np.testing.assert_array_equal(voxels, values)
    (decoder,) = volume.decoders
    assert decoder.split()[0] in DECODED_BY[syntax]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", DCMTK)
def test_files_of_dcmtk(tmp_path: Path, syntax: pydicom.uid.UID, bits: int, signed: bool) -> None:
    values = waves(bits, signed)
    path = write(tmp_path / "plain.dcm", values, bits, signed)
    run_dcmtk(*DCMTK[syntax], path)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_only([path])[0], values)


@pytest.mark.parametrize(("syntax", "option"), [(JPEGBaseline8Bit, "+eb"), (JPEGExtended12Bit, "+ee")])
def test_jpeg_with_loss_of_dcmtk(tmp_path: Path, syntax: pydicom.uid.UID, option: str) -> None:
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    values = waves(bits, signed=False)
    path = write(tmp_path / "plain.dcm", values, bits, signed=False)
    run_dcmtk("dcmcjpeg", option, path)
    voxels, volume = read_only([path])
    assert np.abs(voxels - values).max() <= (1 << bits) // 64
    assert FlagCode.LOSSY_COMPRESSION in {flag.code for flag in volume.flags}


def run_dcmtk(tool: str, *words: Path | str) -> None:
    """Compress a file in place."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} (dcmtk) is not installed")
    subprocess.run([tool, *words, words[-1]], check=True, capture_output=True)


def test_a_codestream_of_another_family_is_refused(tmp_path: Path) -> None:
    values = waves(12, signed=False)
    with pytest.raises(ScanError, match="found a JPEG-LS image, expected JPEG 2000"):
        compressed(tmp_path, values, lambda frame: with_pyjpegls(frame, 12), JPEG2000Lossless, 12, False)


@pytest.mark.parametrize(
    ("syntax", "modules", "command"),
    [
        (JPEG2000Lossless, ("pylibjpeg",), "pip install pylibjpeg pylibjpeg-openjpeg"),
        (HTJ2KLossless, ("pylibjpeg",), "pip install pylibjpeg pylibjpeg-openjpeg"),
        (JPEGLSLossless, ("jpeg_ls",), "pip install pyjpegls"),
        (JPEGLosslessSV1, ("gdcm", "pylibjpeg"), "pip install python-gdcm"),
    ],
)
def test_a_decoder_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: pydicom.uid.UID, modules: tuple[str, ...], command: str
) -> None:
    packed = pack(write(tmp_path / "plain.dcm", waves(12, signed=False), 12, signed=False), lambda _: b"\0\0", syntax)
    monkeypatch.setattr(decoders, "find_spec", lambda name: None if name in modules else name)
    decoders._pylibjpeg_plugins.cache_clear()
    try:
        (left_out,) = find_series([packed]).left_out
    finally:
        decoders._pylibjpeg_plugins.cache_clear()
    assert left_out.refused
    assert left_out.reason.endswith(f"compressed as {syntax.name}, for which no decoder is installed: {command}")


def test_a_decoder_of_pylibjpeg_is_taken_before_gdcm(monkeypatch: pytest.MonkeyPatch) -> None:
    """GDCM can end the process; a user may have installed pylibjpeg-libjpeg."""
    offered = {str(JPEGLosslessSV1): {"libjpeg": lambda content, version: content}}
    monkeypatch.setattr(decoders, "_pylibjpeg_plugins", lambda: offered)
    assert decoders.decoder_for(JPEGLosslessSV1).package == "pylibjpeg-libjpeg"
    assert decoders.decoder_for(JPEGLossless).package == "python-gdcm"
