"""What each demand of the assignment refers to is there, and the page is what the list says."""

import ast
import importlib
import re

import pytest

from handin.exports import exports, titles
from handin.where import PAGE, lib_module, page, where
from lib.machine.folders import root

SECTIONS, DEMANDS = where()
SHEET = "1 2 3 4 4.1 4.2 4.3 4.4 4.5 4.6 5.1 5.2 6.1 6.2 6.3 6.4 6.5 7.1 7.2 7.3 7.4 7.5 8 9.1 9.2".split()
KEYS = {"section", "asks", "weight", "notebook", "lib", "test", "shows", "paper"}


def references(key):
    return sorted({reference for demand in DEMANDS for reference in demand.get(key, ())})


def test_the_page_is_up_to_date():
    assert (root() / PAGE).read_text() == page(), "run `python -m handin where`"


def test_every_section_of_the_sheet_is_there_with_its_grading():
    assert list(SECTIONS) == SHEET and [d["section"] for d in DEMANDS] == sorted(d["section"] for d in DEMANDS)
    assert {demand["section"] for demand in DEMANDS} == set(SHEET)
    assert all(demand.keys() <= KEYS for demand in DEMANDS)
    weights = {s: [d["weight"] for d in DEMANDS if d["section"] == s and "weight" in d] for s in ("9.1", "9.2")}
    assert weights == {"9.1": [4, 3, 3, 10], "9.2": [3, 15, 20, 7, 15, 10]}


def test_what_is_to_be_programmed_has_a_notebook_a_function_and_a_test():
    for demand in DEMANDS:
        if not demand["section"].startswith("9"):
            assert demand["notebook"] and demand["lib"] and demand["test"], demand["asks"]


@pytest.mark.parametrize("notebook", sorted({reference.split(": ")[0] for reference in references("notebook")}))
def test_headings_are_in_the_notebooks(notebook):
    named = {reference.split(": ", 1)[1] for reference in references("notebook") if reference.startswith(notebook)}
    assert named and named <= set(titles(root() / "notebooks" / f"{notebook}.py"))


@pytest.mark.parametrize("reference", references("lib"))
def test_functions_can_be_imported(reference):
    path = lib_module(reference).relative_to(root()).with_suffix("")
    found = importlib.import_module(".".join(path.parts))
    for name in f"lib.{reference}".split(".")[len(path.parts) :]:
        found = getattr(found, name)
    assert reference.count(".") >= len(path.parts) - 1, "names a module, not what is in it"


def test_a_function_in_no_module_is_named():
    with pytest.raises(ValueError, match="where.toml names lib.nowhere.f, which is in no module"):
        lib_module("nowhere.f")


@pytest.mark.parametrize("module", sorted({reference.split(".")[0] for reference in references("test")}))
def test_tests_are_collected_under_their_names(module):
    body = ast.parse((root() / "tests" / f"{module}.py").read_text()).body
    collected = {f"{module}.{node.name}" for node in body if isinstance(node, ast.FunctionDef)}
    named = {reference for reference in references("test") if reference.startswith(f"{module}.test_")}
    assert named and named <= collected


def test_figures_and_tables_are_exported_and_all_are_referred_to():
    exported = {f"{export.kind} {export.name}" for export in exports()}
    assert set(references("shows")) <= exported
    followed = {f"figure {n}" for n in ("04_followed", "05_followed")}  # the same image again
    assert exported - set(references("shows")) <= followed


@pytest.mark.parametrize("reference", references("paper"))
def test_files_and_their_sections_are_there(reference):
    path, _, section = reference.partition(": ")
    text = (root() / path).read_text()
    assert text and (not section or section in re.findall(r"\\section\{([^}]*)\}", text))


def test_links_of_the_page_lead_to_files_that_the_project_has():
    links = set(re.findall(r"\]\(\.\./((?:notebooks|lib|tests)/[^)#]+)", page()))
    assert len(links) > 40 and not [link for link in links if not (root() / link).is_file()]
