"""Files appear whole or not at all; the project's own files name what exists."""

import re
import subprocess

import pytest
from packaging.requirements import Requirement

from lib.machine.files import written_whole
from lib.machine.folders import root


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with written_whole(path) as part:
        part.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it" and list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(RuntimeError), written_whole(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def requirements(name: str) -> dict[str, Requirement]:
    lines = [line.split("#")[0].strip() for line in (root() / name).read_text().splitlines()]
    return {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("-"))}


def test_the_constraints_meet_every_requirement():
    pinned = requirements("constraints.txt")
    wanted = requirements("requirements.txt") | requirements("requirements-dev.txt")
    assert pinned.keys() == wanted.keys()
    for name, requirement in wanted.items():
        assert requirement.specifier.contains(next(iter(pinned[name].specifier)).version), name


def test_colab_meets_every_lower_bound():
    """An upgrade of what is installed there would restart the runtime, and break Run all."""
    there, wanted = requirements("requirements-colab.txt"), requirements("requirements.txt")
    for name, requirement in wanted.items():
        assert [clause.operator for clause in requirement.specifier] == [">="], requirement
        assert requirement.specifier.contains(next(iter(there[name].specifier)).version), requirement


def test_classic_notebook_comes_in_fixed_versions():
    """Those of Colab, as far as it has them: of what has no version here, the constraints say which."""
    there, wanted = requirements("requirements-colab.txt"), requirements("requirements-classic.txt")
    assert [name for name, requirement in wanted.items() if bool(requirement.specifier) == (name in there)] == []
    assert "-c requirements-colab.txt" in (root() / "requirements-classic.txt").read_text().splitlines()


def test_make_alone_prints_what_there_is():
    result = subprocess.run(["make"], cwd=root(), capture_output=True, text=True, check=True)
    listed = re.findall(r"^  make (\S+) +\S", result.stdout, flags=re.M)
    assert {"run", "test", "test-colab", "soak", "format", "publish"} <= set(listed)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_files_that_the_text_names_exist(name):
    text = (root() / name).read_text()
    named = re.findall(r"`((?:lib|tests|benchmarks|notebooks|\.github)/[\w./-]+\.\w+)`", text)
    assert not [path for path in named if not (root() / path).exists()]
    modules = re.findall(r"`((?:lib|benchmarks)\.[a-z_.]+)`", text)
    folders = [(root() / module.replace(".", "/")) for module in modules]
    assert not [f for f in folders if not (f.is_dir() or f.with_suffix(".py").is_file())]


def test_the_tracked_tree_stays_small():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root(), capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [root() / name for name in listed.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 17e6
