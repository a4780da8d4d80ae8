"""What a reader writes in a notebook: answers and exercises; their solutions, and what nbgrader is told.

An answer stands between two marks in a code cell, and the next code cell checks it. An exercise is a code cell whose
first line is `# exercise 3.2`, its check one that begins with `# check 3.2`. The worked solution is the cell of
`notebooks/solutions/` with the exercise's first line; a notebook is solved when it stands in the exercise's place.
"""

import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import jupytext
from nbformat import NotebookNode

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"  # nbgrader's marks
_ANSWER = re.compile(rf"^([ \t]*){BEGIN}\n(?:.*\n)*?[ \t]*{END}$", re.MULTILINE)
_PLACEHOLDER = r"\1# YOUR CODE HERE\n\1raise NotImplementedError()"  # nbgrader's too
_NUMBER = re.compile(r"# (exercise|check) (\d+\.\d+)(?:\n|$)")


def without_answers(text: str) -> str:
    """A code cell, or a whole .py, with nbgrader's placeholder for each answer; ValueError for a mark without its twin.

    >>> print(without_answers("### BEGIN SOLUTION\\nanswer = 36\\n### END SOLUTION\\nprint(answer)"))
    # YOUR CODE HERE
    raise NotImplementedError()
    print(answer)
    """
    text = _ANSWER.sub(_PLACEHOLDER, text)
    if BEGIN in text or END in text:
        raise ValueError(f"each {BEGIN} needs one {END} below it, each on a line of its own")
    return text


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def numbered(notebook: NotebookNode, kind: str) -> dict[str, NotebookNode]:
    """The code cells of this kind, "exercise" or "check", by number: {"3.2": cell}."""
    matches = [(_NUMBER.match(cell.source), cell) for cell in code_cells(notebook)]
    return {match[2]: cell for match, cell in matches if match and match[1] == kind}


def solved(name: str, folder: Path) -> NotebookNode:
    """The notebook `folder/name.py` with the cells of `folder/solutions/name.py` in the exercises' places.

    Raises OSError where there are no solutions, and ValueError where one solves no exercise of the notebook.
    """
    notebook, path = jupytext.read(folder / f"{name}.py", fmt="py:percent"), folder / "solutions" / f"{name}.py"
    exercises, solutions = numbered(notebook, "exercise"), numbered(jupytext.read(path, fmt="py:percent"), "exercise")
    if strangers := sorted(solutions.keys() - exercises.keys()):
        raise ValueError(f"{path} solves exercise {', '.join(strangers)}, which {name} does not have: mend its number")
    for number, cell in solutions.items():
        exercises[number].source = cell.source
    return notebook


def worked(run: NotebookNode, name: str, folder: Path) -> NotebookNode:
    """The solutions, each cell with what it and its check put out in the `run` of the solved notebook."""
    solutions = jupytext.read(folder / "solutions" / f"{name}.py", fmt="py:percent")
    outputs: dict[str, list] = defaultdict(list)
    for kind in ("exercise", "check"):
        for number, cell in numbered(run, kind).items():
            outputs[number] += cell.outputs
    for count, (number, cell) in enumerate(numbered(solutions, "exercise").items(), start=1):
        cell.update(outputs=outputs[number], execution_count=count)
    return solutions


def mark_for_nbgrader(notebook: NotebookNode) -> None:
    """Tell nbgrader which cells hold an answer, and that the code cell after each is worth a point; in place."""
    common = {"schema_version": 3, "task": False}
    pairs = [(cell, check) for cell, check in pairwise(code_cells(notebook)) if BEGIN in cell.source]
    for number, (cell, check) in enumerate(pairs, start=1):
        answer = {"grade": False, "solution": True, "locked": False, "grade_id": f"answer-{number}"}
        graded = {"grade": True, "solution": False, "locked": True, "grade_id": f"check-{number}", "points": 1}
        cell.metadata["nbgrader"], check.metadata["nbgrader"] = common | answer, common | graded
