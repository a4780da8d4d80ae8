"""What a stage with frozen inputs learns from, computed once and kept on disk; `python -m lib.cache --remove`.

    N images of a split    V variants of an image: as it is and, where training mirrors images, mirrored
    E = V N entries, entry v N + i being variant v of image i    M rows of a minibatch

An entry holds more rows than a minibatch draws from it (`Stage.keep`), so that every epoch draws anew. Features are
stored in half precision, targets as they are. The cache lies in `<stage>.cache` beside the stage's weights, together
with a key of all that it depends on: the weights before the stage, the config as far as it concerns sampling, size
and time of the data files, and the split. It is built under another name and renamed when it is whole; a finished
stage removes it.
"""

import argparse
import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import Dataset
from tqdm import tqdm

from lib.checkpoint import stage_fields
from lib.config import STAGES
from lib.data import FILES, CourseDataset, collate, flip_horizontally, prepare
from lib.fast import for_inference
from lib.matching import take
from lib.runtime import DRIVE, command_errors, paths
from lib.stages import Samples, Stage

Batch = tuple[dict[str, np.ndarray], list[int]]  # columns of rows, entry after entry, and the rows of each entry
LOCAL = Path(tempfile.gettempdir()) / "maskrcnn"
LEFT_FREE = 2**30  # bytes of the disk that a cache does not use
_HALF = ("patches", "pooled", "masks")  # columns in half precision; masks of 0 and 1 are exact in it
_OF_LEARNING = ("weight_decay", "warmup_fraction", "clip_norm", "smooth_l1_beta", "rpn_box_weight", "box_loss_weight")
_OF_LEARNING += ("mask_loss_weight", "mixed_precision", "eval_batch_size")  # precision enters the key as it turns out


class SampleCache(Dataset):
    """One split's entries, read through memory maps. Its items are numbers of images; `collate` draws from them."""

    def __init__(self, folder: Path, stage: Stage, variants: int):
        self.parts = [_read_part(path) for path in sorted(folder.iterdir(), key=lambda path: int(path.name))]
        self.draw, self.mirrored = stage.draw, stage.config.flip_probability if variants > 1 else 0.0
        self.images = sum(len(ends) for _, ends in self.parts) // variants

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, i: int) -> int:
        return i

    def collate(self, images: Sequence[int]) -> tuple[Samples]:
        """The samples of a minibatch of these images, each mirrored or not at random; the only item of a tuple."""
        entries = torch.tensor(images) + len(self) * (torch.rand(len(images)) < self.mirrored)
        spans = [self._span(entry) for entry in entries.tolist()]
        labels = np.concatenate([columns["labels"][start:end] for columns, start, end in spans])
        drawn = self.draw(torch.from_numpy(labels)).sort().values.numpy()
        stops = np.cumsum([end - start for _, start, end in spans])  # where each entry's rows end in `labels`
        pieces = np.split(drawn, np.searchsorted(drawn, stops[:-1]))
        rows = [piece - stop + end for piece, stop, (*_, end) in zip(pieces, stops, spans, strict=True)]
        samples = {}
        for name in spans[0][0]:
            column = np.concatenate([columns[name][r] for (columns, *_), r in zip(spans, rows, strict=True)])
            samples[name] = _from_stored(column)
        return (samples,)

    def _span(self, entry: int) -> tuple[dict[str, np.ndarray], int, int]:
        """The columns that hold the entry, and its first row there and the one after its last."""
        columns, ends = self.parts[entry % len(self.parts)]
        place = entry // len(self.parts)
        return columns, ends[place - 1] if place else 0, ends[place]


def sample_caches(
    stage: Stage, datasets: Mapping[str, CourseDataset], weights: Path, accelerator: Accelerator, epochs: int
) -> dict[str, SampleCache]:
    """The caches of the `train` and `val` split, built now if there are none that fit and if that pays: with more
    epochs to come than an image has variants. Empty where something before the head learns, where it does not pay, and
    where the disk is too full.

    To be called by all processes: each computes its share of the entries.
    """
    if not stage.frozen_inputs:
        return {}
    folder, pays = cache_folder(weights, stage.name), epochs > variants_of(stage)["train"]
    key = cache_key(stage, datasets, accelerator.mixed_precision)
    fits = (folder / "key").is_file() and (folder / "key").read_text() == key
    accelerator.wait_for_everyone()  # all have looked
    if not fits:
        if accelerator.is_main_process and remove(folder):
            print(f"{stage.name}: a cache half built, or of other weights, data or config, is removed")
        accelerator.wait_for_everyone()
        if not pays or not _build(stage, datasets, folder, key, accelerator):
            return {}
    accelerator.print(f"{stage.name}: its epochs read from {folder} and never touch the backbone")
    return {split: SampleCache(folder / split, stage, variants_of(stage)[split]) for split in datasets}


def variants_of(stage: Stage) -> dict[str, int]:
    """How many variants of each image a split has."""
    return {"train": 2 if stage.config.flip_probability > 0 else 1, "val": 1}


def cache_folder(weights: str | Path, name: str) -> Path:
    """Beside the stage's weights; where these lie in Google Drive, on the machine's own disk."""
    weights = Path(weights).resolve()
    return (LOCAL / weights.name if weights.is_relative_to(DRIVE) else weights) / f"{name}.cache"


def cache_key(stage: Stage, datasets: Mapping[str, CourseDataset], precision: str) -> str:
    """All that a cache depends on, as text: equal for equal contents."""
    ignored = {f"{stage.name}_epochs", f"{stage.name}_lr", *_OF_LEARNING}
    before = hashlib.sha256()
    for part in stage.before:
        for name, value in getattr(stage.model, part).state_dict().items():
            before.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    files = {split: [(data.folder / name).stat() for name in FILES.values()] for split, data in datasets.items()}
    return json.dumps(
        {
            "config": {k: v for k, v in stage_fields(stage.config, stage.name).items() if k not in ignored},
            "precision": precision,
            "weights": before.hexdigest(),
            "files": {split: [(s.st_size, s.st_mtime_ns) for s in stats] for split, stats in files.items()},
            "images": {split: data.indices for split, data in datasets.items()},
        }
    )


# ------------------------------------------------------------------------------------------------------------- writing


def _build(
    stage: Stage, datasets: Mapping[str, CourseDataset], folder: Path, key: str, accelerator: Accelerator
) -> bool:
    """Compute and write the entries of all splits; False, with nothing left behind, where the disk lacks room."""
    partial = folder.with_suffix(".cache.partial")
    rank, processes = accelerator.process_index, accelerator.num_processes
    shares = {s: range(variants_of(stage)[s] * len(data))[rank::processes] for s, data in datasets.items()}
    model, was_training = stage.model, stage.training
    stage.eval()
    if accelerator.mixed_precision == "no" or accelerator.device.type == "cuda":
        stage.model = for_inference(model)
    try:
        computed = {split: _computed(stage, datasets[split], shares[split], accelerator) for split in shares}
        first = next(computed["train"])
        room = _announce(stage, first, shares, folder.parent, accelerator)
        computed["train"] = chain([first], computed["train"])
        for split, batches in computed.items() if room else ():
            title = f"{stage.name} cache: {split}"
            with tqdm(total=len(shares[split]), desc=title, unit="img", leave=False, disable=rank > 0) as bar:
                write_part(partial / split / str(rank), batches, bar)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        room = False
    finally:
        stage.model = model
    stage.train(was_training)
    room = min(_of_all(room, accelerator)) > 0
    if accelerator.is_main_process and room:
        (partial / "key").write_text(key)
        partial.rename(folder)
    elif accelerator.is_main_process:
        remove(folder)
        print(f"{stage.name}: the disk has too little room for the cache, so training goes on without one")
    accelerator.wait_for_everyone()
    return room


def _announce(stage: Stage, first: Batch, shares: Mapping[str, range], weights: Path, accelerator: Accelerator) -> bool:
    """Say how large the cache will be, judged by the first entries of each process; whether the disk has the room."""
    columns, counts = first
    entries = sum(_of_all(sum(map(len, shares.values())), accelerator))
    bytes_an_entry = max(_of_all(sum(c.nbytes for c in columns.values()) / len(counts), accelerator))
    weights.mkdir(parents=True, exist_ok=True)
    needed, free = entries * bytes_an_entry, shutil.disk_usage(weights).free
    accelerator.print(
        f"{stage.name}: what it learns from in {entries:.0f} images (mirrored ones counted) is computed once and "
        f"cached in about {needed / 1e9:.2f} GB; {free / 1e9:.1f} GB of the disk are free"
    )
    return needed < free - LEFT_FREE


def _of_all(value: float, accelerator: Accelerator) -> list[float]:
    """The value of each process."""
    return accelerator.gather(torch.tensor([float(value)], device=accelerator.device)).tolist()


@torch.no_grad()
def _computed(stage: Stage, data: CourseDataset, entries: Sequence[int], accelerator: Accelerator) -> Iterator[Batch]:
    """The columns to keep and the number of rows of each entry, a batch of entries at a time, entry after entry."""
    size = getattr(stage.config, f"{stage.name}_batch_size")
    torch.manual_seed(stage.config.seed + accelerator.process_index)  # which candidates are kept
    for start in range(0, len(entries), size):
        batch = entries[start : start + size]
        images, targets = send_to_device(collate([data[e % len(data)] for e in batch]), accelerator.device)
        images, targets = flip_horizontally(
            images, targets, torch.tensor([e >= len(data) for e in batch]).to(images.device)
        )
        with accelerator.autocast():
            x, targets, content = prepare(images, targets, stage.config)
            features = stage.model.features(x)
            candidates = stage.candidates(features, targets, content)
            of_image = [(candidates["images"] == i).nonzero().flatten() for i in range(len(batch))]
            kept = [rows[stage.keep(candidates["labels"][rows], size)] for rows in of_image]
            samples = stage.gather(features, take(candidates, torch.cat(kept)))
        yield {name: stored(name, column) for name, column in samples.items()}, [len(rows) for rows in kept]


def write_part(folder: Path, batches: Iterator[Batch], bar: tqdm) -> None:
    """Append the batches' columns to one file each; how to read them goes into a last file."""
    folder.mkdir(parents=True)
    files, counts, kinds = {}, [], {}
    with ExitStack() as stack:
        for columns, rows in batches:
            for name, column in columns.items():
                if name not in files:
                    files[name] = stack.enter_context(open(folder / name, "wb"))
                    kinds[name] = column.dtype.name, column.shape[1:]
                files[name].write(column.data)
            counts += rows
            bar.update(len(rows))
            if shutil.disk_usage(folder).free < LEFT_FREE:
                raise OSError(errno.ENOSPC, "too little room")
    (folder / "index.json").write_text(json.dumps({"counts": counts, "columns": kinds}))


def _read_part(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns of a part, mapped into memory, and the row after the last of each of its entries."""
    index = json.loads((folder / "index.json").read_text())
    ends = np.cumsum(index["counts"], dtype=np.int64)
    columns = {}
    for name, (dtype, shape) in index["columns"].items():
        shape = (int(ends[-1]), *shape)
        columns[name] = np.memmap(folder / name, dtype, "r", shape=shape) if ends[-1] else np.empty(shape, dtype)
    return columns, ends


def stored(name: str, column: torch.Tensor) -> np.ndarray:
    """A column as it lies on disk: features in half precision, maps with their channels last."""
    column = column.half() if name in _HALF else column
    return (column.permute(0, 2, 3, 1) if column.dim() == 4 else column).contiguous().cpu().numpy()


def _from_stored(column: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(column)
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor


# ------------------------------------------------------------------------------------------------------------ removing


def remove(folder: Path) -> int:
    """Delete a cache, whole or half written -> the bytes that it took."""
    freed = 0
    for path in (folder, folder.with_suffix(".cache.partial")):
        freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path, ignore_errors=True)
    return freed


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lib.cache", description="Remove the caches that unfinished stages have left on disk."
    )
    parser.add_argument("--remove", action="store_true", required=True, help="delete them")
    parser.add_argument("--weights", type=Path, default=None, help="folder of the stages (default: all in weights/)")
    args = parser.parse_args(argv)
    folders = [args.weights] if args.weights else sorted(paths().weights.iterdir())
    freed = sum(remove(cache_folder(folder, stage)) for folder in folders for stage in STAGES)
    print(f"removed {freed / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
