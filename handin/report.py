"""`make report`: report/generated/ from the last run, and report.pdf and proposal.pdf where LaTeX is installed.

What a student writes, report/*.tex and references.bib, is only read; report/generated/ is made anew each time.
"""

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handin import COMMANDS, numbers
from handin.exports import ENDINGS, captions, exports, is_drawing
from handin.index import exported, write_index
from handin.missing import own
from handin.numbers import PARTS, Numbers, cell, latex, plain, typeset
from handin.words import WORDS, curve_words, departures, origin_words, suggestions
from lib.config import STAGES, Config, load_config
from lib.data.classes import read_classes
from lib.data.reader import CourseDataset
from lib.data.sources import weights_folder
from lib.machine.files import read_json, written_whole
from lib.machine.folders import paths, root
from lib.notebook import diagrams
from lib.notebook.report import NO_VALUE, read_table, save_table
from lib.training.checkpoint import stage_path, stored_config

USED = re.compile(r"\\(?:run(?:figure|table|picture|tabular)|needs)(?:\[[^]]*\])?\{([\w,]+)\}")
ROWS = 24  # of a table, that a page has room for
ELSEWHERE = "Upload the folder report/ to Overleaf, or run `latexmk -pdf` in it where LaTeX is."
NARROWED = {  # tables wider than a page, and the columns that the report shows; the first has lines of its own
    "06_ablation": ("row", "box AP", "mask AP", "false an image", "box AP, difference", "mask AP, difference"),
    "06_joint": ("", "box AP", "box AP, difference", "mask AP", "mask AP, difference"),
}
FIRST_COLUMN = r">{\raggedright\arraybackslash}p{.36\linewidth}"
NOTEBOOK_OF = dict(zip(STAGES, ("03_rpn", "04_boxhead", "05_maskhead", "06_eval"), strict=True))
DOCUMENTS = "report", "proposal"


@dataclass
class Run:
    """Where the files of a run are, and the config that each stage was trained with."""

    source: str
    data: Path
    weights: Path
    figures: Path
    configs: dict[str, Config]


def last_run(weights: Path | None = None) -> Run:
    """The run that the environment names, as in the notebooks' set-up cell; numbers as the stages' files have them.

    `weights` is the folder of another training than the one that the notebooks take up.
    """
    source = os.environ.get("MASKRCNN_SOURCE", "synthetic")
    config, data = load_config(os.environ.get("MASKRCNN_PROFILE", "demo")), paths().data / source
    config, weights = config.replace(classes=read_classes(data)), weights or weights_folder(source, config)
    files = {stage: stage_path(weights, stage) for stage in STAGES}
    configs = {stage: stored_config(path) if path.is_file() else config for stage, path in files.items()}
    return Run(source, data, weights, paths().figures, configs)


def gathered(run: Run, folder: Path) -> tuple[Numbers, dict[str, str]]:
    """All numbers and words of a run, and for what is missing the sentence that says how to get it."""
    config, found, missing = run.configs["joint"], numbers.settings(run.configs), dict[str, str]()
    found |= origin_words(run.source, config) | {"departures": departures(run.configs["rpn"])}
    try:
        found |= numbers.data_numbers(CourseDataset(run.data, with_masks=False), config)
    except FileNotFoundError:
        missing["data"] = absent(f"The data set {run.source}", "01_data")
    if (run.figures / "metrics.json").is_file():
        found |= numbers.metric_numbers(read_json(run.figures / "metrics.json"))
    else:
        missing["metrics"] = absent("metrics.json", NOTEBOOK_OF["joint"])
    histories, tables = numbers.histories(run.weights), read_tables({*used(folder), *WORDS}, run)
    for stage in STAGES:
        if stage in histories:
            found |= numbers.curve_numbers(histories[stage], stage) | curve_words(stage, histories[stage])
        else:
            missing[f"curve_{stage}"] = absent(f"The history of the {PARTS[stage]}'s training", NOTEBOOK_OF[stage])
    for name, rows in tables.items():
        found |= numbers.table_numbers(name, rows) | WORDS.get(name, lambda rows: {})(rows)
    return found | suggestions(histories, tables), missing


def read_tables(names: Iterable[str], run: Run) -> dict[str, list[dict]]:
    """The rows of those of these that are tables, and are there."""
    files = {name: table_file(name, run) for name in sorted(names)}
    return {name: read_table(name, path.parent) for name, path in files.items() if path.is_file()}


def absent(what: str, notebook: str) -> str:
    return f"{what} is missing: run notebook {notebook}."


def used(folder: Path) -> list[str]:
    """The figures, tables and other files of a run that the sources in report/ name."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.tex"))]
    return sorted({name for text in texts for names in USED.findall(text) for name in names.split(",")})


def table_file(name: str, run: Run) -> Path:
    """A table of a notebook lies with the run's figures, one of a benchmark comes with the project."""
    measured_before = name in captions()["benchmark"]
    return (root() / "figures" / "published" if measured_before else run.figures) / f"{name}.csv"


def write_generated(folder: Path, run: Run) -> list[str]:
    """Make report/generated/ anew -> the sentences on what is missing."""
    made = folder / "generated"
    shutil.rmtree(made, ignore_errors=True)
    found, missing = gathered(run, folder)
    made.mkdir(parents=True)
    diagrams.system("all").savefig(made / "system.pdf", bbox_inches="tight", metadata={"CreationDate": None})
    save_table(stage_rows(run.configs, found), "settings", made)
    if rows := changed_rows(run.configs):
        save_table(rows, "joint_changes", made)
    else:
        found["absent/joint_changes"] = "The joint stage changes no number."
    for name in used(folder):
        copied = {"figure": copied_figure(name, run, made), "table": copied_table(name, run, made)}
        for export in exports():
            if export.name == name and not copied[export.kind]:
                missing[name] = absent(name, export.notebook)
    with written_whole(made / "numbers.tex") as part:
        part.write_text("\n".join(macros(found, missing)), encoding="utf-8")
    return list(missing.values())


def macros(found: Numbers, missing: Mapping[str, str]) -> list[str]:
    """The lines of numbers.tex: the numbers, what is missing, the captions."""
    kinds = captions()
    kinds["table"] |= kinds.pop("benchmark")
    values = found | {f"absent/{name}": latex(said) for name, said in missing.items()}
    values |= {f"caption/{kind}/{name}": latex(text) for kind in kinds for name, text in kinds[kind].items()}
    lines = [f"\\setrun{{{path}}}{{{value}}}" for path, value in sorted(values.items())]
    return ["% written by `make report`: not to be edited", *lines, ""]


def stage_rows(configs: Mapping[str, Config], found: Numbers) -> list[dict]:
    """The table of what each stage trains with."""
    rows = []
    for stage, part in PARTS.items():
        config = configs[stage].of_stage(stage)
        schedule, boxes = getattr(config, stage), config.boxhead.train.post_nms
        backbone = {"fpn": " and pyramid", "all": " and backbone"}.get(getattr(schedule, "trains", "none"), "")
        samples = {"rpn": f"{config.rpn.batch_samples} anchors", "boxhead": f"{config.boxhead.batch_samples} proposals"}
        samples |= {"maskhead": f"{boxes} boxes an image at most", "joint": ", ".join(samples.values())}
        row = {"stage": part, "learns": ("all heads" if stage == "joint" else part) + backbone}
        row |= {"epochs": schedule.epochs, "images a step": schedule.batch_size}
        row |= {"minutes": found.get(f"curve/{stage}/minutes", NO_VALUE), "learning rate": plain(schedule.lr)}
        rows.append(row | {"samples a step": samples[stage]})
    return rows


def changed_rows(configs: Mapping[str, Config]) -> list[dict]:
    """The table of what the joint stage does otherwise than the three before it."""
    changes = configs["joint"].joint.changes
    before = {path: configs.get(path.partition(".")[0], configs["maskhead"]).value(path) for path, _ in changes}
    return [{"number": path, "stage by stage": plain(before[path]), "joint": plain(now)} for path, now in changes]


def copied_figure(name: str, run: Run, made: Path) -> bool:
    """Whether a figure is there; it is then copied, as lines or as pixels."""
    pdf, png = (run.figures / f"{name}.{ending}" for ending in ENDINGS["figure"])
    path = png if png.is_file() and not is_drawing(pdf) else pdf
    return path.is_file() and bool(shutil.copyfile(path, made / path.name))


def copied_table(name: str, run: Run, made: Path) -> bool:
    """Whether a table is there; it is then copied, as much of it as a page has room for."""
    path = table_file(name, run)
    if path.is_file() and name in NARROWED:
        rows = read_table(name, path.parent)
        save_table([{column: cell(row[column]) for column in NARROWED[name]} for row in rows], name, made)
        path = made / path.name
    if path.is_file():
        text = typeset(path.with_suffix(".tex").read_text(encoding="utf-8"))
        if name in NARROWED:
            text = text.replace("{tabular}{l", rf"{{tabular}}{{{FIRST_COLUMN}", 1)
        (made / f"{name}.tex").write_text(shortened(text, f"{name}.csv"), encoding="utf-8")
    return path.is_file()


def shortened(table: str, whole: str) -> str:
    """The first rows of a tabular that `save_table` wrote, and how many more the file `whole` has."""
    lines = table.splitlines()
    left_out = len(lines) - 6 - ROWS  # beside begin, head, end and three rules
    if left_out > 0:
        cells = rf"\multicolumn{{{lines[2].count(' & ') + 1}}}{{l}}{{and {left_out} more rows in {latex(whole)}}} \\"
        lines[4 + ROWS : -2] = [cells]
    return "\n".join([*lines, ""])


def compiled(folder: Path, names: Sequence[str]) -> list[Path]:
    """The PDFs; none where latexmk is not installed. ValueError names a mistake in a source."""
    if shutil.which("latexmk") is None:
        return []
    build = folder / "generated" / "build"
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", f"-outdir={build}", "-silent"]
    for name in names:
        ended = subprocess.run([*command, f"{name}.tex"], cwd=folder, capture_output=True, text=True, errors="replace")
        if ended.returncode:
            raise ValueError(f"{name}.tex does not compile: {mistake(build / f'{name}.log')}")
        (build / f"{name}.pdf").replace(folder / f"{name}.pdf")
    return [folder / f"{name}.pdf" for name in names]


def mistake(log: Path) -> str:
    """What LaTeX said first of what is wrong, and the line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = [line for line in lines if line.startswith(("!", "l."))][:2]
    return f"{' '.join(said) or 'latexmk says no more'}; the whole log is {log}"


def hand_in(documents: Sequence[str], run: Run, folder: Path) -> None:
    """Write what report/ needs, compile, and say what is missing and what is still to be written by the student."""
    for sentence in write_generated(folder, run):
        print(sentence)
    sources, pdfs = [f"{name}.tex" for name in documents], [str(path) for path in compiled(folder, documents)]
    no_tex = f"LaTeX (latexmk) is not installed here. Ready to compile: {', '.join(sources)}. {ELSEWHERE}"
    print(*(pdfs or [no_tex]), sep="\n")
    for name in sources:
        print(f"{name}: {own((folder / name).read_text(encoding='utf-8'))} passages (\\own) to be made your own")


def main(argv: Sequence[str] | None = None, name: str = "report", documents: Sequence[str] = DOCUMENTS) -> None:
    parser = argparse.ArgumentParser(f"python -m handin {name}", description=COMMANDS[name])
    parser.add_argument("--weights", type=Path, help="what was trained with other numbers, where the figures are of it")
    run = last_run(parser.parse_args(argv).weights)
    if exported(run.figures):
        write_index(run.figures)
    hand_in(documents, run, root() / "report")
