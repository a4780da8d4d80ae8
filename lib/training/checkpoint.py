"""What the stages learn, on disk: one safetensors file a stage, and a model put together from them.

A stage's file holds the parameters that the stage trained. Its metadata holds the config, the scores, the history, and
the fingerprints of the data set and of the file that it was trained on top of, so that parts which do not belong
together are not combined and another training is not taken for this one. `joint` holds the whole model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lib.config import STAGES, Config
from lib.data.reader import FILES
from lib.machine.overrides import flat
from lib.machine.tensors import load_tensors, save_tensors
from lib.maskrcnn import MaskRCNN
from lib.training.stages import STAGE_CLASSES

EARLIER = "earlier"  # the folder, beside the stages' files, of those that others took the place of


def stage_path(weights: str | Path, stage: str) -> Path:
    return Path(weights) / f"{stage}.safetensors"


def learnt_by(stage: str, config: Config) -> tuple[str, ...]:
    """How the names of the parameters begin that a stage's file holds."""
    trained = stage == "joint" or (stage == "rpn" and config.rpn.trains != "none")
    return tuple(f"{part}." for part in (*STAGE_CLASSES[stage].heads, *["backbone"] * trained))


def save_stage(
    model: MaskRCNN, weights: str | Path, stage: str, scores: dict, data: str = "", history: Sequence[dict] = ()
) -> Path:
    """Write what the stage trained, with all else as metadata; the file appears whole or not at all.

    `data` is the data sets' fingerprint. Of the history no seconds are kept: the same training gives the same file.
    """
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in history]
    metadata = {"stage": stage, "config": model.config.to_json(), "scores": json.dumps(scores), "data": data}
    metadata |= {"history": json.dumps(rows), "built_on": built_on(weights, stage, model.config)}
    path, parts = stage_path(weights, stage), learnt_by(stage, model.config)
    save_tensors({k: v for k, v in model.state_dict().items() if k.startswith(parts)}, path, metadata)
    return path


def keep_aside(weights: str | Path, stage: str) -> None:
    """Move a stage's file, where there is one, to where nothing takes its place."""
    path = stage_path(weights, stage)
    if path.is_file():
        kept = path.parent / EARLIER / f"{stage}.{fingerprint(path)}.safetensors"
        kept.parent.mkdir(exist_ok=True)
        path.replace(kept)
        print(f"{stage}: what was trained before is kept as {kept}")


def load_model(
    weights: str | Path, last: str | None = None, config: Config | None = None, backbone: nn.Module | None = None
) -> MaskRCNN:
    """The model with the trained parts of a folder, up to and including the stage `last`, by default the furthest.

    Built from the config that is stored there, or from this one, and in eval mode. Raises FileNotFoundError where a
    needed stage is missing and ValueError where two stages do not belong together, or do not fit the config.
    """
    last = last or last_trained(weights)
    parts = read_parts(weights, last)
    stored = stored_config(stage_path(weights, last))
    config = config.of_stage(last) if config else stored
    check_classes(weights, stored, config.classes)
    held = any(key.startswith("backbone.") for tensors in parts.values() for key in tensors)
    model = MaskRCNN(config.replace(**{"backbone.weights": "none"}) if held else config, backbone)
    model.config = config
    return load_parts(model, weights, last, parts).eval()


def read_parts(weights: str | Path, last: str) -> dict[str, dict[str, Tensor]]:
    """What each stage up to and including `last` learned, by parameter name."""
    check_chain(weights, last)
    stages = STAGES[: STAGES.index(last) + 1]
    return {stage: read_stage(stage_path(weights, stage))[0] for stage in stages}


def read_stage(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a stage's file; ValueError names one that is damaged, or that has no business here."""
    try:
        read_metadata(path)
        return load_tensors(path)
    except ValueError as error:
        command = f"python -m lib train {path.stem} --data DIR --weights {path.parent} --restart"
        raise ValueError(f"{error}: put a sound copy there, or train it again with `{command}`") from None


def load_parts(
    model: MaskRCNN, weights: str | Path, last: str, parts: dict[str, dict[str, Tensor]] | None = None
) -> MaskRCNN:
    """Copy the trained parts into the model, a later stage's over another's; ValueError where they do not fit it."""
    for stage, tensors in (parts or read_parts(weights, last)).items():
        path, needed = stage_path(weights, stage), learnt_by(stage, stored_config(stage_path(weights, stage)))
        try:
            missing, unexpected = model.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{path} does not fit this config: {reason}; train the stage again") from None
        if unexpected:
            raise ValueError(f"{path} holds {unexpected[0]}, which this model lacks; train the stage again")
        if lacking := [name for name in missing if name.startswith(needed)]:
            raise ValueError(f"{path} lacks {lacking[0]}, which this model has; train the stage again")
    return model


def last_trained(weights: str | Path) -> str:
    """The furthest stage that a folder holds."""
    trained = [stage for stage in STAGES if stage_path(weights, stage).is_file()]
    if not trained:
        advice = f"train with `python -m lib train all --data DIR --weights {weights}`"
        raise FileNotFoundError(f"no trained stage in {Path(weights).resolve()}: {advice}")
    return trained[-1]


def check_chain(weights: str | Path, last: str) -> None:
    """Every stage up to `last` is there and was trained on top of the one before it."""
    for stage in STAGES[: STAGES.index(last) + 1]:
        path, command = stage_path(weights, stage), f"python -m lib train {stage} --data DIR --weights {weights}"
        if not path.is_file():
            folder = path.parent.resolve()
            raise FileNotFoundError(f"{path.name} is missing: it is looked for in {folder}; train it with `{command}`")
        if read_metadata(path)["built_on"] != built_on(weights, stage, stored_config(path)):
            before = f"{previous_stage(stage)}.safetensors" if previous_stage(stage) else "backbone"
            raise ValueError(f"{path} was trained on top of another {before}: train again, `{command} --restart`")


def standing(weights: str | Path, stage: str, config: Config, data: str) -> list[str] | None:
    """What a finished stage differs in from the training that is asked for; None where none is finished.

    Raises ValueError where its file is damaged.
    """
    path = stage_path(weights, stage)
    return differences(read_stage(path)[1], weights, stage, config, data) if path.is_file() else None


def differences(metadata: Mapping[str, str], weights: str | Path, stage: str, config: Config, data: str) -> list[str]:
    """What a training, finished or not, differs in from the one that is asked for: numbers, data set, stage before."""
    try:
        stored, config = Config.from_json(metadata["config"]), config.of_stage(stage)
    except ValueError as error:
        return [str(error)]
    reads = STAGE_CLASSES[stage].reads
    there, asked = (flat(c.read_by(reads)) for c in (stored, config))
    found = [f"{path} ({there[path]} there, {asked[path]} asked)" for path in asked if there[path] != asked[path]]
    found += ["the data set or its split"] * (metadata.get("data", "") not in ("", data))
    before = f"the {previous_stage(stage)} that it was trained on top of" if previous_stage(stage) else "the backbone"
    return found + [before] * (metadata.get("built_on") != built_on(weights, stage, config))


def data_fingerprint(*datasets: Any) -> str:
    """16 hex digits of what data sets hold: classes, sizes of files, labels, boxes, and the images of the split."""
    digest = hashlib.sha256()
    for data in datasets:
        digest.update(json.dumps([data.classes, list(data.indices)]).encode())
        if not hasattr(data, "labels"):  # made up on the fly: its name says which
            digest.update(str(data).encode())
            continue
        digest.update(json.dumps([(data.folder / name).stat().st_size for name in FILES.values()]).encode())
        for values in (*data.labels, *data.boxes):
            digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def check_classes(weights: str | Path, stored: Config, classes: Sequence[str]) -> None:
    """ValueError where weights were trained for other classes than these."""
    if tuple(classes) != stored.classes:
        what = f"{weights} was trained for the classes {', '.join(stored.classes)}, not for {', '.join(classes)}"
        raise ValueError(f"{what}: choose the weights that fit the data, or train others with another --weights")


def stored_config(path: Path) -> Config:
    """The config of a stage's file; ValueError where an earlier version of the project wrote it."""
    try:
        return Config.from_json(read_metadata(path)["config"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def built_on(weights: str | Path, stage: str, config: Config) -> str:
    """The fingerprint of the stage before, as its file is now; for the first stage, of the backbone's file if any."""
    before = previous_stage(stage)
    file = stage_path(weights, before) if before else config.backbone.file
    if not file or not file.is_file():
        return ""
    return read_metadata(file).get("checksum", "")[:16] if before else fingerprint(file)


def backbone_origin(config: Config) -> str:
    """Which backbone the stages start from, as scores name it: a file and its fingerprint, or torchvision's names."""
    file = config.backbone.file
    return f"{file.name} {fingerprint(file)}" if file else f"{config.backbone.name} {config.backbone.weights}"


def previous_stage(stage: str) -> str | None:
    return STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None


def read_metadata(path: Path, command: str = "train", needed: Sequence[str] = ("config", "built_on")) -> dict[str, str]:
    """What `save_stage` noted in a stage's file, `config` and `built_on` at least; ValueError where it is not one.

    Of the file of another `command` of the project, what that one notes: the names `needed` and more.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): make it again with `python -m lib {command}`") from None
    if missing := set(needed) - metadata.keys():
        raise ValueError(f"{path} was not written by `python -m lib {command}`: it has no {min(missing)}")
    return metadata


def fingerprint(path: Path) -> str:
    """16 hex digits of the file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
