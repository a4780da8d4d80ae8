"""The student version: the parts left out and nothing else, answers and exercises, and assertions that notice."""

import difflib
import functools
import importlib
import inspect
import re
import subprocess
import sys
import types

import jupytext
import matplotlib
import nbformat
import pytest
import torch

from lib.__main__ import main
from lib.machine.folders import FOLDERS, root
from lib.maskrcnn import MaskRCNN
from lib.notebook import exercises, student
from lib.notebook.execute import NOTEBOOKS, execute
from lib.notebook.student import PARTS

FOLDER = root() / "notebooks"
LISTED = [(name, notebook) for notebook, names in PARTS.items() for name in names]
every_part = pytest.mark.parametrize("name, notebook", LISTED, ids=[name for name, _ in LISTED])
PARTS_PY = '''"""Two parts.  """

import torch  # kept


class Head:
    def forward(self, x):
        """Twice x.

        >>> Head().forward(2)
        4
        """
        # how
        y = x + x
        return y

    # between
    def other(self):
        """Another forward."""
        return "kept"


@torch.no_grad()
def double(
    x: int,
) -> int:
    """Twice x."""
    return 2 * x
# below
LAST = 3  # kept
'''
NOTEBOOK_PY = """# %% [markdown]
# # A claim

# %%
# @title Your answer (write over ours)
### BEGIN SOLUTION
answer = 6 * 6
### END SOLUTION

# %% [markdown]
# It is 36.

# %%
assert answer == 36
print("as lib says")

# %% [markdown]
# ### Exercise 3.2: twice

# %%
# exercise 3.2
def twice(x):
    return None


# %%
# check 3.2
if twice(1) is None:
    print("exercise 3.2: not done yet")
else:
    assert twice(2) == 4
    print("well done")
"""
SOLUTIONS_PY = """# %% [markdown]
# Add it to itself.

# %%
# exercise 3.2
def twice(x):
    return x + x


print("by adding")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one module, one notebook and its solution, tracked by git."""
    monkeypatch.setattr(student, "PARTS", {"03_rpn": ("parts.Head.forward", "parts.double")})
    project = tmp_path / "project"
    files = {
        "lib/parts.py": PARTS_PY,
        "notebooks/03_rpn.py": NOTEBOOK_PY,
        "notebooks/solutions/03_rpn.py": SOLUTIONS_PY,
        "tests/test_parts.py": "",
        ".gitignore": "*.h5\n",
        "README.md": "# A project\n",
        "jupytext.toml": (root() / "jupytext.toml").read_text(),
    }
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (project / "notebooks" / "mine.h5").touch()
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], cwd=project, check=True)
    return project


def texts(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_student_version_is_the_project_with_parts_and_answers_left_out(project, tmp_path):
    execute("03_rpn", project)
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    before = {name: (project / name).read_bytes() for name in files_of(project)}
    out = tmp_path / "course" / "student"
    student.write_student(project, out)
    notebooks = {"notebooks/03_rpn.py", "notebooks/03_rpn.ipynb"}
    assert files_of(out) == {"lib/parts.py", "README.md", "jupytext.toml"} | notebooks
    assert {name: (project / name).read_bytes() for name in files_of(project)} == before
    assert [path.name for path in out.parent.iterdir()] == ["student"]

    solution = "### BEGIN SOLUTION\nanswer = 6 * 6\n### END SOLUTION"
    text = NOTEBOOK_PY.replace(solution, "# YOUR CODE HERE\nraise NotImplementedError()")
    assert (out / "notebooks/03_rpn.py").read_text() == text
    notebook = nbformat.read(out / "notebooks/03_rpn.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert texts(notebook) == texts(jupytext.reads(text, fmt="py:percent"))
    assert all(not cell.outputs and cell.execution_count is None for cell in exercises.code_cells(notebook))


def test_a_body_goes_and_every_other_line_stays():
    text = student.blanked(student.blanked(PARTS_PY, "Head.forward", "03_rpn"), "double", "03_rpn")
    body = "        # how\n        y = x + x\n        return y\n"
    line = 'raise NotImplementedError("{} is yours to write: 03_rpn tests it")\n'
    expected = PARTS_PY.replace(body, "        " + line.format("Head.forward"))
    assert text == expected.replace("    return 2 * x\n", "    " + line.format("double"))


@pytest.mark.parametrize("name", ["triple", "Head", "Head.backward", "LAST", "bare"])
def test_a_part_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"there is no function {name} with a docstring"):
        student.blanked(PARTS_PY + "\n\ndef bare():\n    return 1\n", name, "03_rpn")


@pytest.mark.parametrize("ending", ["", "### END SOLUTION\n### END SOLUTION\n", "# ### END SOLUTION\n"])
def test_an_answer_without_an_end_is_named_and_nothing_is_left(project, tmp_path, ending):
    path = project / "notebooks" / "03_rpn.py"
    path.write_text(NOTEBOOK_PY.replace("### END SOLUTION\n", ending))
    with pytest.raises(ValueError, match="^03_rpn.py: each ### BEGIN SOLUTION needs one ### END SOLUTION below it"):
        student.write_student(project, tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


def test_a_folder_that_is_there_stays_as_it_is(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "work.py").write_text("hours of it")
    with pytest.raises(SystemExit, match="^error: student is there already, .* choose another folder"):
        main(["student"])
    assert files_of(tmp_path / "student") == {"work.py"}


def test_a_project_that_git_does_not_track_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a git repository"):
        student.write_student(tmp_path, tmp_path / "student")


@every_part
def test_each_part_is_blanked_alone(name, notebook):
    """All lines outside the function stay, the module can be imported, and only the function is not implemented."""
    module, _, function = name.partition(".")
    old = (root() / "lib" / f"{module}.py").read_text()
    new = student.blanked(old, function, notebook)
    changes = [c for c in difflib.SequenceMatcher(None, old.split("\n"), new.split("\n"), False).get_opcodes()]
    body = [(start, end) for kind, start, end, *_ in changes if kind != "equal"]
    lines, first = inspect.getsourcelines(part(name))
    assert first <= body[0][0] and body[-1][1] == first - 1 + len(lines)

    blank = types.ModuleType(f"lib.{module}")
    sys.modules[f"{blank.__name__}_blank"] = blank
    blank.__dict__["__name__"] = f"{blank.__name__}_blank"  # dataclasses look their module up
    try:
        exec(compile(new, f"{module}.py", "exec"), vars(blank))
    finally:
        del sys.modules[blank.__name__]
    called = functools.reduce(getattr, function.split("."), blank)
    required = [p for p in inspect.signature(called).parameters.values() if p.default is p.empty]
    with pytest.raises(NotImplementedError, match=f"^{re.escape(function)} is yours to write: {notebook} tests it$"):
        called(*[None] * len(required))


def part(name):
    """The function itself, "rpn.RPNHead.forward" say."""
    module, *steps = name.split(".")
    return functools.reduce(getattr, steps, importlib.import_module(f"lib.{module}"))


def test_the_set_up_needs_no_part(tmp_path):
    """In the real student version: the scenes are written and read, and what is blank says so."""
    main(["student", "--out", str(tmp_path / "student")])
    assert not (tmp_path / "student" / "notebooks" / "solutions").exists()
    for name, _ in LISTED:
        assert "is yours to write" in (tmp_path / "student" / "lib" / f"{name.split('.')[0]}.py").read_text()
    code = """
import torch
from lib.config import load_config
from lib.data.reader import CourseDataset
from lib.data.sources import ensure_data
config = load_config("demo")
print(len(CourseDataset(ensure_data("synthetic", config), "train", config.data)))
from lib.boxes import iou_matrix
iou_matrix(torch.zeros(1, 4), torch.zeros(1, 4))
"""
    own = {variable: str(tmp_path / name) for name, variable in FOLDERS.items()} | {"MASKRCNN_SET": "data.images=6"}
    command = ["env", *(f"{k}={v}" for k, v in own.items()), sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path / "student", capture_output=True, text=True)
    assert int(result.stdout.split()[-1]) > 0
    assert result.stderr.splitlines()[-1].startswith("NotImplementedError: iou_matrix is yours to write: 02_anchors")


def shifted(value):
    """A wrong result: a number is one too large, an index is 0, a truth a lie."""
    if isinstance(value, dict):
        return {name: shifted(v) for name, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(shifted(v) for v in value)
    if isinstance(value, torch.Tensor) and not value.is_floating_point():
        return ~value if value.dtype == torch.bool else torch.zeros_like(value)
    return value + 1


@pytest.fixture
def watched(monkeypatch):
    """A function that has calls of parts recorded: `.called`, and the result of `.wrong` made wrong."""
    state = types.SimpleNamespace(called=set(), wrong=None)

    def watch(name):
        true = part(name)

        @functools.wraps(true)
        def stand_in(*args, **kwargs):
            state.called.add(name)
            result = true(*args, **kwargs)
            return shifted(result) if state.wrong == name else result

        owners = [module for key, module in sys.modules.items() if key.split(".")[0] == "lib"]
        owners += [part("rpn.RPNHead")]
        for owner in owners:
            for key, value in list(vars(owner).items()):
                if value is true:
                    monkeypatch.setattr(owner, key, stand_in)

    state.watch = watch
    return state


def failure(cell, names):
    """Run a cell's code with these names -> the kind of exception that it ends with, or None."""
    code = "\n".join(line for line in cell.source.split("\n") if not line.startswith("%"))
    try:
        exec(compile(code, "a cell", "exec"), names)
    except Exception as error:
        return type(error)
    return None


def untrained(weights, stage, config):
    torch.manual_seed(0)
    return MaskRCNN(config).eval()


@pytest.mark.parametrize("notebook", PARTS)
def test_an_assertion_of_the_notebook_notices_a_wrong_part(notebook, watched, monkeypatch, tmp_path, scenes):
    """A cell that calls the part must fail with AssertionError where that is wrong. Nothing is trained."""
    monkeypatch.chdir(FOLDER)
    for folder, variable in FOLDERS.items():
        monkeypatch.setenv(variable, str(tmp_path / folder))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "synthetic").symlink_to(scenes)
    monkeypatch.setenv("MASKRCNN_SET", "data.val_fraction=0.25 data.test_fraction=0.25")
    monkeypatch.setattr("lib.training.loop.train_until", lambda stage, config, data, weights: weights)
    monkeypatch.setattr("lib.training.checkpoint.load_model", untrained)
    monkeypatch.setattr("lib.notebook.figures.save_figure", lambda *_: None)
    names = {"__name__": "__main__", "display": lambda *_: None}
    importlib.import_module("lib.notebook.browser")
    for name in PARTS[notebook]:
        watched.watch(name)
    unnoticed = set(PARTS[notebook])
    with matplotlib.rc_context():
        for cell in exercises.code_cells(jupytext.read(FOLDER / f"{notebook}.py", fmt="py:percent")):
            watched.called.clear()
            before = dict(names)
            if failure(cell, names) is None and "assert" in cell.source:
                unnoticed -= noticed_by(cell, before, watched, watched.called & unnoticed)
            matplotlib.pyplot.close("all")
    assert not unnoticed


def noticed_by(cell, names, watched, parts):
    """Those of the parts that the cell's assertions find wrong."""
    noticed = set()
    for watched.wrong in parts:
        with torch.random.fork_rng():
            if failure(cell, dict(names)) is AssertionError:
                noticed.add(watched.wrong)
    watched.wrong = None
    return noticed


def test_solutions_are_shown_with_what_their_checks_say(project):
    folder = project / "notebooks"
    execute("03_rpn", project)
    plain = (folder / "03_rpn.ipynb").read_bytes()
    assert b"exercise 3.2: not done yet" in plain
    execute("03_rpn", project, solutions=True)
    assert (folder / "03_rpn.ipynb").read_bytes() == plain
    reasoning, code = nbformat.read(folder / "solutions" / "03_rpn.ipynb", as_version=4).cells
    assert reasoning.source == "Add it to itself." and code.source.startswith("# exercise 3.2\n")
    assert [output.text for output in code.outputs] == ["by adding\nwell done\n"]

    manager = jupytext.TextFileContentsManager()
    manager.root_dir = str(project)
    model = manager.get("notebooks/solutions/03_rpn.py", type="notebook")
    assert model["content"].cells[1].outputs[0].text.endswith("well done\n")


def test_a_solution_to_no_exercise_is_named(project):
    path = project / "notebooks" / "solutions" / "03_rpn.py"
    path.write_text(SOLUTIONS_PY.replace("3.2", "3.4"))
    with pytest.raises(ValueError, match="03_rpn.py solves exercise 3.4, which 03_rpn does not have"):
        execute("03_rpn", project, solutions=True)


def test_a_wrong_solution_fails_its_check(project):
    path = project / "notebooks" / "solutions" / "03_rpn.py"
    path.write_text(SOLUTIONS_PY.replace("x + x", "x + x + 1"))
    with pytest.raises(ValueError, match="03_rpn stopped at cell 7 of 7: AssertionError"):
        execute("03_rpn", project, solutions=True)
    assert not path.with_suffix(".ipynb").exists()


def marks(notebook):
    """What nbgrader is told: {number of the code cell: (kind, id, points)}."""
    told = [cell.metadata.get("nbgrader") for cell in exercises.code_cells(notebook)]
    kinds = {n: "solution" if t.solution else "grade" if t.grade else "" for n, t in enumerate(told) if t}
    return {n: (kind, told[n].grade_id, told[n].get("points")) for n, kind in kinds.items()}


def test_nbgrader_is_told_and_a_save_in_jupyter_keeps_it(project):
    execute("03_rpn", project)
    path = project / "notebooks" / "03_rpn.ipynb"
    expected = {0: ("solution", "answer-1", None), 1: ("grade", "check-1", 1)}
    assert marks(nbformat.read(path, as_version=4)) == expected
    manager = jupytext.TextFileContentsManager()
    manager.root_dir = str(project)
    for ending in ("ipynb", "py"):
        model = manager.get(f"notebooks/03_rpn.{ending}", type="notebook")
        manager.save(model, f"notebooks/03_rpn.{ending}")
        assert marks(nbformat.read(path, as_version=4)) == expected
    assert (project / "notebooks" / "03_rpn.py").read_text() == NOTEBOOK_PY


@pytest.mark.parametrize("path", sorted(FOLDER.glob("solutions/*.py")), ids=lambda path: path.stem)
def test_each_solution_solves_an_exercise_and_is_shown_as_it_is(path):
    solution, product = jupytext.read(path, fmt="py:percent"), nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    exercises.solved(path.stem, FOLDER)
    message = f"run `python -m lib run --solutions --only {path.stem}`"
    assert texts(product) == texts(solution), message
    for cell in exercises.code_cells(product):
        assert cell.outputs and "error" not in {output.output_type for output in cell.outputs}, cell.source[:80]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_committed_notebook_tells_nbgrader(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    told = marks(notebook)
    exercises.mark_for_nbgrader(notebook)
    assert told == marks(notebook), f"run `python -m lib run --only {name}`"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_marks_are_in_pairs(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert exercises.without_answers(text).count("# YOUR CODE HERE") == text.count(exercises.BEGIN)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_answers_exercises_and_solutions(name):
    notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    codes = exercises.code_cells(notebook)
    answers = [n for n, cell in enumerate(codes) if exercises.BEGIN in cell.source]
    assert len(answers) >= 5
    for n in answers:
        assert codes[n].metadata.get("cellView") == "form" and codes[n].source.startswith("# @title Your answer")
        assert "assert" in codes[n + 1].source and exercises.BEGIN not in codes[n + 1].source
    stubs, checks = exercises.numbered(notebook, "exercise"), exercises.numbered(notebook, "check")
    solutions = exercises.numbered(jupytext.read(FOLDER / "solutions" / f"{name}.py", fmt="py:percent"), "exercise")
    assert list(stubs) == list(checks) == list(solutions) == [f"{int(name[:2])}.{k + 1}" for k in range(len(stubs))]
    assert 3 <= len(stubs) <= 5
    for number, check in checks.items():
        assert any(text.startswith(f"### Exercise {number}: ") for _, text in texts(notebook)), number
        assert f"exercise {number}: not done yet" in check.source and "assert" in check.source, number
