"""What `make report` and `make slides` write: each number is one of the run, and no sentence says what it does not."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from handin import numbers, report, words
from handin.exports import DRAWING, exports
from lib.config import STAGES, load_config
from lib.data.classes import write_classes
from lib.data.reader import FILES
from lib.machine.folders import root
from lib.machine.tensors import save_tensors
from lib.notebook.figures import save_figure
from lib.notebook.report import read_table, save_table
from lib.training.history import write_history

SOURCES = ("report", "proposal", "slides", "notes")
LOSSES = {"rpn": ("rpn_objectness", "rpn_box"), "boxhead": ("box_class", "box_regression"), "maskhead": ("mask",)}
LOSSES |= {"joint": tuple(name for losses in LOSSES.values() for name in losses)}
ODD = ("50 % of_a #dog", "猫 & Größe~ħ", "[x]^2 {\\} ğ")
ALLOWED = (  # digits that are no number of a run: names, and the sheet's sections
    r"\\S ?\d+(\.\d+)*|AP(50|75)|Mask2Former|ResNet-50|L_1|smooth\\_l1\\_beta"
)
HIDDEN = (  # commands whose braces or brackets hold names and lengths, not text
    r"\\(?:run|ref|cite|label|needs|runtabular|suggestions|topsuggestion|spoken|column|bibliography|bibliographystyle"
    r"|begin|usepackage|documentclass)(?:\[[^]]*\])?\{[^{}]*\}|\\run(?:figure|table|picture)(?:\[[^]]*\])?\{\w+\}|\\own\[[^]]*\]"
)
needs_tex = pytest.mark.skipif(shutil.which("latexmk") is None, reason="LaTeX (latexmk) is not installed")


def history(stage: str, train: float = 1.0, val=(1.2, 1.1, 1.0)) -> list[dict]:
    return [
        {"epoch": n + 1, "lr": 1e-3, "seconds": 6.0}
        | {f"train_{name}": train for name in LOSSES[stage]}
        | {f"val_{name}": value for name in LOSSES[stage]}
        for n, value in enumerate(val)
    ]


def renamed(name: str, classes: tuple[str, ...]) -> list[dict]:
    """A table that the project ships, with other classes: as many times its rows as it takes."""
    rows = [{k: number(v) for k, v in row.items()} for row in read_table(name, root() / "figures" / "published")]
    if "class" not in rows[0]:
        return rows
    shipped = list(dict.fromkeys(row["class"] for row in rows))
    return [
        row | {"class": c} for n, c in enumerate(classes) for row in rows if row["class"] == shipped[n % len(shipped)]
    ]


def relabel(path: Path, classes: int) -> None:
    """The labels of a data set, folded into 1 to `classes`."""
    labels = np.load(path, allow_pickle=True)
    for n, of_image in enumerate(labels):
        labels[n] = (of_image - 1) % classes + 1
    np.save(path, labels, allow_pickle=True)


def number(text: str) -> object:
    """What `save_table` was given, back from its csv."""
    try:
        return int(text)
    except ValueError:
        return float(text) if re.fullmatch(r"-?\d+\.\d+", text) else text


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory, scenes):
    """A run in small: `stand_in(classes)` is its folder, with data, weights' histories, tables and tiny figures."""

    def made(classes: tuple[str, ...] = ("vehicle", "person", "animal")) -> Path:
        folder = tmp_path_factory.mktemp("run")
        shutil.copytree(scenes, folder / "data" / "synthetic")
        write_classes(folder / "data" / "synthetic", classes)
        relabel(folder / "data" / "synthetic" / FILES["labels"], len(classes))
        for stage in STAGES:
            write_history(folder / "weights" / "demo", stage, history(stage))
        tiny, _ = save_figure(Figure(figsize=(3, 1)), "tiny", folder)
        (folder / "figures").mkdir()
        for export in exports():
            if export.kind == "figure":
                shutil.copyfile(tiny, folder / "figures" / f"{export.name}.pdf")
            else:
                save_table(renamed(export.name, classes), export.name, folder / "figures")
        shutil.copyfile(root() / "figures" / "published" / "metrics.json", folder / "figures" / "metrics.json")
        return folder

    return made


@pytest.fixture
def in_run(monkeypatch, tmp_path):
    """`in_run(folder)`: the run that lies there is the last one -> a copy of report/'s sources."""

    def at(folder: Path) -> Path:
        for name in ("data", "weights", "figures"):
            monkeypatch.setenv(f"MASKRCNN_{name.upper()}", str(folder / name))
        return Path(
            shutil.copytree(root() / "report", tmp_path / "report", ignore=shutil.ignore_patterns("generated", "*.pdf"))
        )

    return at


def braced(text: str, start: int) -> tuple[str, int]:
    """What stands in the braces that open at `start`, and where they end."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}") if text[place - 1] != "\\" else 0
        if not depth:
            return text[start + 1 : place], place + 1
    raise AssertionError(f"braces stay open: {text[start : start + 80]}")


def source(folder: Path, name: str) -> str:
    """A source without its comments."""
    return re.sub(r"(?m)(?<!\\)%.*$", "", (folder / f"{name}.tex").read_text(encoding="utf-8"))


def defined(folder: Path) -> dict[str, str]:
    """The macros of numbers.tex."""
    lines = (folder / "generated" / "numbers.tex").read_text(encoding="utf-8").splitlines()[1:]
    pairs = [braced(line, len(r"\setrun")) for line in lines]
    return {path: braced(line, end)[0] for line, (path, end) in zip(lines, pairs, strict=True)}


def shown(text: str, known: dict[str, str], folder: Path) -> str:
    """The text that stands where the run has left what it needs."""
    found = re.search(r"\\(needs|runfigure|runtable)(?:\[[^]]*\])?(?=\{)", text)
    if not found:
        return text
    names, middle = braced(text, found.end())
    inner, end = braced(text, middle)
    endings = {"runfigure": (".pdf", ".png"), "runtable": (".tex",)}.get(found[1])
    there = not any(f"absent/{name}" in known for name in (names.split(",") if not endings else ()))
    there = there and any((folder / "generated" / f"{names}{e}").is_file() for e in endings or ()) == bool(endings)
    label = f"\\label{{{names}}}" * bool(endings)
    inside = shown(inner, known, folder) + label if there else ""
    return text[: found.start()] + inside + shown(text[end:], known, folder)


def expanded(text: str, known: dict[str, str]) -> str:
    """The text with its macros replaced, the inner ones first; KeyError names one that is not there."""
    while found := re.search(r"\\run\{([^{}]*)\}", text):
        text = text[: found.start()] + known[" ".join(found[1].split())] + text[found.end() :]
    return text


def chosen(text: str, known: dict[str, str]) -> str:
    """The text without the suggestions that the run does not call for."""
    called = {name for group in ("errors", "scores", "curves") for name in known[f"suggestions/{group}"].split(",")}
    while found := re.search(r"\\suggestion\{([^{}]*)\}", text):
        inner, end = braced(text, found.end())
        text = text[: found.start()] + inner * (found[1] in called) + text[end:]
    return text


@pytest.mark.parametrize("classes", [("one",), ODD, tuple(f"class {n}" for n in range(80))], ids=["1", "odd", "80"])
def test_every_macro_reference_and_citation_is_there(stand_in, in_run, classes):
    folder = in_run(stand_in(classes))
    assert report.write_generated(folder, report.last_run()) == []
    known, cited = defined(folder), set()
    entries = re.findall(r"^@\w+\{(\w+),", (folder / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    for name in SOURCES:
        text = chosen(shown(source(folder, name), known, folder), known)
        assert "??" not in expanded(text, known)
        labels, references = (set(re.findall(rf"\\{c}\{{(?:fig:|tab:)?(\w+)\}}", text)) for c in ("label", "ref"))
        assert references <= labels
        cited |= {key for keys in re.findall(r"\\cite\{([^}]*)\}", text) for key in keys.split(",")}
        for file in re.findall(r"\\run(?:picture(?:\[[^]]*\])?|tabular)\{(\w+)\}", text):
            assert list((folder / "generated").glob(f"{file}.*"))
    assert cited <= set(entries) and len(entries) == len(set(entries))


def test_without_a_run_it_says_which_notebooks_to_run(in_run, tmp_path, monkeypatch):
    folder = in_run(tmp_path / "nothing")
    missing = report.write_generated(folder, report.last_run())
    assert "03_recall is missing: run notebook 03_rpn." in missing
    assert {text.rsplit(" ", 1)[1] for text in missing} == {
        f"{n}." for n in ("01_data", "02_anchors", "03_rpn", "04_boxhead", "05_maskhead", "06_eval")
    }
    known = defined(folder)
    for name in SOURCES:  # what still stands asks for nothing that is not there
        expanded(chosen(shown(source(folder, name), known, folder), known), known)
        for names in re.findall(r"\\needs\{([^}]*)\}", source(folder, name)):
            assert all(f"absent/{n}" in known or list((folder / "generated").glob(f"{n}.*")) for n in names.split(","))


def test_settings_are_those_of_the_trained_stages(in_run, tmp_path):
    asked = load_config("demo").replace(**{"boxhead.lr": 0.004, "joint.boxhead.loss_weight": 3})
    for stage in ("boxhead", "joint"):
        path = tmp_path / "nothing" / "weights" / "demo" / f"{stage}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({}, path, {"config": asked.of_stage(stage).to_json(), "built_on": ""})
    folder = in_run(tmp_path / "nothing")
    report.write_generated(folder, report.last_run())
    known = defined(folder)
    assert [known[path] for path in ("boxhead.lr", "boxhead.loss_weight", "joint/boxhead.loss_weight")] == [
        *("0.004", "10", "3"),
    ]
    rows = {row["number"]: row for row in read_table("joint_changes", folder / "generated")}
    assert (rows["boxhead.loss_weight"]["stage by stage"], rows["boxhead.loss_weight"]["joint"]) == ("10", "3")
    assert {row["stage"]: row["learning rate"] for row in read_table("settings", folder / "generated")} == {
        **{"RPN": "0.006", "box head": "0.004", "mask head": "0.001", "joint stage": "0.0002"}
    }


def test_of_a_figure_full_of_pixels_the_smaller_png_is_taken(stand_in, in_run):
    run = stand_in()
    full = run / "figures" / "06_detections.pdf"
    full.write_bytes(bytes(DRAWING + 1))
    full.with_suffix(".png").write_bytes(b"pixels")
    folder = in_run(run)
    assert report.write_generated(folder, report.last_run()) == []
    assert [path.name for path in (folder / "generated").glob("06_detections.*")] == ["06_detections.png"]


def test_a_figure_without_its_table_is_missing(stand_in, in_run):
    run = stand_in()
    (run / "figures" / "03_recall.csv").unlink()
    assert report.write_generated(in_run(run), report.last_run()) == ["03_recall is missing: run notebook 03_rpn."]


@pytest.mark.parametrize("name", SOURCES)
def test_no_number_of_a_run_is_written_out(name):
    text = source(root() / "report", name).partition(r"\begin{document}")[2]
    before = None
    while text != before:
        before, text = text, re.sub(HIDDEN, "", text)
    left = re.sub(ALLOWED, "", text)
    assert re.findall(r".{0,30}\d.{0,30}", left) == []


@pytest.mark.parametrize("name", ["report", "proposal"])
def test_every_figure_and_table_is_discussed_with_a_number_of_the_run(name):
    text = source(root() / "report", name)
    for found in re.finditer(r"\\run(figure|table)(?:\[[^]]*\])?\{(\w+)\}", text):
        said, _ = braced(text, found.end())
        kind = {"figure": "fig", "table": "tab"}[found[1]]
        assert f"\\ref{{{kind}:{found[2]}}}" in said, found[2]
        if kind == "fig":
            assert r"\run{" in said and len(re.findall(r"[.?!:](?=[\s}]|$)", said)) >= 2, found[2]


def test_the_talk_takes_five_minutes(stand_in, in_run):
    folder = in_run(stand_in())
    report.write_generated(folder, report.last_run())
    text, seconds = source(folder, "slides"), []
    for found in re.finditer(r"\\spoken\{(\d+)\}", text):
        seconds.append(int(found[1]))
        said = expanded(shown(braced(text, found.end())[0], defined(folder), folder), defined(folder))
        assert 1 < len(said.split()) / seconds[-1] < 2.7, said  # words a second
    assert sum(seconds) == 300 and 8 <= len(seconds) <= 10


def test_the_same_run_gives_the_same_bytes_and_sources_stay(stand_in, in_run, monkeypatch, capsys):
    folder = in_run(stand_in())
    (folder / "report.tex").write_text("% my own report\n\\own{a} and \\own[b]{c}\n% \\own{no}\n", encoding="utf-8")
    monkeypatch.setattr(report.shutil, "which", lambda name: None)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report.hand_in(("report",), report.last_run(), folder)
    said, made = capsys.readouterr().out, sorted((folder / "generated").iterdir())
    first = [path.read_bytes() for path in made]
    assert "Ready to compile: report.tex. Upload" in said and "report.tex: 2 passages" in said
    report.hand_in(("report",), report.last_run(), folder)
    assert [path.read_bytes() for path in made] == first and len(made) == len(list((folder / "generated").iterdir()))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@needs_tex
def test_it_compiles(stand_in, in_run):
    folder = in_run(stand_in(ODD))
    report.write_generated(folder, report.last_run())
    pages = {}
    for pdf in report.compiled(folder, SOURCES):
        log = (folder / "generated" / "build" / f"{pdf.stem}.log").read_text(encoding="utf-8", errors="replace")
        assert not re.findall(r"undefined|multiply defined", log)
        assert [width for width in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log) if float(width) > 3] == []
        pages[pdf.stem] = int(re.search(r"Output written on .*?\((\d+) page", log.replace("\n", ""))[1])
    assert pages["proposal"] <= 3 and pages["slides"] == pages["notes"] <= 10 and pages["report"] <= 13


@needs_tex
def test_a_mistake_of_the_student_is_named(in_run, tmp_path):
    folder = in_run(tmp_path / "nothing")
    (folder / "report.tex").write_text("\\documentclass{article}\n\\begin{document}\n\\nonsense\n\\end{document}\n")
    with pytest.raises(ValueError, match=r"report\.tex does not compile: ! Undefined control sequence\. l\.3 "):
        report.compiled(folder, ["report"])


def test_what_a_curve_says_follows_its_numbers():
    falling = words.curve_words("maskhead", history("maskhead"))["curve/maskhead/said"]
    assert "On validation images the loss of mask is lowest after the last epoch." in falling
    assert "1.0 times the training loss: no sign of learning by heart" in falling
    by_heart = words.curve_words("maskhead", history("maskhead", train=0.5, val=(1, 0.8, 0.9)))["curve/maskhead/said"]
    assert "no loss is lowest" in by_heart and "1.8 times the training loss: part of" in by_heart
    assert "no validation split" in words.curve_words("rpn", [{"epoch": 1, "train_x": 1.0}])["curve/rpn/said"]


def test_what_joint_training_did_follows_its_numbers():
    def verdict(box: float, mask: float) -> dict:
        rows = [{"stage": "s", "box AP": f"{b}", "mask AP": f"{m}"} for b, m in ((0.5, 0.4), (0.51, 0.4), (box, mask))]
        return words.change_words(rows)

    assert verdict(0.6, 0.5)["change/verdict"] == "raised the AP of boxes and masks"
    assert verdict(0.4, 0.5)["change/verdict"] == "raised the AP of masks and lowered the AP of boxes"
    same = verdict(0.5, 0.4)
    assert same["change/verdict"] == "changed neither AP" and same["change/box AP"] == "stays at 0.500"
    assert same["change/box AP, rule"] == "rises from 0.500 to 0.510"
    assert same["change/box AP, trained"] == "falls from 0.510 to 0.500"


def test_the_worst_error_is_named():
    rows = [{"kind": "right", "count": "8"}, {"kind": "duplicate", "count": "2"}, {"kind": "missed", "count": "2"}]
    said = words.error_words([*rows, {"kind": "wrong class", "count": "3"}])
    assert said["errors/said"] == "the most frequent kind is \\emph{wrong class}, 3 of 7"
    assert (said["errors/objects"], said["errors/found"], said["errors/detections"]) == ("10", r"80\%", "13")
    none = words.error_words([{"kind": "right", "count": "8"}, {"kind": "missed", "count": "0"}])
    assert none["errors/said"] == "there are none"


def test_suggestions_follow_the_numbers():
    def tables(errors: dict, box=(0.5, 0.6), mask=(0.5, 0.59), classes=(0.59,)) -> dict:
        stages = [{"stage": "", "box AP": f"{b}", "mask AP": f"{m}"} for b, m in zip(box, mask, strict=True)]
        per_class = [{"class": "c", "objects": "9", "": "after", "mask AP": f"{value}"} for value in classes]
        errors = [{"kind": "right", "count": "9"}, *({"kind": k, "count": f"{n}"} for k, n in errors.items())]
        return {"06_errors": errors, "06_before_after": stages, "06_per_class": per_class}

    def asked(group: str, *arguments, histories=None, **options) -> str:
        return words.suggestions(histories or {}, tables(*arguments, **options))[f"suggestions/{group}"]

    assert asked("errors", {"missed": 2, "duplicate": 5, "wrong class": 0}) == "duplicate,missed"
    assert asked("scores", {}) == ""
    assert asked("scores", {}, box=(0.5, 0.7), classes=(0.5, 0.6)) == "masks,class"
    assert asked("scores", {}, box=(0.5, 0.7), classes=(0.1, 0.6)) == "class,masks"
    assert asked("scores", {}, box=(0.61, 0.6)) == "joint"
    flat, rising = history("rpn", val=(1, 0.9, 0.9)), history("rpn", train=0.1, val=(1, 0.8, 0.9))
    assert asked("curves", {}, histories={"rpn": flat}) == ""
    assert asked("curves", {}, histories={"rpn": rising}) == "data"
    assert asked("curves", {}, histories={"rpn": rising, "maskhead": history("maskhead")}) == "data,longer"
    assert words.suggestions({}, {}) | {"suggestions/errors": ""} == words.suggestions(
        {}, tables({}) | {"06_errors": []}
    )


def test_every_suggestion_that_a_run_can_call_for_is_written():
    for name in ("report", "slides"):
        written = re.findall(r"\\suggestion\{([^{}]*)\}", source(root() / "report", name))
        assert sorted(written) == sorted(
            ["duplicate", "wrong class", "badly placed", "nothing there", "missed"]
            + ["masks", "class", "joint", "longer", "data"]
        )


def test_what_decides_the_rpns_labels_is_said_as_it_is():
    config = load_config("demo")
    assert "where the sheet removes both; negative" in words.departures(config)
    printed = config.replace(**{"rpn.cross_boundary": "remove", "rpn.negatives": "uniform"})
    assert words.departures(printed).startswith("none")


def test_numbers_are_plain_and_names_escaped():
    assert [numbers.plain(v) for v in (5e-5, 0.0002, 1.0, 12276, 0.70478)] == [
        "0.00005",
        "0.0002",
        "1",
        "12,276",
        "0.705",
    ]
    assert numbers.latex("50 % of_a #dog") == r"50 \% of\_a \#dog"
    assert numbers.latex("猫 é −0.5 a-1") == r"{[}U+732B] é \textminus{}0.5 a-1"
    assert numbers.key("as printed: a_b=0.5 (%)") == "as printed: a_b=0.5"


def test_a_long_table_is_cut_where_a_page_ends(tmp_path):
    rows = [{"class": f"c{n}", "AP": 0.5} for n in range(report.ROWS + 2)]
    _, path = save_table(rows, "t", tmp_path)
    lines = report.shortened(path.read_text(), "t_1.csv").splitlines()
    assert r"\multicolumn{2}{l}{and 2 more rows in t\_1.csv} \\" == lines[-3]
    assert sum(line.startswith("c") for line in lines[3:]) == report.ROWS
    whole = save_table(rows[:-2], "u", tmp_path)[1].read_text()
    assert report.shortened(whole, "u.csv") == whole
