"""The student version: the project with its parts, and its notebooks' answers, left to be written.

What is left out is found in the source by its name: the parts carry no marks. A part keeps its signature and its
docstring; its body becomes one line that says who writes it. The notebooks' assertions are the tests.
"""

import ast
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nbformat

from lib.notebook.exercises import code_cells, without_answers

PARTS = {  # by the notebook whose assertions test them: until a reader comes to it, nothing needs them
    "01_data": (
        *("boxes.scale_boxes", "preprocess.content_size", "preprocess.normalised"),
        *("preprocess.preprocess_images", "preprocess.preprocess_targets"),
    ),
    "02_anchors": (
        *("anchors.level_anchors", "anchors.pyramid_anchors", "boxes.iou_matrix", "boxes.encode", "boxes.decode"),
        *("boxes.inside", "matching.match_anchors", "matching.sample", "rpn.rpn_targets"),
    ),
    "03_rpn": ("rpn.RPNHead.forward", "rpn.gather_patches", "rpn.rpn_loss", "boxes.clip", "rpn.propose"),
    "04_boxhead": (
        *("roi_align._bilinear", "roi_align.roi_align", "roi_align.pyramid_level", "matching.match_proposals"),
        *("boxhead.box_targets", "boxhead.box_loss", "boxhead.refine", "boxhead.refine_for_training"),
    ),
    "05_maskhead": ("maskhead.mask_targets", "maskhead.mask_loss", "maskhead.class_masks", "maskhead.paste_masks"),
}
_LEFT_OUT = ("notebooks/solutions", "tests", "benchmarks", ".*", "CONTRIBUTING.md")  # a teacher's


def write_student(root: Path, out: Path) -> None:
    """The project at `root`, as git tracks it, to the new folder `out`, with all that students write left out.

    Notebooks have no outputs. Raises ValueError where `out` is there already or git does not track the project, and
    where a part, or the end of an answer, is not found.
    """
    if out.exists():
        raise ValueError(f"{out} is there already, perhaps with your work: choose another folder, or move it away")
    folder = out.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".student") as part:
        copy = Path(part) / out.name
        for name in _tracked(root):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, copy / name)
        blank_parts(copy / "lib", PARTS)
        for path in (copy / "notebooks").iterdir():
            _blank_notebook(path)
        copy.rename(out)


def _tracked(root: Path) -> list[str]:
    """The project's files that students get, from its folder."""
    command = ["git", "ls-files", "-z", "--", ".", *(f":(exclude){name}" for name in _LEFT_OUT)]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if found.returncode or not found.stdout:
        raise ValueError(f"{root} is not a git repository, which says what belongs to the project: `git clone` it")
    return [name for name in found.stdout.split("\0") if (root / name).is_file()]


def blank_parts(lib: Path, notebooks: Iterable[str]) -> None:
    """Blank the parts that these notebooks test, in the folder `lib`."""
    for notebook in notebooks:
        for name in PARTS[notebook]:
            module, _, function = name.partition(".")
            path = lib / f"{module}.py"
            path.write_text(blanked(path.read_text(encoding="utf-8"), function, notebook), encoding="utf-8")


def blanked(text: str, name: str, notebook: str) -> str:
    """A module's text with the body of the function `name`, or `Class.name`, gone; every other line as it was.

    Raises ValueError where there is no such function with a docstring.

    >>> print(blanked('def f(x):\\n    \"\"\"Twice x.\"\"\"\\n    return 2 * x  # so\\n\\n\\nX = 1', "f", "01_data"))
    def f(x):
        \"\"\"Twice x.\"\"\"
        raise NotImplementedError("f is yours to write: 01_data tests it")
    <BLANKLINE>
    <BLANKLINE>
    X = 1
    """
    found: ast.AST | None = ast.parse(text)
    for step in name.split("."):
        found = next((node for node in getattr(found, "body", ()) if getattr(node, "name", None) == step), None)
    if not isinstance(found, ast.FunctionDef) or ast.get_docstring(found) is None:
        raise ValueError(f"there is no function {name} with a docstring: mend PARTS of lib/notebook/student.py")
    lines, docstring = text.split("\n"), found.body[0]
    line = f'raise NotImplementedError("{name} is yours to write: {notebook} tests it")'
    lines[docstring.end_lineno : found.end_lineno] = [" " * docstring.col_offset + line]
    return "\n".join(lines)


def _blank_notebook(path: Path) -> None:
    """Take the answers out of a .py or .ipynb, and the outputs; ValueError names it."""
    try:
        if path.suffix == ".py":
            path.write_text(without_answers(path.read_text(encoding="utf-8")), encoding="utf-8")
            return
        notebook = nbformat.read(path, as_version=4)
        for cell in code_cells(notebook):
            cell.update(source=without_answers(cell.source), outputs=[], execution_count=None)
        nbformat.write(notebook, path)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
