"""The report: self-contained, the worst first, harmless whatever scans are called, and small."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.report.flag_text import severity_of
from parotid_seg.runtime.report.page import names_of, write_report
from parotid_seg.runtime.report.results import RunRecord, results_of
from parotid_seg.runtime.segmentation.segment import _flags
from parotid_seg.scan.labels import LARGEST_RATIO
from tests.runtime.report.records import LABELS, entry, failed, judged, run_of

SIDES = LABELS[1:]

EVIL = (
    "<img src=x onerror=document.title='hit'>\"'&\u202e\u2028\x07\udcff<!--</style></script>"
    "<script>document.title='hit'</script><b id=hit>"
)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""


class Page(HTMLParser):
    """Tags of a page with their attributes, and its texts outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def made(folder: Path, entries: list[Entry], picture_bytes: int = 0, run: RunRecord | None = None) -> tuple[Page, str]:
    (folder / "pictures").mkdir(exist_ok=True)
    for each in entries:
        if each.mask and "/" not in each.mask:
            (folder / each.mask).write_bytes(b"mask")
            if picture_bytes:
                (folder / "pictures" / f"{each.case}.webp").write_bytes(bytes(picture_bytes))
    write_report(results_of(entries, run or run_of()), folder)
    text = (folder / "report.html").read_text("ascii")
    return Page(text), text


def test_it_loads_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    page, text = made(tmp_path, [entry(), failed()], 1000)
    for _, attributes in page.tags:
        for name in ("src", "srcset", "data", "action", "style", "onclick", "onload"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith(("#", "./", "data:image/webp;base64,"))
    assert not re.search(r"https?://|@import|url\(", text)
    assert not page.all("link")
    (policy,) = (meta["content"] or "" for meta in page.all("meta") if meta.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(page.all("script")) == 1


def test_the_policy_names_the_hashes_of_what_is_in_the_page(tmp_path: Path) -> None:
    import base64
    import hashlib

    _, text = made(tmp_path, [entry()])
    for tag in ("style", "script"):
        content = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        assert content.isascii()
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in text


def hostile(folder: Path) -> tuple[Page, str]:
    """A report in which everything that comes from outside is hostile."""
    evil = EVIL.replace("/", "")
    entries = [
        entry(evil, flags=(Flag(FlagCode.STRUCTURE_MISSING, EVIL, 0.5),), mask_sha256=EVIL),
        replace(failed(evil + "2", EVIL, f"/{EVIL}"), source=f"/{EVIL}"),
        replace(entry("b"), backend=EVIL, device=EVIL, precision=EVIL, seconds={EVIL: 1.0}),
        replace(entry("javascript:alert(1)"), volumes_ml={"parotid_left": 20.0, EVIL: 3.0}, agreement={EVIL: 0.5}),
    ]
    return made(folder, entries, 10, run_of(("background", EVIL, "parotid_left"), EVIL))


def test_hostile_texts_are_shown_and_do_nothing(tmp_path: Path) -> None:
    page, _ = hostile(tmp_path)
    assert len(page.all("script")) == 1
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert all((image["src"] or "").startswith("data:image/webp;base64,") for image in page.all("img"))
    assert all((link["href"] or "").startswith(("#", "./")) for link in page.all("a"))
    told = "".join(page.texts)
    assert "<img src=x onerror=document.title='hit'>" in told
    assert "\\u202e\\u2028\\u0007\\udcff" in told


def opened(page: Path) -> str:
    """The page as Chromium has it once its scripts have run."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update"]
    with tempfile.TemporaryDirectory() as profile:
        command = [BROWSER, *options, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
        return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_in_a_browser_its_own_script_runs_and_no_other(tmp_path: Path) -> None:
    hostile(tmp_path)
    text = opened(tmp_path / "report.html")
    page = Page(text)
    assert '<div id="tools">' in text, "the page's own script has shown the tools"
    assert "<title>Parotid glands: 4 cases</title>" in text
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 3
    assert not [attributes for _, attributes in page.tags if attributes.get("id") == "hit" or "onerror" in attributes]


USER = """<script>
const by = document.querySelector("#sort"), turn = document.querySelector("#turn");
const told = [], tell = () => told.push([...document.querySelectorAll("#cases tbody tr:not([hidden])")]
  .map((row) => row.cells[1].dataset.value).join(" "));
const choose = (index) => { by.selectedIndex = index; by.dispatchEvent(new Event("change")); tell(); };
tell(); choose(1); choose(7); turn.click(); tell(); told.push(turn.textContent, by.value);
document.querySelector("th button").click(); tell(); told.push(turn.textContent, by.value);
document.querySelector("#flagged").click(); tell();
document.title = told.join("; ");
</script>"""


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_sorting_by_the_list_and_by_the_headings(tmp_path: Path) -> None:
    entries = [
        entry("c10", 30, 20),
        entry("c9", 30, 29),
        failed("c1e3"),
        entry("C2", 30, 10, flags=(Flag(FlagCode.OBLIQUE, value=9.0),)),
    ]
    _, text = made(tmp_path, entries)
    (tmp_path / "used.html").write_text(re.sub("<meta http-equiv[^>]*>", "", text) + USER)
    title = opened(tmp_path / "used.html").partition("<title>")[2].partition("</title>")[0]
    assert title.split("; ") == [
        *("c1e3 C2 c10 c9", "c1e3 C2 c9 c10", "c9 c10 C2 c1e3", "C2 c10 c9 c1e3", "\u2193 falling", "Ratio"),
        *("c1e3 C2 c10 c9", "\u2191 rising", "Worst first", "c1e3 C2"),
    ]


def test_names_in_letters_of_all_kinds(tmp_path: Path) -> None:
    page, text = made(tmp_path, [entry("Müller-李"), entry("שלום 12")])
    assert text.isascii()
    assert {"Müller-李", "שלום 12"} <= set(page.texts)
    links = [attributes["href"] for attributes in page.all("a")]
    assert "./M%C3%BCller-%E6%9D%8E.nii.gz" in links
    assert text.count(f"<bdi>{''.join(f'&#{ord(letter)};' for letter in 'שלום')} 12</bdi>") == 2


def test_worst_first() -> None:
    cases = [
        entry("fine"),
        entry("unequal", 30, 20),
        entry("differing", 33, 20),
        entry("unsure", agreement={"parotid_left": 0.93, "parotid_right": 0.99}),
        entry("uncertain", flags=(Flag(FlagCode.UNCERTAIN, "parotid_left", 0.7),)),
        entry("one", 30, 0.0, flags=(Flag(FlagCode.STRUCTURE_MISSING, "parotid_right", 0.0),)),
        entry("swapped", flags=(Flag(FlagCode.SIDES_SWAPPED, "parotid_left", 92.0), Flag(FlagCode.SHEARED, value=9.0))),
        failed(),
    ]
    names = [case.name for case in results_of(cases, run_of()).cases]
    assert names == ["broken", "swapped", "one", "uncertain", "differing", "unsure", "unequal", "fine"]
    floors = {"a": (0.8, 0.7), "b": (0.75, 0.6), "c": (0.9, 0.9)}
    cases = [
        *(entry(name, floor_dsc=dict(zip(SIDES, floors[name], strict=True))) for name in floors),
        entry("flagged", floor_dsc=dict.fromkeys(SIDES, 0.65), flags=(Flag(FlagCode.UNUSUAL_VOLUME, SIDES[0], 70),)),
        entry("grave", floor_dsc=dict.fromkeys(SIDES, 0.8), flags=(Flag(FlagCode.SIDES_SWAPPED, SIDES[0], 90.0),)),
        entry("uncalibrated"),
        failed(),
    ]
    names = [case.name for case in results_of(cases, run_of()).cases]
    assert names == ["broken", "grave", "flagged", "uncalibrated", "b", "a", "c"]


def test_what_has_no_name_is_told_apart_by_its_folders(tmp_path: Path) -> None:
    entries = [Entry("", f"/scans/{patient}/CT", "", "failed", "a slice missing") for patient in ("ann", "ben", "ann")]
    entries += [Entry("", "/scans/lone/MR", "", "failed", "cut off"), Entry("", "/x/a", "", "failed", "x"), entry("a")]
    cases = results_of(entries, run_of()).cases
    assert sorted(names_of(cases)) == ["MR", "a", "ann/CT", "ann/CT", "ben/CT", "x/a"]
    assert "ben/CT" in made(tmp_path, entries)[0].texts


def test_only_a_case_with_floors_of_all_structures_is_done() -> None:
    both = dict.fromkeys(SIDES, 0.7)
    assert judged(entry()).verdict == "unknown"
    assert judged(entry(floor_dsc={SIDES[0]: 0.7})).verdict == "unknown"
    assert judged(entry(floor_dsc=both)).verdict == "done"
    assert judged(entry(right=0.0, floor_dsc={SIDES[0]: 0.7})).verdict == "done"
    assert judged(entry(floor_dsc=both, flags=(Flag(FlagCode.OBLIQUE, value=9.0),))).verdict == "check"


def test_a_ratio_of_the_sides_is_a_flag() -> None:
    cases = [entry("differing", 33, 20)]
    (flag,) = judged(cases[0]).flags
    assert (flag.code, flag.structure, flag.value, flag.severity) == (FlagCode.SIDES_DIFFER, "", 33 / 20, 2)
    assert judged(entry("edge", 20 * LARGEST_RATIO, 20)).flags == ()
    missing = Flag(FlagCode.STRUCTURE_MISSING, "parotid_right", 0.1)
    assert [flag.code for flag in judged(entry("speck", 20, 0.1, flags=(missing,))).flags] == [missing.code]


def test_flags_that_runs_give_have_their_severity() -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[0, :2] = 1
    (missing,) = _flags(mask * 0 + 3, LABELS, {"parotid_left": 9.0, "parotid_right": 0.2})
    unusual, cut = _flags(mask, LABELS[:2], {"parotid_left": 70.0})
    (none,) = _flags(mask, LABELS[:2], {"parotid_left": 0.0})
    sheared = Flag(FlagCode.SHEARED, value=9.0)
    assert [severity_of(flag.code) for flag in (missing, none, cut, unusual, sheared)] == [8, 8, 4, 3, 1]


def test_rows_and_sections_are_in_that_order_with_a_keyboard(tmp_path: Path) -> None:
    page, _ = made(
        tmp_path,
        [
            entry("fine"),
            entry("one", 30, 0.0, flags=(Flag(FlagCode.STRUCTURE_MISSING, "parotid_right", 0.0),)),
            failed(),
        ],
    )
    rows = [row["data-section"] for row in page.all("tr") if "data-section" in row]
    assert rows == ["#case-1", "#case-2", "#case-3"]
    assert [section["id"] for section in page.all("details")] == ["case-1", "case-2", "case-3"]
    assert [(link["href"]) for link in page.all("a") if link["href"].startswith("#case")] == rows
    heads = len(page.all("option"))  # where the headings are not shown
    assert len(page.all("button")) == heads + 1
    assert [head["aria-sort"] for head in page.all("th") if "aria-sort" in head] == ["ascending"]
    scopes = [head["scope"] for head in page.all("th")]
    assert scopes[:heads] == ["col"] * heads
    assert scopes[heads:] == 2 * [*["col"] * 4, "row", "row"], "the structures of two cases"
    assert any(each.get("tabindex") == "0" and each.get("role") == "region" for each in page.all("div"))
    assert "right parotid missing (0.0 ml)" in page.texts


def test_no_folder_of_a_scan_is_named(tmp_path: Path) -> None:
    made(tmp_path, [failed(), entry(), replace(failed("slice"), path="/scans/who/ct/7.dcm", source="/scans/who/ct")])
    text = (tmp_path / "report.html").read_text()
    assert "/scans" not in text
    assert str(tmp_path) not in text
    assert "7.dcm: not a NIfTI file" in text
    assert "broken.nii.gz: not a NIfTI file" in text


@pytest.mark.parametrize(
    ("path", "told", "name"),
    [(".", ".: none", "."), ("..", "..: none", ".."), ("/b.nii", "b.nii: none", "b.nii"), ("", "none", "")],
)
def test_arguments_that_are_no_scans(path: str, told: str, name: str) -> None:
    case = judged(Entry("", path, "", "failed", "none", path))
    assert (case.name, case.reason) == (name, told)


@pytest.mark.parametrize(("count", "most"), [(1, 250_000), (40, 10_000_000), (1000, 14_000_000)])
def test_size(tmp_path: Path, count: int, most: int) -> None:
    """Pictures of 100 kB are three times what they are."""
    page, text = made(tmp_path, [entry(f"case-{index:04d}") for index in range(count)], 100_000)
    assert len(text) < most
    assert len(page.all("details")) == count
    assert len(page.all("img")) == min(count, 59), "the others are linked"
    assert ("lie beside it" in text) == (count > 59)
    assert "./pictures/case-0000.webp" in text


def test_a_case_without_pictures_and_a_mask_that_is_gone(tmp_path: Path) -> None:
    page, text = made(tmp_path, [entry("here"), replace(entry("gone"), mask="")])
    assert "here" in text
    assert "gone" not in text
    assert not page.all("img")
    made(tmp_path, [])


def test_files_in_other_formats_are_linked_as_far_as_they_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.seg.dcm").write_bytes(b"seg")
    further = {"a.seg.dcm": "1", "a.rtstruct.dcm": "2"}
    page, _ = made(tmp_path, [replace(entry(), further=further)])
    links = [link["href"] for link in page.all("a") if not link["href"].startswith("#")]
    assert links == ["./a.nii.gz", "./a.seg.dcm"]


def test_what_the_run_did_not_come_to_and_what_another_model_did(tmp_path: Path) -> None:
    _, text = made(tmp_path, [replace(entry(), model="cd" * 32)], run=run_of(not_reached=7))
    assert "<b>7</b>not done" in text
    assert "another one, <code>cdcdcdcdcdcd</code>" in text
