"""Pack submission.zip, which §9.2 asks for: code, README, executed notebooks, the run's figures, report.

What goes in is chosen by the rules below, not by what git tracks: they hold in a clone and in an unpacked zip alike. No
data and nothing trained is part of it, but for the pretrained backbone that comes with the project. The same files give
the same bytes.
"""

import argparse
import zipfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from handin.exports import DRAWING, exports, is_drawing
from handin.index import OTHERS, exported, write_index
from handin.missing import missing
from lib.machine.errors import listed
from lib.machine.files import written_whole
from lib.machine.folders import paths, root

NAME = "submission.zip"
LIMIT = 30_000_000  # bytes of the zip
BACKBONE = "weights/scenes_backbone.safetensors"
FOLDERS = ("lib", "notebooks", "handin", "report", "benchmarks", "tests", "figures/published")
FILES = ("*.md", "*.py", "*.toml", "*.txt", "*.bib", "LICENSE", "Makefile", ".gitignore")  # beside these folders
NEVER = (  # in them: caches and hidden files, data, what was trained, archives, the video's deck, what is only a step
    *".* __pycache__ *.py[cod] *.part *.partial *.failed.ipynb build".split(),
    *"*.h5 *.hdf5 *.npy *.npz *.pt *.pth *.ckpt *.pkl *.safetensors *.zip *.tar *.gz".split(),
    *"slides.pdf notes.pdf *.aux *.log *.fls *.fdb_latexmk *.out *.toc *.nav *.snm *.vrb *.bbl *.blg".split(),
)
UNTOLD = (".*", "__pycache__", "*.pyc", NAME)  # left out without a word
OLDEST = (1980, 1, 1, 0, 0, 0)  # a zip knows no earlier date


def chosen(project: Path, figures: Path) -> dict[str, Path]:
    """The files that are handed in, by their name in the zip; `figures` holds those of the run."""
    found = {path.name: path for path in project.iterdir() if path.is_file() and _any(path.name, FILES)}
    for folder in FOLDERS:
        found |= {path.relative_to(project).as_posix(): path for path in _below(project / folder)}
    if (project / "report" / "report.pdf").is_file():  # else LaTeX needs these beside the sources
        found = {name: path for name, path in found.items() if not name.startswith("report/generated/")}
    if (project / BACKBONE).is_file():
        found[BACKBONE] = project / BACKBONE
    run = {f"figures/{name}": figures / name for name in of_the_run(project) if (figures / name).is_file()}
    return found | {name: path for name, path in run.items() if path not in pixels(project, figures)}


def of_the_run(project: Path) -> list[str]:
    """The names of all files that a run leaves in its folder of figures for the report."""
    return [file for export in exports(project) for file in export.files] + ["index.md", *OTHERS]


def pixels(project: Path, figures: Path) -> list[Path]:
    """The PDFs full of pixels: with them the zip would be half as large again, and each is there as PNG."""
    found = (figures / name for name in of_the_run(project) if name.endswith(".pdf"))
    return [path for path in found if path.is_file() and not is_drawing(path)]


def _below(folder: Path) -> list[Path]:
    """The files of a folder of the project, at any depth, that may be handed in."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if not any(_any(part, NEVER) for part in path.relative_to(folder).parts)]


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def left_out(project: Path, taken: Mapping[str, Path], folder: Path | None = None) -> list[str]:
    """What of the project is not handed in: files and whole folders; hidden files and caches are not told."""
    told = []
    for path in sorted((folder or project).iterdir()):
        name = path.relative_to(project).as_posix()
        if _any(path.name, UNTOLD) or name in taken:
            continue
        if path.is_dir() and any(PurePosixPath(inside).is_relative_to(name) for inside in taken):
            told += left_out(project, taken, path)
        else:
            told.append(name + "/" * path.is_dir())
    return told


def write_zip(taken: Mapping[str, Path], out: Path) -> int:
    """Write the zip, whole or not at all; returns its bytes. ValueError names the largest files of too many."""
    with written_whole(out) as part:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            for name in sorted(taken):
                entry = zipfile.ZipInfo(name, OLDEST)
                entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
                file.writestr(entry, taken[name].read_bytes())
            packed = {entry.filename: entry.compress_size for entry in file.infolist()}
        if (size := part.stat().st_size) > LIMIT:
            most = sorted(packed, key=lambda name: -packed[name])[:8]
            largest = ", ".join(f"{name} ({packed[name] / 1e6:.1f} MB)" for name in most)
            raise ValueError(f"the zip would have {size / 1e6:.1f} of {LIMIT / 1e6:.0f} MB; the largest are {largest}")
    return size


def submit(project: Path, figures: Path) -> list[str]:
    """Write `project`/submission.zip; returns sentences: what it is, what is left out, what is missing."""
    taken = chosen(project, figures)
    size = write_zip(taken, project / NAME)
    large = [path.relative_to(project).as_posix() for path in pixels(project, figures) if path.is_relative_to(project)]
    told = [name for name in left_out(project, taken) if name not in large]
    sentences = [f"{project / NAME}: {len(taken)} files, {size / 1e6:.1f} MB"]
    if count := len(pixels(project, figures)):
        sentences.append(f"in as PNG alone, as their PDFs have more than {DRAWING / 1e6:.1f} MB each: figures, {count}")
    return [*sentences, f"left out: {listed(told)}" if told else "nothing is left out", *missing(project, figures)]


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser("python -m handin submission", description=__doc__).parse_args(argv)
    figures = paths().figures
    if exported(figures):
        write_index(figures)
    print("\n".join(submit(root(), figures)))
