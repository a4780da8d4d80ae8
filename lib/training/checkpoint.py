"""What the stages learn, on disk: one safetensors file a stage, and a model put together from them.

A stage's file holds the parameters that the stage trained. Its metadata holds the config, the scores, and the
fingerprint of the file that it was trained on top of, so that parts which do not belong together are not combined.
`joint` holds the whole model.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.config import STAGES, Config
from lib.machine.files import written_whole
from lib.maskrcnn import MaskRCNN
from lib.training.stages import STAGE_CLASSES


def stage_path(weights: str | Path, stage: str) -> Path:
    return Path(weights) / f"{stage}.safetensors"


def save_stage(model: MaskRCNN, weights: str | Path, stage: str, scores: dict) -> Path:
    """Write what the stage trained, with config and scores as metadata; the file appears whole or not at all."""
    prefixes = tuple(f"{head}." for head in STAGE_CLASSES[stage].heads)
    prefixes += ("backbone.",) if stage == "joint" or (stage == "rpn" and model.config.rpn.trains != "none") else ()
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k.startswith(prefixes)}
    metadata = {"stage": stage, "config": model.config.to_json(), "scores": json.dumps(scores)}
    path = stage_path(weights, stage)
    with written_whole(path) as part:
        save_file(tensors, part, metadata | {"built_on": built_on(weights, stage, model.config)})
    return path


def load_model(
    weights: str | Path, last: str | None = None, config: Config | None = None, backbone: nn.Module | None = None
) -> MaskRCNN:
    """The model with the trained parts of a folder, up to and including the stage `last`, by default the furthest.

    Built from the config that is stored there, or from this one, and in eval mode. Raises FileNotFoundError where a
    needed stage is missing and ValueError where two stages do not belong together, or do not fit the config.
    """
    last = last or last_trained(weights)
    tensors = read_parts(weights, last)
    config = config.of_stage(last) if config else stored_config(stage_path(weights, last))
    stored = any(key.startswith("backbone.") for key in tensors)
    model = MaskRCNN(config.replace(**{"backbone.weights": "none"}) if stored else config, backbone)
    model.config = config
    return load_parts(model, weights, last, tensors).eval()


def read_parts(weights: str | Path, last: str) -> dict[str, Tensor]:
    """What the stages up to and including `last` learned, by parameter name; a later stage's value replaces another."""
    check_chain(weights, last)
    tensors: dict[str, Tensor] = {}
    for stage in STAGES[: STAGES.index(last) + 1]:
        tensors |= load_file(stage_path(weights, stage))
    return tensors


def load_parts(model: MaskRCNN, weights: str | Path, last: str, tensors: dict[str, Tensor] | None = None) -> MaskRCNN:
    """Copy the trained parts into the model; ValueError where they do not fit it."""
    path = stage_path(weights, last)
    try:
        unexpected = model.load_state_dict(tensors or read_parts(weights, last), strict=False).unexpected_keys
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} does not fit this config: {reason}; train the stage again") from None
    if unexpected:
        raise ValueError(f"{path} holds {unexpected[0]}, which this model lacks; train the stage again")
    return model


def last_trained(weights: str | Path) -> str:
    """The furthest stage that a folder holds."""
    trained = [stage for stage in STAGES if stage_path(weights, stage).is_file()]
    if not trained:
        advice = f"train with `python -m lib train all --weights {weights}`"
        raise FileNotFoundError(f"no trained stage in {Path(weights).resolve()}: {advice}")
    return trained[-1]


def check_chain(weights: str | Path, last: str) -> None:
    """Every stage up to `last` is there and was trained on top of the one before it."""
    for stage in STAGES[: STAGES.index(last) + 1]:
        path, command = stage_path(weights, stage), f"python -m lib train {stage} --weights {weights}"
        if not path.is_file():
            folder = path.parent.resolve()
            raise FileNotFoundError(f"{path.name} is missing: it is looked for in {folder}; train it with `{command}`")
        if read_metadata(path)["built_on"] != built_on(weights, stage, stored_config(path)):
            before = f"{previous_stage(stage)}.safetensors" if previous_stage(stage) else "backbone"
            raise ValueError(f"{path} was trained on top of another {before}: train again, `{command} --restart`")


def is_current(weights: str | Path, stage: str, config: Config) -> bool:
    """The folder holds this stage, finished with this config on top of the stages now there."""
    try:
        check_chain(weights, stage)
        stored = read_metadata(stage_path(weights, stage))["config"]
    except (FileNotFoundError, ValueError):
        return False
    return same_training(stored, config.of_stage(stage), stage)


def same_training(stored: str, config: Config, stage: str) -> bool:
    """Whether a stage's stored config and this one agree in all that the stage's training reads."""
    reads = STAGE_CLASSES[stage].reads
    try:
        return Config.from_json(stored).read_by(reads) == config.read_by(reads)
    except ValueError:
        return False  # of an earlier version of the project


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
    return fingerprint(file) if file and file.is_file() else ""


def backbone_origin(config: Config) -> str:
    """Which backbone the stages start from, as scores name it: a file and its fingerprint, or torchvision's names."""
    file = config.backbone.file
    return f"{file.name} {fingerprint(file)}" if file else f"{config.backbone.name} {config.backbone.weights}"


def previous_stage(stage: str) -> str | None:
    return STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None


def read_metadata(path: Path, command: str = "train", needed: Sequence[str] = ("config",)) -> dict[str, str]:
    """`stage`, `config`, `scores` and `built_on` of a stage's file; ValueError where it is not one.

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
