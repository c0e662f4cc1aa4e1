"""The plan of a run: which images, which batch and which learning rate every step takes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from training.config import Config
from training.config_file import load_config
from training.datasets import LabelledImages
from training.errors import ConfigError
from training.plan import Plan

MakeConfig = Callable[..., Config]
CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def toy_data(sizes: Sequence[int]) -> LabelledImages:
    labels = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    return LabelledImages(images, labels, tuple("abcdefghij"[: len(sizes)]))


def test_a_shuffled_epoch_takes_every_image_once_in_an_order_of_its_own(make_config: MakeConfig) -> None:
    plan = Plan(make_config("fit.order=shuffled", "fit.batch=4").fit, toy_data([7, 9, 4]))
    epochs = [torch.cat([plan.indices(5 * e + i) for i in range(5)]).tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_balanced_batches_hold_each_class_equally_and_no_image_twice(make_config: MakeConfig) -> None:
    data = toy_data([9, 4, 30])
    plan = Plan(make_config("fit.batch=12", "fit.steps=200").fit, data)
    seen = torch.zeros(len(data), dtype=torch.int64)
    for t in range(180):
        indices = plan.indices(t)
        assert len(set(indices.tolist())) == 12
        assert torch.bincount(data.labels[indices]).tolist() == [4, 4, 4]
        seen[indices] += 1
    # 720 draws a class: every image as often as chance allows, though 9 and 30 do not divide by 4.
    for members in data.by_class:
        expected = 720 / len(members)
        assert float((seen[members] - expected).abs().max()) < 0.35 * expected


def test_step_t_is_a_function_of_seed_and_t(make_config: MakeConfig) -> None:
    data = toy_data([40, 40])
    for order in ("shuffled", "balanced"):
        fit = make_config(f"fit.order={order}", "fit.batch=8").fit
        forwards = [Plan(fit, data).indices(t).tolist() for t in range(30)]
        one = Plan(fit, data)
        assert [one.indices(t).tolist() for t in reversed(range(30))] == forwards[::-1]
        other = Plan(fit.model_copy(update={"seed": 2}), data)
        assert [other.indices(t).tolist() for t in range(30)] != forwards


def test_the_batch_doubles_after_the_epochs_that_are_named(make_config: MakeConfig) -> None:
    fit = make_config(
        "fit.order=shuffled",
        "fit.batch=4",
        "fit.steps=null",
        "fit.epochs=5",
        "fit.schedule={kind: batch-doubling, after_epochs: [2, 3]}",
    ).fit
    plan = Plan(fit, toy_data([33]))  # 8 steps of 4, 4 of 8, 2 of 16
    assert plan.total_steps == 2 * 8 + 4 + 2 * 2
    steps = [plan.step(t) for t in range(plan.total_steps)]
    assert [s.batch for s in steps] == [4] * 16 + [8] * 4 + [16] * 4
    assert [s.epoch for s in steps] == [0] * 8 + [1] * 8 + [2] * 4 + [3] * 2 + [4] * 2
    assert [len(plan.indices(t)) for t in (0, 16, 23)] == [4, 8, 16]
    assert plan.epoch_at(18) == 2.5
    assert [t for t in range(plan.total_steps) if plan.validates_after(t)] == [7, 15, 19, 21, 23]


def test_a_round_of_a_class_goes_on_where_the_batch_doubles(make_config: MakeConfig) -> None:
    """No image comes again while its round has a step's share left."""
    doubling = "fit.schedule={kind: batch-doubling, after_epochs: [2, 4]}"
    data = toy_data([21, 50])
    plan = Plan(make_config("fit.batch=8", "fit.steps=null", "fit.epochs=6", doubling).fit, data)
    assert plan.batches == [8, 16, 32]
    for members in data.by_class:
        taken: set[int] = set()
        for t in range(plan.total_steps):
            chosen = {index for index in plan.indices(t).tolist() if index in members}
            if len(taken) + len(chosen) > len(members):
                taken = set()
            assert len(chosen) == plan.step(t).batch // 2 and not taken & chosen
            taken |= chosen


def test_the_rate_warms_up_and_falls_as_a_cosine(make_config: MakeConfig) -> None:
    fit = make_config(
        "fit.steps=100", "fit.schedule={kind: cosine, warmup: 0.1, final: 0.1}", "fit.optimiser={learning_rate: 2.0}"
    ).fit
    plan = Plan(fit, toy_data([20, 20]))
    rates = [plan.rate(t) for t in range(101)]
    assert rates[:10] == pytest.approx([2.0 * (t + 1) / 11 for t in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(0.2 + 1.8 / 2) and rates[100] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["fit.devices=6", "fit.batch=60"], r"class 'b' has 10 image\(s\): a step takes at least 2 on each of 6"),
        (
            [
                "fit.order=shuffled",
                "fit.batch=4",
                "fit.schedule={kind: batch-doubling, after_epochs: [1, 2, 3, 4, 5, 6]}",
            ],
            r"training set has 60 .* 64 times as many at last",
        ),
        (["fit.batch=5"], "at least 6, two images of each of 3 classes on 1 device.*: --set fit.batch=6"),
        (["fit.batch=33", "fit.order=shuffled", "fit.devices=2"], "does not divide among 2"),
        (["fit.batch=12", "fit.devices=3", "fit.order=balanced"], "at least 18, .* on 3 device"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(make_config: MakeConfig, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Plan(make_config(*overrides).fit, toy_data([25, 10, 25]))


@pytest.mark.parametrize(
    ("batch", "devices", "taken"), [(30, 1, 30), (31, 1, 30), (29, 1, 27), (20, 3, 18), (33, 1, 30), (50, 3, 27)]
)
def test_a_balanced_batch_is_the_largest_that_divides_and_that_every_class_has(
    make_config: MakeConfig, batch: int, devices: int, taken: int
) -> None:
    plan = Plan(make_config(f"fit.batch={batch}", f"fit.devices={devices}").fit, toy_data([25, 10, 25]))
    indices = plan.indices(0)
    assert len(indices) == plan.step(0).batch == taken
    assert ("'b' has 10" in plan.note) == (batch in (33, 50)), plan.note
    assert plan.note.startswith(f"fit.batch is {taken} instead of {batch}: ") or taken == batch and not plan.note
    for share in indices.split(taken // devices):
        assert torch.bincount(toy_data([25, 10, 25]).labels[share]).tolist() == [taken // devices // 3] * 3


@pytest.mark.parametrize(("doublings", "taken"), [([], 60), ([1], 30), ([1, 2], 15)])
def test_a_shuffled_batch_is_at_most_the_training_set_when_it_is_largest(
    make_config: MakeConfig, doublings: list[int], taken: int
) -> None:
    schedule = f"fit.schedule={{kind: batch-doubling, after_epochs: {doublings}}}" if doublings else "fit.seed=1"
    plan = Plan(make_config("fit.order=shuffled", "fit.batch=64", schedule).fit, toy_data([25, 10, 25]))
    assert len(plan.indices(0)) == taken


@pytest.mark.parametrize("name", ["equivae-folder", "mcevae-folder"])
def test_two_classes_of_three_pictures_are_enough_for_the_configurations_of_folders(name: str) -> None:
    fit = load_config(CONFIGS / f"{name}.yaml").fit
    plan = Plan(fit, toy_data([2, 2]))  # the third is for validation
    assert sorted(plan.indices(plan.total_steps - 1).tolist()) == [0, 1, 2, 3]
