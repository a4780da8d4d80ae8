"""The repository's name is spelled once and copied everywhere else."""

import shutil

import pytest

from lib.machine.folders import root
from lib.notebook import badges

LINK = "https://colab.research.google.com/github/{}/blob/main/notebooks/01_data.ipynb"
OLD, NEW = "old-owner/old.name", "ada/mask-rcnn"


@pytest.fixture
def project(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "https://github.com/{NEW}"\n')
    (tmp_path / "README.md").write_text(f"| [badge]({LINK.format(OLD)}) |\nhttps://github.com/{OLD} stays\n")
    (tmp_path / "notebooks/01_data.py").write_text(f'# [badge]({LINK.format(OLD)})\nREPOSITORY = "{OLD}"\n')
    (tmp_path / "notebooks/01_data.ipynb").write_text(f'["[b]({LINK.format(OLD)})", "REPOSITORY = \\"{OLD}\\"\\n"]')
    return tmp_path


def test_every_place_is_rewritten_and_only_once(project):
    assert {path.name for path in badges.rewrite(project)} == {"README.md", "01_data.py", "01_data.ipynb"}
    assert (project / "README.md").read_text() == f"| [badge]({LINK.format(NEW)}) |\nhttps://github.com/{OLD} stays\n"
    assert (project / "notebooks/01_data.py").read_text() == f'# [badge]({LINK.format(NEW)})\nREPOSITORY = "{NEW}"\n'
    assert f'REPOSITORY = \\"{NEW}\\"\\n' in (project / "notebooks/01_data.ipynb").read_text()
    assert badges.rewrite(project) == []


@pytest.mark.parametrize("address", ["https://github.com/ada", "https://example.org/ada/name", ""])
def test_an_address_without_owner_and_name_is_refused(project, address):
    (project / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')
    with pytest.raises(ValueError, match="OWNER/NAME"):
        badges.rewrite(project)


def test_the_project_itself_is_in_step(tmp_path):
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(root() / name, tmp_path)
    shutil.copytree(root() / "notebooks", tmp_path / "notebooks")
    assert badges.rewrite(tmp_path) == [], "run `make badges`"
