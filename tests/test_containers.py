"""The image's recipe against what it is made from: what it names exists, what it needs is sent, and it is not root's.

Building it needs an engine and a network; see docs/scale.md for what was tried.
"""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from parotid_seg.cli import app

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMAGES = re.compile(r"parotid-seg:(cpu|gpu)|parotid-seg\.sif")


def commands_of(text: str) -> list[str]:
    """Lines, those joined that end in a backslash, without comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [" ".join(line.split()) for line in lines.replace("\\\n", " ").splitlines() if line.strip()]


def stages() -> dict[str, list[str]]:
    found = {"": []}
    for line in commands_of((ROOT / "Dockerfile").read_text()):
        if line.startswith("FROM"):
            found[line.split(" AS ")[1]] = []
        found[list(found)[-1]].append(line)
    return found


def whole(stage: str) -> list[str]:
    """A stage's lines after those of the stages that it is made from."""
    lines = stages()[stage]
    before = lines[0].split()[1]
    return [*(whole(before) if before in stages() else []), *lines]


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


def requirements(extra: str) -> set[str]:
    """Names of what an extra brings, with the extras of ours that it names."""
    found = set()
    for each in PROJECT["project"]["optional-dependencies"][extra]:
        name, _, extras = re.match(r"([\w-]+)(\[([\w,]+)\])?", each).groups()
        found |= {name} if name != "parotid-seg" else set().union(*map(requirements, extras.split(",")))
    return found


def test_targets_are_cpu_and_gpu_and_the_last_is_what_a_plain_build_makes():
    assert list(stages())[-1] == "cpu"
    for target in ("cpu", "gpu"):
        assert stages()[target][0] == f"FROM runtime AS {target}"
        assert f"COPY --from={target}-packages /opt/parotid-seg /opt/parotid-seg" in stages()[target]
        assert f"{target}-packages" in stages()


def test_every_stage_begins_with_the_base_that_can_be_named():
    (base,) = stages()[""]
    python = re.fullmatch(r"ARG BASE=python:3\.(\d+)-slim-\w+", base)[1]
    assert f"Programming Language :: Python :: 3.{python}" in PROJECT["project"]["classifiers"]
    for name in stages():
        if name:
            assert whole(name)[0].startswith("FROM ${BASE} AS ")


def test_packages_are_of_the_tested_versions_and_without_torch():
    lines = " ".join(line for name in stages() for line in stages()[name])
    installs = re.findall(r"pip install ([^&]*)", lines)
    assert len(installs) == 3
    assert all(each.startswith("-c constraints.txt ") for each in installs)
    extras = {extra for each in installs for found in re.findall(r"\.\[([\w,]+)\]", each) for extra in found.split(",")}
    assert extras == {"node", "openvino", "gpu"}
    assert all("torch" not in requirements(extra) for extra in extras)


def test_onnxruntime_gpu_takes_the_place_of_onnxruntime_as_make_gpu_does_it():
    recipe = (ROOT / "Makefile").read_text().split("\n.venv-gpu/.ready:")[1].split("\n\n")[0]
    swap = r"gpu\]' .*uninstall (-q )?-y onnxruntime onnxruntime-gpu .* --no-deps onnxruntime-gpu "
    assert re.search(swap, " ".join(recipe.split()))
    assert re.search(swap, " ".join(stages()["gpu-packages"]))


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_the_command_as_nobody_in_particular(target):
    lines = whole(target)
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert [int(part) > 0 for part in users[-1].split(":")] == [True, True]
    assert 'ENTRYPOINT ["parotid-seg"]' in lines
    assert "parotid-seg" in PROJECT["project"]["scripts"]
    environment = dict(re.findall(r"([A-Z_]+)=(\S+)", " ".join(line for line in lines if line.startswith("ENV"))))
    assert f"RUN mkdir --mode=1777 {environment['XDG_CACHE_HOME']}" in lines
    assert environment["PATH"].startswith("/opt/parotid-seg/bin:")


def test_labels_tell_version_and_licence():
    label = next(line for line in stages()["runtime"] if line.startswith("LABEL"))
    assert f"ARG VERSION={PROJECT['project']['version']}" in stages()["runtime"]
    assert 'image.version="${VERSION}"' in label
    assert f'image.licenses="{PROJECT["project"]["license"]}"' in label


def test_the_build_gets_what_the_package_is_made_from_and_nothing_else():
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


def test_build_lines_of_the_docs_name_targets_and_arguments_that_exist():
    builds = [line for line in shell_lines() if line.startswith("docker build")]
    targets = {re.search(r"--target (\w+)", line)[1] for line in builds if "--target" in line}
    assert targets == {"gpu"}
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
def test_run_lines_of_the_docs_are_understood(words):
    typer.main.get_command(app).commands[words[0]].make_context(words[0], words[1:])


def test_run_lines_of_the_docs_are_found():
    assert [words[0] for words in image_lines()] == ["infer", "infer", "listen", "infer"]
