"""The cache of what a frozen stage samples from: the same samples, losses and gradients as without it."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import TinyBackbone
from torch.testing import assert_close

from lib import cache, train
from lib.cache import cache_folder, cache_key, main, remove, sample_caches
from lib.checkpoint import stage_path
from lib.data import CourseDataset, collate, flip_horizontally, prepare
from lib.matching import take
from lib.stages import STAGE_CLASSES, BoxHeadStage, RPNStage
from lib.train import train_stage

NAMES = ("rpn", "boxhead", "maskhead")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_cache_never_lies_in_google_drive(tmp_path):
    assert cache_folder(tmp_path, "rpn") == tmp_path / "rpn.cache"
    on_drive = cache_folder("/content/drive/MyDrive/maskrcnn/weights/demo", "rpn")
    assert on_drive == cache.LOCAL / "demo" / "rpn.cache" and "drive" not in on_drive.parts


@pytest.fixture
def everything(monkeypatch):
    """Caches hold every candidate, and a minibatch is drawn by rank: what is drawn does not depend on chance."""

    def all_rows(stage, labels, images=1):
        return (labels >= 0).nonzero().flatten()

    for stage in (RPNStage, BoxHeadStage):
        monkeypatch.setattr(stage, "keep", all_rows)


def propose_around_objects(model, dataset):
    """Make the RPN propose boxes around the first objects, so that an untrained network has positives at once."""
    boxes = torch.tensor([[20.0, 20, 60, 60], [40, 30, 90, 80], [30, 10, 100, 90], [60, 50, 100, 90]])
    noise = torch.randn(10, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
    proposals = (boxes + noise).flatten(0, 1).clamp(min=1).minimum(torch.tensor([124.0, 94, 124, 94]))
    model.propose = lambda features, content, training=False: [{"boxes": proposals} for _ in range(len(features[0]))]


@pytest.fixture
def build(tiny_model, scenes, tmp_path):
    """A function from a stage's name and config overrides to the stage, its data and its caches."""

    def built(name, folder=tmp_path, **overrides):
        model = tiny_model(**{"rpn_trains": "none", "mask_positive_iou": 0.2, **overrides})
        data = {split: CourseDataset(scenes, split, model.config) for split in ("train", "val")}
        propose_around_objects(model, data["train"])
        stage = STAGE_CLASSES[name](model)
        return stage, data, sample_caches(stage, data, folder, Accelerator(cpu=True), epochs=9)

    return built


def uncached_rows(stage, data, images, mirrored) -> dict:
    """All candidates of these images with their features, in the order in which a cache of everything has them."""
    batch, targets = flip_horizontally(*collate([data[i] for i in images]), torch.tensor(mirrored))
    x, targets, content = prepare(batch, targets, stage.config)
    with torch.no_grad():
        features = stage.model.features(x)
        candidates = stage.candidates(features, targets, content)
        return stage.gather(features, take(candidates, (candidates["labels"] >= 0).nonzero().flatten()))


def loss_and_gradients(stage, samples) -> tuple[dict, list]:
    stage.zero_grad()
    losses = stage.train()(samples)
    sum(losses.values()).backward()
    return losses, [p.grad.clone() for p in stage.parameters() if p.grad is not None]


@pytest.mark.parametrize("precision, tolerance", [("full", 1e-5), ("half", 2e-3)])
@pytest.mark.parametrize("name", NAMES)
def test_same_samples_same_losses_and_gradients(build, everything, monkeypatch, name, precision, tolerance):
    """The same rows drawn with and without the cache: what differs is the precision of storage, and no more."""
    if precision == "full":
        monkeypatch.setattr(cache, "_HALF", ())
    stage, data, caches = build(name, flip_probability=1.0)
    images = [1, 4, 2]
    rows = uncached_rows(stage, data["train"], images, [True] * 3)
    torch.manual_seed(5)
    torch.rand(3)  # the cache first draws which images are mirrored: all of them
    drawn = stage.draw(rows["labels"]).sort().values
    torch.manual_seed(5)
    (cached,) = caches["train"].collate(images)
    uncached = take(rows, drawn)
    assert cached.keys() == uncached.keys() and len(cached["labels"]) > 4 and (cached["labels"] > 0).any()
    for column in cached:
        assert_close(cached[column].float(), uncached[column].float(), atol=tolerance, rtol=tolerance)
    state = {k: v.clone() for k, v in stage.state_dict().items()}
    ours = loss_and_gradients(stage, cached)
    stage.load_state_dict(state)
    theirs = loss_and_gradients(stage, uncached)
    assert all(v > 0 for v in theirs[0].values()) and any(g.abs().max() > 1e-3 for g in theirs[1])
    for got, expected in zip(ours[1], theirs[1], strict=True):
        assert_close(got, expected, atol=tolerance * float(expected.abs().max()) + 1e-7, rtol=tolerance)
    assert_close(ours[0], theirs[0], atol=tolerance, rtol=tolerance)


def test_variants(build, everything, scenes):
    """Half of the images are mirrored in training, none in validation; an image has both variants in the cache."""
    stage, data, caches = build("boxhead", flip_probability=0.5)
    sums = {flip: uncached_rows(stage, data["train"], [0], [flip])["pooled"].sum().item() for flip in (False, True)}
    assert abs(sums[False] - sums[True]) > 1
    stage.config = stage.config.replace(box_batch_samples=1000, box_positive_fraction=1.0)
    torch.manual_seed(0)
    drawn = [caches["train"].collate([0])[0]["pooled"].float().sum().item() for _ in range(20)]
    closest = [min(sums, key=lambda flip: abs(sums[flip] - total)) for total in drawn]
    assert all(abs(sums[flip] - total) < 0.5 for flip, total in zip(closest, drawn, strict=True))
    assert 4 <= sum(closest) <= 16
    assert len(caches["train"]) == len(data["train"]) and caches["val"].mirrored == 0
    plain = uncached_rows(stage, data["val"], [2], [False])["pooled"]
    assert_close(caches["val"].collate([2])[0]["pooled"].float().sum(), plain.sum(), atol=0.5, rtol=0)


def test_every_epoch_draws_anew_and_enough(build):
    """Full minibatches of 64 anchors over two images, from at most 4 x 32 kept negatives an image."""
    _, data, caches = build("rpn", flip_probability=0.0)
    columns, ends = caches["train"].parts[0]
    negatives = [int((part == 0).sum()) for part in torch.from_numpy(columns["labels"].copy()).split(_lengths(ends))]
    assert len(ends) == len(data["train"]) and all(100 < n <= 128 for n in negatives)
    first, second = (caches["train"].collate([0, 3])[0] for _ in range(2))
    assert len(first["labels"]) == len(second["labels"]) == 64
    assert (first["labels"] > 0).sum() == (second["labels"] > 0).sum() > 0
    assert not torch.equal(first["patches"], second["patches"])


def _lengths(ends) -> list[int]:
    return torch.from_numpy(ends).diff(prepend=torch.zeros(1, dtype=torch.long)).tolist()


def test_images_without_objects_or_proposals(build):
    stage, _, caches = build("maskhead", mask_positive_iou=0.999)
    (samples,) = caches["train"].collate([0, 1])
    assert samples["pooled"].shape == (0, 16, 14, 14)
    losses, gradients = loss_and_gradients(stage, samples)
    assert losses["mask"] == 0 and all(torch.isfinite(g).all() for g in gradients)


def test_two_processes_share_the_entries(build, everything, tmp_path, monkeypatch):
    """Parts that two processes write give the same minibatches as one part with everything."""
    monkeypatch.setattr(cache, "for_inference", lambda model: model)
    stage, data, caches = build("boxhead", flip_probability=0.5)
    accelerator, entries = Accelerator(cpu=True), range(2 * len(data["train"]))
    for rank in (0, 1):
        batches = cache._computed(stage, data["train"], entries[rank::2], accelerator)
        cache.write_part(tmp_path / "two" / str(rank), batches, cache.tqdm(disable=True))
    two = cache.SampleCache(tmp_path / "two", stage, 2)
    assert len(two) == len(caches["train"])
    for seed in range(4):
        torch.manual_seed(seed)
        (expected,) = caches["train"].collate([5, 0, 2])
        torch.manual_seed(seed)
        (got,) = two.collate([5, 0, 2])
        assert all(torch.equal(got[k], expected[k]) for k in expected)


# ---------------------------------------------------------------------------------------------- when it is built anew


def key_of(build, tmp_path, name="boxhead", change=None, **overrides) -> str:
    stage, data, _ = build(name, folder=tmp_path / "key", **overrides)
    if change:
        change(stage, data)
    return cache_key(stage, data, "no")


def test_the_key(build, tmp_path, scenes):
    same = key_of(build, tmp_path)
    learning = {"boxhead_epochs": 7, "boxhead_lr": 0.5, "weight_decay": 0.5, "box_loss_weight": 2.0, "mask_hidden": 8}
    assert key_of(build, tmp_path, **learning) == same
    for name, value in (("box_batch_samples", 16), ("image_mean", (0.0, 0, 0)), ("boxhead_batch_size", 3)):
        assert key_of(build, tmp_path, **{name: value}) != same
    assert key_of(build, tmp_path, change=lambda stage, data: stage.model.rpn.conv.bias.data.add_(1e-3)) != same
    assert key_of(build, tmp_path, change=lambda stage, data: stage.model.box_head.mlp[0].bias.data.add_(1)) == same
    assert key_of(build, tmp_path, change=lambda stage, data: data["train"].indices.pop()) != same
    moved = shutil.copytree(scenes, tmp_path / "moved")
    images = moved / "hw3_mycocodata_img_comp_zlib.h5"
    os.utime(images, ns=(0, 0))

    def elsewhere(stage, data):
        data["val"].folder = moved

    assert key_of(build, tmp_path, change=elsewhere) != same


def test_what_does_not_fit_is_replaced(build, tmp_path, capsys):
    build("boxhead", flip_probability=0.0)
    before = (cache_folder(tmp_path, "boxhead") / "key").stat().st_mtime_ns
    build("boxhead", flip_probability=0.0, boxhead_lr=0.5)
    assert (cache_folder(tmp_path, "boxhead") / "key").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("GB of the disk are free") == 1
    build("boxhead", flip_probability=0.0, box_batch_samples=16)
    out = capsys.readouterr().out
    assert "is removed" in out and out.count("GB of the disk are free") == 1


def test_a_half_written_cache_is_never_used(build, tmp_path, monkeypatch):
    whole = cache.stored
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        calls = iter(range(20))
        patch.setattr(cache, "stored", lambda *column: whole(*column) if next(calls) < 13 else interrupt())
        build("boxhead")
    assert not cache_folder(tmp_path, "boxhead").exists() and (tmp_path / "boxhead.cache.partial").exists()
    _, data, caches = build("boxhead")
    assert len(caches["train"]) == len(data["train"]) and not (tmp_path / "boxhead.cache.partial").exists()


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("free_at_first", [2 * cache.LEFT_FREE, cache.LEFT_FREE])
def test_a_full_disk(build, tmp_path, monkeypatch, capsys, free_at_first):
    """Whether that is known beforehand or turns out along the way, the training goes on and nothing is left behind."""
    free = iter([free_at_first, 0, 0, 0])
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, next(free)))
    assert build("rpn")[2] == {}
    assert "too little room for the cache, so training goes on without one" in capsys.readouterr().out
    assert list(tmp_path.glob("rpn*")) == []


# ------------------------------------------------------------------------------------------------------- in training


@pytest.fixture
def tiny_backbone(monkeypatch):
    monkeypatch.setattr("lib.maskrcnn.build_backbone", lambda config: TinyBackbone())


@pytest.fixture
def three_epochs(config):
    limits = {"rpn_pre_nms_test": 50, "rpn_post_nms_test": 20, "box_post_nms_test": 5}
    epochs = {f"{name}_epochs": 3 for name in NAMES}
    return config.replace(rpn_trains="none", **limits, **epochs)


@pytest.fixture
def epochs_seen(monkeypatch):
    """For each epoch, how often the backbone ran and whether the cache was there."""
    seen, whole = [], train._Run.epoch

    def epoch(run, number):
        calls = []
        hook = run.model.backbone.register_forward_hook(lambda *_: calls.append(1))
        row = whole(run, number)
        hook.remove()
        seen.append((len(calls), cache_folder(run.weights, run.name).is_dir()))
        return row

    monkeypatch.setattr(train._Run, "epoch", epoch)
    return seen


def test_cached_epochs_never_touch_the_backbone(tiny_backbone, three_epochs, scenes, tmp_path, epochs_seen, capsys):
    for name in NAMES:
        history = train_stage(name, three_epochs, scenes, tmp_path)
        assert len(history) == 3 and stage_path(tmp_path, name).is_file()
        assert all(0 <= v < 100 for row in history for k, v in row.items() if k.startswith(("train_", "val_")))
    assert epochs_seen == [(0, True)] * 9 and list(tmp_path.glob("*.cache*")) == []
    out = capsys.readouterr().out
    assert out.count("never touch the backbone") == 3 and out.count("removed its cache") == 3


@pytest.mark.parametrize(
    "overrides, pays",
    [({"rpn_epochs": 2}, False), ({"rpn_epochs": 2, "flip_probability": 0.0}, True), ({"rpn_trains": "all"}, False)],
)
def test_when_it_pays(tiny_backbone, three_epochs, scenes, tmp_path, epochs_seen, overrides, pays):
    train_stage("rpn", three_epochs.replace(**overrides), scenes, tmp_path)
    assert all(was_cached == pays and (calls == 0) == pays for calls, was_cached in epochs_seen)


def test_a_resumed_stage_goes_on_with_its_cache(
    tiny_backbone, three_epochs, scenes, tmp_path, epochs_seen, monkeypatch
):
    from safetensors.torch import load_file

    whole, folder = tmp_path / "whole", tmp_path / "resumed"
    train_stage("rpn", three_epochs, scenes, whole)
    checkpoint = train._Run.checkpoint
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train._Run, "checkpoint", lambda run, history: (checkpoint(run, history), interrupt()))
        train_stage("rpn", three_epochs, scenes, folder)
    built = (cache_folder(folder, "rpn") / "key").stat().st_mtime_ns
    monkeypatch.setattr(cache, "_build", lambda *_: pytest.fail(f"built again after {built}"))
    train_stage("rpn", three_epochs, scenes, folder)
    assert epochs_seen == [(0, True)] * 6
    expected, got = (load_file(stage_path(path, "rpn")) for path in (whole, folder))
    assert all(torch.equal(got[k], expected[k]) for k in expected)


def test_the_command_removes_caches(build, tmp_path, capsys):
    build("rpn")
    (tmp_path / "maskhead.cache.partial").mkdir()
    (tmp_path / "rpn.safetensors").touch()
    main(["--remove", "--weights", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1].startswith("removed 0.0")
    assert [path.name for path in tmp_path.iterdir()] == ["rpn.safetensors"]
    assert remove(Path(cache_folder(tmp_path, "rpn"))) == 0
