import io

import pytest
from tqdm import tqdm

from lib.config import PROFILES, STAGES
from lib.maskrcnn import MaskRCNN
from lib.speed.pace import measured_pass, minutes, room, stage_seconds, timed


@pytest.mark.parametrize(
    "seconds, words",
    [
        (10, "under a minute"),
        (200, "about 2 to 5 minutes"),
        (510, "about 6 to 12 minutes"),
        (36000, "about 7 to 14 hours"),
    ],
)
def test_a_time_in_words(seconds, words):
    assert minutes(seconds) == words


@pytest.mark.usefixtures("on_the_tiny_backbone", "fresh_accelerator")
def test_a_stage_costs_its_images_times_a_pass_that_is_measured(config, monkeypatch):
    """Twice the epochs, or images, take twice as long; from stored maps, which joint fine-tuning has not, less."""
    monkeypatch.setattr("lib.speed.pace.SECONDS", 0.01)
    one, kept, parameters = measured_pass(config)
    assert 0 < one < 1 and parameters == sum(p.numel() for p in MaskRCNN(config).parameters())
    assert kept > 4 * 16 * 24 * 32  # the first map, in float32
    for stage in STAGES:
        cost = stage_seconds(stage, config, 10, one)
        assert cost > 0 and stage_seconds(stage, config, 20, one) == pytest.approx(2 * cost)
        longer = config.replace(**{f"{stage}.epochs": 2 * getattr(config, stage).epochs})
        assert stage_seconds(stage, longer, 10, one) == pytest.approx(2 * cost)
        stored = stage_seconds(stage, config.replace(**{"training.store_features": True}), 10, one)
        assert stored == cost if stage == "joint" else stored < cost


def test_room_by_hand():
    """Of the course 44 M parameters and 0.9 GB an image, four at once; of the demo 640 images' maps, mirrored too."""
    assert room(PROFILES["course"], 2612, 0.9e9, 44 * 10**6).startswith("5.5 GB of memory")  # 0.704 + 4.8
    assert room(PROFILES["course"], 2612, 0.9e9, 44 * 10**6).endswith("1.4 GB of disk")
    cells = 48 * 64 + 24 * 32 + 12 * 16 + 6 * 8 + 3 * 4  # of 192 x 256
    expected = 2 * 2 * 640 * cells * 64 / 1e9
    assert room(PROFILES["demo"], 640, 0.0, 0).endswith(f"{expected:.1f} GB of disk") and round(expected, 1) == 0.7


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    "seconds, step, told",
    [
        (1.0, 13, "rpn: 4 images/s at first, about 7 to 14 minutes"),
        (0.25, 22, "rpn: 16 images/s at first, about 2 to 3"),
    ],
)
def test_a_training_tells_its_cost_once_it_knows_its_pace(monkeypatch, capsys, hidden, seconds, step, told):
    """Steps of 4 images: of a second each, 10 seconds after the first are enough; of a quarter, 20 steps."""
    seen, said = list[int](), dict[int, str]()
    monkeypatch.setattr("lib.speed.pace.time.perf_counter", lambda: seconds * len(seen))
    for batch in timed(tqdm(range(100), disable=hidden, file=io.StringIO()), "rpn", 600, 4):
        seen.append(batch)
        if text := capsys.readouterr().out:
            said[len(seen)] = text
    assert seen == list(range(100))
    assert list(said) == ([] if hidden else [step]) and all(text.startswith(told) for text in said.values()), said
