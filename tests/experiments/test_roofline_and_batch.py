"""Experiments about time: what is counted is exact, predictions follow from roofs, and seeds give the same numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quill.errors import ConfigError
from quill.experiments.hardware import batch, roofline
from quill.experiments.hardware.batch_points import Speeds, Writing, measure_writing
from quill.experiments.hardware.roofline_points import Point, Roof, knees_R
from quill.experiments.hardware.work import attention_work, linear_weights, linear_work, prefill_work
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModernConfig

TINY = GPTConfig(vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=64, dropout=0.0)
TEXT = "".join(f"{number} is a number. " for number in range(400))


@pytest.mark.parametrize("config", [TINY, ModernConfig(11, 16, 2, 2, 64, n_kv_head=1)], ids=["classic", "modern"])
def test_the_counted_weights_are_those_of_all_linear_maps(config: GPTConfig | ModernConfig) -> None:
    from torch import nn

    linear = [module.weight.numel() for module in build_model(config).modules() if isinstance(module, nn.Linear)]
    assert linear_weights(config) == sum(linear)


def test_only_the_batch_raises_the_intensity_of_linear_maps_and_it_never_raises_that_of_attention() -> None:
    assert linear_work(TINY, 1).intensity == 0.5
    assert linear_work(TINY, 8).intensity == 4
    assert linear_work(TINY, 8, "int8").intensity == 16
    assert attention_work(TINY, 1, 10).intensity == attention_work(TINY, 32, 10).intensity == 0.5
    assert prefill_work(TINY, 15).intensity > linear_work(TINY, 12).intensity


def test_the_predicted_knee_is_where_arithmetic_takes_as_long_as_reading_the_weights() -> None:
    """The figures of docs/speed.md: 230 GFLOP/s and 39 GB/s give a knee near 12 in float32."""
    roof = Roof(np.array([200e9, 230e9]), np.array([39e9, 30e9]))
    assert roof.knee("float32") == pytest.approx(11.8, abs=0.05)
    work = linear_work(TINY, 1)
    assert roof.knee("float32") * work.operations / 230e9 == pytest.approx(work.bytes / 39e9)


def test_the_measured_knee_is_where_the_flat_and_the_rising_part_meet() -> None:
    points = [
        Point("linear", "float32", rows, linear_work(TINY, rows), np.full(3, max(1.0, rows / 12)))
        for rows in (1, 4, 12, 24, 48)
    ]
    np.testing.assert_allclose(knees_R(points, "float32"), 12)


def points_at(shares: dict[str, float], roof: Roof) -> list[Point]:
    """Return points that reach these shares of the arithmetic roof."""
    works = {"linear": linear_work(TINY, 1), "prompt": prefill_work(TINY, 15), "attention": attention_work(TINY, 1, 9)}
    works["training"] = works["prompt"]
    found = []
    for dtype in ("float32", "int8"):
        for name, work in works.items():
            found.append(Point(name, dtype, 1, work, work.operations / (shares[name] * roof.peak_R)))
        for rows in (2, 4):
            work = linear_work(TINY, rows, dtype)
            found.append(Point("linear", dtype, rows, work, np.full(4, work.seconds(roof.peak, roof.bandwidth))))
    return found


def test_the_verdict_of_the_roofline_depends_on_what_was_measured() -> None:
    roof = Roof(np.full(4, 1e9), np.full(4, 0.5e9))
    roofs = {"float32": roof, "int8": roof}
    bound = points_at({"linear": 0.2, "prompt": 0.9, "attention": 0.1, "training": 0.8}, roof)
    free = points_at({"linear": 0.9, "prompt": 0.2, "attention": 0.1, "training": 0.8}, roof)
    settings = roofline.RooflineSettings(batches=(1, 2, 4))
    one, other = (roofline.result_of(settings, roofs, each, 1.0) for each in (bound, free))
    assert [each.verdict for each in one.effects[:3]] == ["supported"] * 3
    assert [each.verdict for each in other.effects[:3]] == ["not here", "not here", "supported"]
    assert other.verdict == "not here"
    assert one.reproducible() == other.reproducible()  # what depends on the machine is under timings
    assert one.figure().get_axes()


def test_a_small_roofline_is_measured_with_the_engines() -> None:
    settings = roofline.RooflineSettings(
        n_layer=1, n_head=1, n_embd=64, block_size=32, batches=(1, 2), rounds=2, training_windows=1
    )
    result = roofline.EXPERIMENT.run(settings)
    assert {point["name"] for point in result.figures["work"]} == {"linear", "attention", "prompt", "training"}
    assert all(min(point["seconds_R"]) > 0 for point in result.timings["points"] if point["name"] != "attention")


def test_texts_generated_together_are_those_generated_alone() -> None:
    writing = measure_writing(TINY, (1, 3), 4, 1, 0, lambda number, count: None)
    assert writing.same_BN.tolist()[1] == [1, 1, 1]
    assert np.isnan(writing.same_BN[0, 1:]).all() and writing.same_BN[0, 0] == 1
    assert (writing.speeds.predicted_B > 0).all()


def test_a_text_that_differs_in_company_decides_the_verdict() -> None:
    speeds = Speeds((1, 8), np.array([[1.0, 1.1], [1.0, 1.1]]), np.array([1.0, 1.0]), 1)
    same_BN = np.ones((2, 8))
    settings = batch.BatchSettings(writing_batches=(1, 8), speed_batches=(1, 8))
    steps_SB = np.array([[800, 600, 500, 450, 420, 410.0], [810, 590, 500, 440, 420, 400]])
    assert batch.result_of(settings, Writing(speeds, same_BN), speeds, steps_SB).effects[1].verdict == "supported"
    same_BN[1, 3:] = 0
    assert batch.result_of(settings, Writing(speeds, same_BN), speeds, steps_SB).effects[1].verdict == "not here"


def test_the_fitted_critical_batch_is_that_of_exact_data() -> None:
    batches_B = np.array([4.0, 16, 64, 256])
    fewest, critical = batch.critical_batch(batches_B, 100 * (1 + 20 / batches_B))
    assert fewest == pytest.approx(100, rel=0.01) and critical == pytest.approx(20, rel=0.01)


def test_a_crossing_is_interpolated_and_infinite_if_there_is_none() -> None:
    assert batch.crossing({0: 4.0, 10: 3.0, 20: 2.0}, 2.5) == 15
    assert batch.crossing({0: 2.0, 10: 1.0}, 2.5) == 0
    assert batch.crossing({0: 4.0}, 2.5) == float("inf")


@pytest.mark.long  # a whole experiment, twice
def test_the_same_seed_takes_the_same_steps_to_a_loss(tmp_path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = batch.BatchSettings(
        dataset=str(tmp_path / "text.txt"), data_dir=str(tmp_path / "data"), training_batches=(2, 4), target_loss=3.0,
        fewest_steps=5, small_width=16, small_block_size=8, seeds=1, windows=8, learning_rate=1e-2,
    )  # fmt: skip
    first, second = (batch.steps_to_loss(settings, lambda what, share: None) for _ in range(2))
    assert (first == second).all() and (first > 0).all()
    with pytest.raises(ConfigError, match=r"target_loss=0\.1 was not reached"):
        batch.steps_to_loss(replace(settings, target_loss=0.1), lambda what, share: None)
