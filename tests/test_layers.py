"""The floors of lib/: imports point downwards only, and the whole stays small."""

import ast
import subprocess
from pathlib import Path

import pytest

from lib import runtime

FLOORS = (
    {"config", "runtime", "boxes", "matching", "roi_align", "draw", "synthetic_shapes", "safe_npy", "history"},
    {"split", "backbone", "anchors", "synthetic_layout"},
    {"data", "assign"},
    {"synthetic", "coco", "rpn", "boxhead", "maskhead"},
    {"maskrcnn"},
    {"checkpoint", "stages", "fast"},
    {"evaluate", "features"},
    {"train", "predict"},
    {"browser", "report", "run", "badges", "pretrain"},
)
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
LIB = runtime.root() / "lib"
MODULES = sorted(path for path in LIB.glob("*.py") if path.stem != "__init__")


def imports_of(path: Path) -> set[str]:
    """Full names of every module the file imports, wherever in the file it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names.add("lib." * bool(node.level) + module)
            if module == "lib" or (node.level and not module):
                names |= {f"lib.{alias.name}" for alias in node.names}
    return names


def lib_imports(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("lib.")} - {""}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_to_a_lower_floor(path):
    assert path.stem in FLOOR_OF, f"give lib/{path.name} a floor in tests/test_layers.py and in the README"
    for name in lib_imports(path):
        assert FLOOR_OF[name] < FLOOR_OF[path.stem], f"lib/{path.name} must not import lib.{name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_the_browser_knows_widgets(path):
    assert path.stem == "browser" or not any(name.split(".")[0] == "ipywidgets" for name in imports_of(path))


def test_imports_are_seen_in_every_spelling(tmp_path):
    file = tmp_path / "module.py"
    text = "from lib import rpn\nimport lib.boxes as b\nif 1:\n from lib.data import FILES\nfrom . import draw"
    file.write_text(text)
    assert lib_imports(file) == {"rpn", "boxes", "data", "draw"}


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank line, comment or docstring."""
    text = path.read_text(encoding="utf-8")
    docs = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            docs |= set(range(body[0].lineno, body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in docs for n, line in lines)


def test_lib_stays_small():
    assert sum(code_lines(path) for path in MODULES) < 3340
    assert max(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES) <= 300


def test_no_file_names_a_folder_of_one_machine():
    machine = ["/".join(("", name, "")) for name in ("work", "home", "Users", "root")]
    names = [
        "README.md",
        "Makefile",
        "pyproject.toml",
        "lib/*.py",
        "notebooks/*.py",
        "notebooks/*.ipynb",
        "benchmarks/*",
    ]
    files = [path for name in names for path in sorted(runtime.root().glob(name)) if path.is_file()]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not [folder for folder in machine if folder in text], path


def ignored(*names: str) -> list[str]:
    command = ["git", "check-ignore", *names]
    found = subprocess.run(command, cwd=runtime.root(), capture_output=True, text=True)
    if found.returncode == 128:
        pytest.skip("not a git checkout")
    return found.stdout.split()


def test_git_ignores_what_a_run_makes_and_no_source():
    assert ignored("lib/run.py", "tests/test_run.py", "weights/.gitkeep", "figures/metrics.json") == []
    made = ["data/synthetic/x.h5", "weights/demo/rpn.safetensors", ".venv/x", "notebooks/03_rpn.failed.ipynb"]
    assert ignored(*made) == made
