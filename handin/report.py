"""`make report`: report/generated/ from the last run, and report.pdf and proposal.pdf where LaTeX is installed.

What a student writes, report/*.tex and references.bib, is only read; report/generated/ is made anew each time.
"""

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handin import numbers
from handin.exports import captions, exports
from handin.numbers import PARTS, Numbers, cell, latex, plain, printable
from handin.words import WORDS, curve_words, suggestions
from lib.config import STAGES, Config, load_config
from lib.data.classes import read_classes
from lib.data.reader import CourseDataset
from lib.data.sources import weights_folder
from lib.machine.files import read_json, written_whole
from lib.machine.folders import paths, root
from lib.notebook import diagrams
from lib.notebook.figures import save_figure
from lib.notebook.report import NO_VALUE, read_table, save_table
from lib.training.checkpoint import stage_path, stored_config

USED = re.compile(r"\\(?:runfigure|runtable|picture)(?:\[[^]]*\])?\{(\w+)\}")
OWN = re.compile(r"^[^%\n]*?\\own\b", re.MULTILINE)
ROWS = 24  # of a table, that a page has room for
ELSEWHERE = "upload the folder report/ to Overleaf, or run `latexmk -pdf report.tex` in it where LaTeX is"
NARROWED = {  # tables wider than a page, and the columns that the report shows
    "06_ablation": ("row", "box AP", "mask AP", "false an image", "box AP, difference", "mask AP, difference"),
}
DATA = {
    "synthetic": "scenes that a program of the kit draws, not photographs",
    "course": "the photographs of the course",
    "coco": "photographs of COCO",
}


@dataclass
class Run:
    """Where the files of a run are, and the config that each stage was trained with."""

    source: str
    data: Path
    weights: Path
    figures: Path
    configs: dict[str, Config]


def last_run() -> Run:
    """The run that the environment names, as in the notebooks' set-up cell; numbers as the stages' files have them."""
    source = os.environ.get("MASKRCNN_SOURCE", "synthetic")
    config, data = load_config(os.environ.get("MASKRCNN_PROFILE", "demo")), paths().data / source
    config, weights = config.replace(classes=read_classes(data)), weights_folder(source, config)
    files = {stage: stage_path(weights, stage) for stage in STAGES}
    configs = {stage: stored_config(path) if path.is_file() else config for stage, path in files.items()}
    return Run(source, data, weights, paths().figures, configs)


def gathered(run: Run, folder: Path) -> tuple[Numbers, dict[str, str]]:
    """All numbers and words of a run, and for what is missing the sentence that says how to get it."""
    config, found, missing = run.configs["joint"], numbers.settings(run.configs), dict[str, str]()
    found |= {"data/what": DATA.get(run.source, latex(f"the data set {run.source}")), **backbone_words(config)}
    try:
        found |= numbers.data_numbers(CourseDataset(run.data, with_masks=False), config)
    except (OSError, ValueError):
        missing["data"] = absent(f"The data set {run.source}", "01_data")
    histories = numbers.histories(run.weights)
    for stage, notebook in zip(STAGES, ("03_rpn", "04_boxhead", "05_maskhead", "06_eval"), strict=True):
        if stage in histories:
            images = int(found.get("data/train", "0").replace(",", ""))
            steps = images // getattr(run.configs[stage], stage).batch_size
            found |= numbers.curve_numbers(histories[stage], stage, steps) | curve_words(stage, histories[stage])
        else:
            missing[f"curve_{stage}"] = absent(f"The history of the {PARTS[stage]}'s training", notebook)
    if (run.figures / "metrics.json").is_file():
        found |= numbers.metric_numbers(read_json(run.figures / "metrics.json"))
    else:
        missing["metrics"] = absent("metrics.json", "06_eval")
    tables = {}
    for name in sorted({*used(folder), *WORDS}):
        if (path := table_file(name, run)).is_file():
            tables[name] = read_table(name, path.parent)
            found |= numbers.table_numbers(name, tables[name]) | WORDS.get(name, lambda rows: {})(tables[name])
    return found | suggestions(histories, tables), missing


def absent(what: str, notebook: str) -> str:
    return f"{what} is missing: run notebook {notebook}."


def backbone_words(config: Config) -> Numbers:
    """What the backbone was before any stage learnt, and what that means for the scores."""
    name, weights = latex(config.backbone.name), latex(config.backbone.weights)
    if config.backbone.file:
        what = f"a {name} trunk with a pyramid of {config.backbone.channels} channels, from the file {latex(config.backbone.file.name)}"
        drawn = config.backbone.file.name == "scenes_backbone.safetensors"
        return {"backbone/what": what + ", which the kit's authors pretrained on drawn scenes of other seeds" * drawn}
    if config.backbone.name == "maskrcnn_resnet50_fpn":
        return {"backbone/what": f"the ResNet-50 with FPN of torchvision's {name}, trained on COCO (weights {weights})"}
    return {"backbone/what": f"torchvision's {name} (weights {weights}) under a new pyramid"}


def used(folder: Path) -> list[str]:
    """The figures and tables that the sources in report/ name."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.tex"))]
    return sorted({name for text in texts for name in USED.findall(text)})


def table_file(name: str, run: Run) -> Path:
    """A table of a notebook lies with the run's figures, one of a benchmark comes with the project."""
    ours = any(export.name == name for export in exports())
    return (run.figures if ours else root() / "figures" / "published") / f"{name}.csv"


def write_generated(folder: Path, run: Run) -> list[str]:
    """Make report/generated/ anew -> the sentences on what is missing."""
    made = folder / "generated"
    shutil.rmtree(made, ignore_errors=True)
    found, missing = gathered(run, folder)
    save_figure(diagrams.system("all"), "system", made)
    save_table(stage_rows(run.configs, found), "settings", made)
    if rows := changed_rows(run.configs["joint"]):
        save_table(rows, "joint_changes", made)
    for name in used(folder):
        if not any([copied_figure(name, run, made), copied_table(name, run, made)]):
            notebook = next((export.notebook for export in exports() if export.name == name), "06_eval")
            missing[name] = absent(name, notebook)
    lines = [f"\\setrun{{{path}}}{{{value}}}" for path, value in sorted(found.items())]
    lines += [f"\\setrun{{absent/{name}}}{{{latex(said)}}}" for name, said in sorted(missing.items())]
    kinds = captions()
    lines += [f"\\setrun{{caption/{k}/{n}}}{{{latex(t)}}}" for k in sorted(kinds) for n, t in sorted(kinds[k].items())]
    with written_whole(made / "numbers.tex") as part:
        part.write_text("\n".join(["% written by `make report`: not to be edited", *lines, ""]), encoding="utf-8")
    return list(missing.values())


def stage_rows(configs: Mapping[str, Config], found: Numbers) -> list[dict]:
    """The table of what each stage trains with."""
    rows = []
    for stage, part in PARTS.items():
        config = configs[stage].of_stage(stage)
        schedule, frozen = (
            getattr(config, stage),
            {"rpn": config.rpn.trains == "none", "joint": config.joint.trains == "none"},
        )
        learns = {"joint": "all heads", "rpn": "RPN"}.get(stage, part) + " and backbone" * (not frozen.get(stage, True))
        samples = {"rpn": plain(config.rpn.batch_samples), "boxhead": plain(config.boxhead.batch_samples)}
        samples["joint"] = f"{samples['rpn']} and {samples['boxhead']}"
        row = {"stage": part, "learns": learns, "epochs": schedule.epochs, "images a step": schedule.batch_size}
        row |= {"steps": found.get(f"curve/{stage}/steps", NO_VALUE), "learning rate": plain(schedule.lr)}
        rows.append(
            row | {"samples a step": samples.get(stage, f"up to {config.boxhead.train.post_nms} boxes an image")}
        )
    return rows


def changed_rows(config: Config) -> list[dict]:
    """The table of what the joint stage does otherwise than the three before it."""
    values = [(path, config.value(path), value) for path, value in config.joint.changes]
    return [{"number": path, "stage by stage": plain(was), "joint": plain(now)} for path, was, now in values]


def copied_figure(name: str, run: Run, made: Path) -> bool:
    """Whether a figure is there; it is then copied."""
    path = run.figures / f"{name}.pdf"
    if path.is_file():
        shutil.copyfile(path, made / path.name)
    return (made / path.name).is_file()


def copied_table(name: str, run: Run, made: Path) -> bool:
    """Whether a table is there; it is then copied, as much of it as a page has room for."""
    path = table_file(name, run).with_suffix(".tex")
    if path.is_file() and name in NARROWED:
        rows = read_table(name, path.parent)
        save_table([{column: cell(row[column]) for column in NARROWED[name]} for row in rows], name, made)
    elif path.is_file():
        lines = printable(path.read_text(encoding="utf-8")).splitlines()
        left_out = len(lines) - 6 - ROWS  # beside begin, head, end and three lines
        if left_out > 0:
            columns = lines[2].count(" & ") + 1
            lines[4 + ROWS : -2] = [
                rf"\multicolumn{{{columns}}}{{l}}{{and {left_out} more rows in {latex(path.stem)}.csv}} \\"
            ]
        (made / path.name).write_text("\n".join([*lines, ""]), encoding="utf-8")
    return (made / path.name).is_file()


def compiled(folder: Path, names: Sequence[str]) -> list[Path]:
    """The PDFs, of which each replaces the one before; none where latexmk is not installed. ValueError names a mistake."""
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


def hand_in(documents: Sequence[str], folder: Path | None = None) -> None:
    """Write what report/ needs, compile, and say what is missing and what is still to be written by the student."""
    folder = folder or root() / "report"
    for sentence in write_generated(folder, last_run()):
        print(sentence)
    pdfs = compiled(folder, documents)
    sources = " and ".join(f"{name}.tex" for name in documents)
    print(*pdfs, sep="\n") if pdfs else print(
        f"{sources} are ready; LaTeX (latexmk) is not installed here: {ELSEWHERE}"
    )
    for name in documents:
        left = len(OWN.findall((folder / f"{name}.tex").read_text(encoding="utf-8")))
        print(f"{name}.tex: {left} passages are still to be made your own" + " (\\own{...})" * bool(left))


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser("python -m handin report", description=__doc__).parse_args(argv)
    hand_in(("report", "proposal"))
