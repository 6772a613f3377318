"""The image's recipe and the docs about it, against the files that they name.

Whether the image can be built and runs is not tested here, as that needs a container engine and a network:
docs/scale.md tells what was tried.
"""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import parotid_seg
from tests.command_line import parse

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMAGES = re.compile(r"parotid-seg:(cpu|gpu)|parotid-seg\.sif")


def commands_of(text: str) -> list[str]:
    """Lines, those joined that end in a backslash, without comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [" ".join(line.split()) for line in lines.replace("\\\n", " ").splitlines() if line.strip()]


def shell_lines() -> list[str]:
    """The command lines that docs/scale.md shows."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), flags=re.S)
    return [line for block in blocks for line in commands_of(block)]


def ignored(path: str) -> bool:
    """Whether a file stays out of the build. Docker's rule: the last pattern counts that meets it or a folder of it."""
    verdict = False
    for pattern in commands_of((ROOT / ".dockerignore").read_text()):
        name = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{name}(/.*)?", path):
            verdict = not pattern.startswith("!")
    return verdict


def found(pattern: str, text: str) -> str:
    """The first group of the first match."""
    match = re.search(pattern, text, flags=re.M)
    assert match is not None, pattern
    return match[1]


def test_the_image_has_the_projects_version_licence_and_python() -> None:
    recipe, project = (ROOT / "Dockerfile").read_text(), PROJECT["project"]
    assert found(r"^ARG VERSION=(.*)", recipe) == parotid_seg.__version__
    assert found(r'image.licenses="(.*?)"', recipe) == project["license"]
    python = found(r"^ARG BASE=python:(3\.\d+)-", recipe)
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


def test_the_build_gets_what_the_package_is_made_from_and_nothing_else() -> None:
    project, build = PROJECT["project"], PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    folders = [*build["packages"], *build["force-include"]]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    needed = [str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts]
    needed += ["pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]]
    assert len(needed) > 100
    assert [path for path in needed if ignored(path)] == []
    assert all((ROOT / path).is_file() for path in needed)
    others = [".git/config", ".venv/bin/python", "tests/conftest.py", "docs/scale.md", "Dockerfile", "scans/a.nii.gz"]
    others += ["parotid_seg/__pycache__/cli.cpython-311.pyc", "parotid_seg/scan/__pycache__/grid.pyc"]
    assert [path for path in others if not ignored(path)] == []


def test_the_source_archive_holds_what_the_package_is_made_from_and_neither_tests_nor_benchmarks() -> None:
    project, build = PROJECT["project"], PROJECT["tool"]["hatch"]
    included = build["build"]["targets"]["sdist"]["only-include"]
    wheel = build["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], project["readme"], *project["license-files"]]
    needed += [build["version"]["path"]]
    assert [path for path in needed if not any(Path(path).is_relative_to(each) for each in included)] == []
    assert [path for path in included if not (ROOT / path).exists()] == []
    assert not {"tests", "benchmarks"} & {*included}


def test_build_lines_of_the_docs_name_targets_and_arguments_that_exist() -> None:
    builds = [line for line in shell_lines() if line.startswith("docker build")]
    targets = {found(r"--target (\w+)", line) for line in builds if "--target" in line}
    assert targets
    assert targets <= set(re.findall(r"^FROM .* AS (\S+)", (ROOT / "Dockerfile").read_text(), flags=re.M))
    text = (ROOT / "docs" / "scale.md").read_text()
    arguments = set(re.findall(r"--build-arg (\w+)=", text))
    assert arguments == set(re.findall(r"^ARG (\w+)=", (ROOT / "Dockerfile").read_text(), flags=re.M))
    assert set(re.findall(r"--secret id=([\w.]+)", text)) == set(
        re.findall(r"type=secret,id=([\w.]+)", (ROOT / "Dockerfile").read_text())
    )


def image_lines() -> list[list[str]]:
    """What the docs hand to the image: command and arguments."""
    runs = [shlex.split(line) for line in shell_lines() if re.search(r"^(docker|apptainer) run", line)]
    images = [next(place for place, word in enumerate(words) if IMAGES.fullmatch(word)) for words in runs]
    return [words[place + 1 :] for words, place in zip(runs, images, strict=True)]


@pytest.mark.parametrize("words", image_lines(), ids=" ".join)
def test_run_lines_of_the_docs_are_understood(words: list[str]) -> None:
    parse(words[0], words[1:])


def test_run_lines_of_the_docs_are_found() -> None:
    assert [words[0] for words in image_lines()] == ["infer", "infer", "listen", "infer"]
