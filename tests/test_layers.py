"""The rooms of lib/: imports point one way, the top floor is the assignment, and the whole stays small."""

import ast
import subprocess
from pathlib import Path

import pytest

from lib.machine.folders import root

LIB = root() / "lib"
FLOOR = "the top floor"
PARTS = (  # in reading order: each imports only parts before it
    *("boxes", "anchors", "matching", "roi_align", "preprocess"),
    *("backbone", "rpn", "boxhead", "maskhead", "maskrcnn", "config"),
)
ROOMS = {  # what each room may import, beside itself
    "machine": set(),
    FLOOR: {"machine"},
    "data": {FLOOR, "machine"},
    "scores": {FLOOR, "machine", "data"},
    "speed": {FLOOR, "machine", "data"},
    "training": {FLOOR, "machine", "data", "scores", "speed"},
    "notebook": {FLOOR, "machine", "data", "scores", "speed", "training"},
    "commands": {FLOOR, "machine", "data", "scores", "speed", "training", "notebook"},
}
MODULES = sorted(path for path in LIB.rglob("*.py") if path.parent != LIB or path.stem not in ("__init__", "__main__"))


def imports_of(path: Path) -> set[str]:
    """Full names of every module the file imports, wherever in the file it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(["lib"] * bool(node.level) + [node.module] * bool(node.module))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def modules_of(path: Path) -> set[tuple[str, str]]:
    """The (room, module) pairs of lib that a file imports."""
    pairs = set()
    for name in imports_of(path):
        match name.split("."):
            case ["lib", room, module, *_] if room and (LIB / room).is_dir():
                pairs.add((room, module))
            case ["lib", module, *_] if (LIB / f"{module}.py").is_file():
                pairs.add((FLOOR, module))
    return pairs


def room_of(path: Path) -> str:
    return FLOOR if path.parent == LIB else path.parent.name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_imports_point_one_way(path):
    room, allowed = room_of(path), ROOMS[room_of(path)]
    for other, module in modules_of(path):
        assert other == room or other in allowed, f"{path.relative_to(LIB)} must not import lib.{other}.{module}"
        if room == other == FLOOR:
            assert PARTS.index(module) < PARTS.index(path.stem), f"lib/{path.name} must not import lib.{module}"


@pytest.mark.parametrize("path", sorted(LIB.rglob("*.py")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_lib_never_imports_what_is_handed_in(path):
    assert not {name for name in imports_of(path) if name.split(".")[0] == "handin"}


def test_no_module_is_imported_in_a_circle():
    graph = {(room_of(p), p.stem): modules_of(p) for p in MODULES if p.stem != "__init__"}
    left = dict(graph)
    while free := [module for module, imports in left.items() if not imports & left.keys() - {module}]:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_only_the_browser_knows_widgets(path):
    assert path.stem == "controls" or not any(name.split(".")[0] == "ipywidgets" for name in imports_of(path))


def test_imports_are_seen_in_every_spelling(tmp_path):
    file = tmp_path / "module.py"
    text = (
        "from lib import rpn\nimport lib.boxes as b\nif 1:\n from lib.data.reader import FILES\nfrom . import config\n"
    )
    file.write_text(text + "from lib.notebook import draw\nimport lib.training.loop\n")
    assert modules_of(file) == {
        *((FLOOR, name) for name in ("rpn", "boxes", "config")),
        *(("data", "reader"), ("notebook", "draw"), ("training", "loop")),
    }


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank line, comment or docstring."""
    text = path.read_text(encoding="utf-8")
    docs = set()
    for node in ast.walk(ast.parse(text)):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant()) as doc, *_]:
                docs |= set(range(doc.lineno, doc.end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in docs for n, line in lines)


def test_the_top_floor_is_the_assignment():
    floor = [path for path in MODULES if room_of(path) == FLOOR]
    assert {path.stem for path in floor} == set(PARTS)
    assert sum(map(code_lines, floor)) <= 750


def test_lib_stays_small():
    assert sum(map(code_lines, MODULES)) <= 5880  # we want 3,000
    assert max(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES) <= 250


def test_no_file_names_a_folder_of_one_machine():
    machine = ["/".join(("", name, "")) for name in ("work", "home", "Users", "root")]
    names = ["*.md", "Makefile", "pyproject.toml", "lib/**/*.py", "notebooks/*.py", "notebooks/*.ipynb", "benchmarks/*"]
    names += ["handin/*", "report/*.tex", "report/*.bib", "report/*.md"]
    files = [path for name in names for path in sorted(root().glob(name)) if path.is_file()]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not [folder for folder in machine if folder in text], path


def ignored(*names: str) -> list[str]:
    command = ["git", "check-ignore", *names]
    found = subprocess.run(command, cwd=root(), capture_output=True, text=True)
    if found.returncode == 128:
        pytest.skip("not a git checkout")
    return found.stdout.split()


def test_git_ignores_what_a_run_makes_and_no_source():
    kept = ["lib/data/reader.py", "tests/test_run.py", "weights/.gitkeep", "figures/published/metrics.json"]
    kept += ["report/report.tex", "report/where.md", "handin/submission.py"]
    assert ignored(*kept) == []
    made = ["data/synthetic/x.h5", "weights/demo/rpn.safetensors", ".venv/x", "notebooks/03_rpn.failed.ipynb"]
    made += ["figures/metrics.json", "figures/06_cost.csv", "figures/06_detections.png", ".venv-colab/x"]
    made += ["report/generated/numbers.tex", "report/report.pdf", "submission.zip", "figures/index.md"]
    assert ignored(*made) == made
