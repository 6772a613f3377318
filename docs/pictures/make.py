"""Makes the pictures of the example and of its report anew: `make pictures`.

Segments the packaged example with onnxruntime, and photographs the report with Chromium: light, dark, 390 pixels wide,
and as the page that is printed for the patient (drawn by Ghostscript). Both programs must be installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples" / "imagesTr"
GREYS, COLOURS = 32, 32
"""In the palette of a picture."""
LEAST_COLOUR = 24
"""Least difference of red, green and blue of a pixel that is not grey."""
SCREENS = {
    "report-light": (1240, 1740, False),
    "report-dark": (1240, 1330, True),
    "report-phone": (390, 1900, False),
}
"""Width and height in pixels, and whether the reader prefers dark pages."""
BROWSERS = ("chromium", "google-chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def main() -> None:
    """Write the pictures beside this file."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    ghostscript = shutil.which("gs")
    if not browser or not ghostscript:
        sys.exit(f"found no {'browser' if ghostscript else 'gs'}, expected {' or '.join(BROWSERS)}, and gs")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        words = ("-m", "parotid_seg", "infer", EXAMPLES, "--out", out, "--backend", "onnxruntime", "--quiet")
        subprocess.run([sys.executable, *words], check=True)
        (drawn,) = (out / "pictures").glob("*.png")
        _save(Image.open(drawn), "example")
        page, shot = (out / "report.html").as_uri(), out / "shot.png"
        chrome = (browser, *QUIET, f"--user-data-dir={out / 'profile'}")
        for name, (width, height, dark) in SCREENS.items():
            scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
            size = f"--window-size={width},{height}"
            _run(*chrome, "--hide-scrollbars", scheme, size, f"--screenshot={shot}", page)
            _save(Image.open(shot), name)
        _run(*chrome, "--no-pdf-header-footer", f"--print-to-pdf={out / 'page.pdf'}", page)
        patient = ("-r80", "-dFirstPage=2", "-dLastPage=2", "-dTextAlphaBits=4", "-dGraphicsAlphaBits=4")
        _run(ghostscript, "-q", "-sDEVICE=png16m", *patient, "-o", str(shot), str(out / "page.pdf"))
        _save(Image.open(shot), "report-print")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


def _save(picture: Image.Image, name: str) -> None:
    """Write a PNG with a palette, a third of the size: greys, and the colours of all pixels that are not grey."""
    pixels = np.asarray(picture.convert("RGB"))
    coloured = pixels[np.ptp(pixels, axis=-1) > LEAST_COLOUR]
    colours = Image.fromarray(coloured[None]).quantize(COLOURS).getpalette()
    greys = np.linspace(0, 255, GREYS).round().astype(int).repeat(3).tolist()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*greys, *(colours or [])[: 3 * COLOURS]])
    small = picture.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    small.save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
