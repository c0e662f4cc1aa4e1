"""The later paper's two stages: what each learns, group by group, and that the flow exports."""

import math
from typing import Any

import pytest
import torch

from contract.geometry import Group
from contract.manifest import InputSpec
from training.datasets import LabelledImages
from training.datasets import digits as small_digits
from training.graphs import export_graphs
from training.lie import DIMENSIONS, compose, exponential, inverse, resample
from training.models.registry import graphs, whole
from training.models.symmetry_config import TwoStageConfig
from training.models.symmetry_two_stage import SymmetryTwoStage
from training.rotation import wrapped
from training.turned import move, similarity

SMALL: dict[str, Any] = {
    "kind": "symmetry_two_stage",
    "rotation_degrees": 30,
    "modes": 3,
    "samples": 4,
    "encoder": {"radii": 6, "angles": 64, "width": 24, "kernel": 3, "dilations": [1]},
    "scale_filters": [8, 16],
    "flow": {"features": [24, 8], "hidden": [16], "bins": 8, "transforms": 1},
}
STEPS = 80


def make(group: Group, **changes: Any) -> SymmetryTwoStage:
    torch.manual_seed(0)
    moves = {"shift": 0.05} if group != "SO2" else {}
    moves |= {"scale": 0.1} if group == "AFF5" else {}
    config = TwoStageConfig.model_validate({**SMALL, "group": group, **moves, **changes})
    return SymmetryTwoStage(config, InputSpec(channels=1, height=16, width=16), 10)


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    return small_digits.load(0).train.padded(16)


def trained(model: SymmetryTwoStage, data: LabelledImages) -> tuple[SymmetryTwoStage, list[dict[str, float]]]:
    model.prepare(data)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    seen = []
    for step in range(STEPS):
        chosen = torch.randint(len(data), (32,), generator=generator)
        terms = model.loss(model.batch(data, chosen, generator), generator, step / STEPS)
        optimiser.zero_grad()
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        seen.append({name: float(value.detach()) for name, value in terms.items()})
    return model.eval(), seen


@pytest.mark.parametrize("group", ["SE2", "AFF5"])
def test_both_stages_learn(group: Group, data: LabelledImages) -> None:
    model, seen = trained(make(group), data)
    first = [terms for terms in seen if "mse" in terms]
    second = [terms for terms in seen if "flow" in terms]
    assert len(first) == round(0.6 * STEPS)
    assert first[-1]["turn"] < 0.3 * first[0]["turn"]
    assert second[-1]["flow"] < second[0]["flow"] - 0.2
    figures = model.validate(data, data.subset(torch.arange(100)))
    assert set(figures) == set(model.config.metrics)
    assert figures["relative_median_60"] < 4
    images = data.images[:40].float() / 255
    with torch.no_grad():
        pose = model.pose(images)
        known = model._random(40, 60, 0.05, 0.0, torch.Generator().manual_seed(1))
        one, other = (resample(seen, model.pose(seen).matrix) for seen in (images, move(images, known)))
    assert pose.coefficients.shape == (40, DIMENSIONS[group]) and pose.modes.shape == (40, 3, 2, 3)
    assert torch.allclose(pose.weights.sum(1), torch.ones(40), atol=1e-4)
    gap = (one - other).pow(2).mean((1, 2, 3)).median()
    assert float(gap) < 0.25 * float((images - move(images, known)).pow(2).mean())


def test_the_middle_goes_where_the_ink_is() -> None:
    model = make("AFF5")
    coefficients, matrix = model._resolved(
        torch.tensor([0.0, 2.5, -3.1]), torch.tensor([[0.1, -0.2]] * 3), torch.tensor([[0.2, -0.1]] * 3)
    )
    assert torch.allclose(matrix[:, :, 2], torch.tensor([[0.1, -0.2]] * 3), atol=1e-5)
    assert torch.allclose(exponential("AFF5", coefficients), matrix, atol=1e-5)
    assert torch.allclose(coefficients[:, 0], torch.tensor([0.0, 2.5, -3.1]))


def test_the_expected_distance_is_the_mean_over_both_posteriors(data: LabelledImages) -> None:
    """With posteriors on one bin each it is the distance of x to x turned by what is left; flat ones give the mean."""
    model = make("SO2")
    images = data.images[:4].float() / 255
    polar = model.correlator.polar(images)
    distance = model.correlator(polar, polar) / model.correlator.pixels
    sure = torch.full((4, 32), -40.0)
    one, other = sure.clone(), sure.clone()
    one[:, 10], other[:, 4] = 40.0, 40.0
    turn = torch.full((4,), 2 * math.pi * 5 / 32)
    assert torch.allclose(model._expected(images, one, other, turn), distance[:, 2].mean(), rtol=1e-3)
    flat = torch.zeros(4, 32)
    assert torch.allclose(model._expected(images, flat, flat, turn), distance[:, ::2].mean(), rtol=1e-3)


def test_the_loss_is_zero_for_a_perfect_pose_and_not_for_another(data: LabelledImages) -> None:
    """The composed transform of known poses is the identity."""
    model = make("AFF5")
    random = model._random(6, 180, 0.1, 0.2, torch.Generator().manual_seed(0))
    pose = model._random(3, 180, 0.1, 0.2, torch.Generator().manual_seed(1))
    found = compose(random, pose.repeat(2, 1, 1))
    others = random.roll(3, 0), found.roll(3, 0)
    error = compose(compose(inverse(random), found), compose(inverse(others[1]), others[0]))
    assert torch.allclose(error, torch.eye(2, 3).expand(6, 2, 3), atol=1e-4)


def test_the_ablation_compares_transforms(data: LabelledImages) -> None:
    model = make("SE2", ssl_space="coefficients")
    model.prepare(data)
    generator = torch.Generator().manual_seed(0)
    terms = model.loss(model.batch(data, torch.arange(8), generator), generator, 0.2)
    assert float(terms["mse"].detach()) > 0.01 and float(terms["turn"].detach()) == 0


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("one_round")
def test_the_affine_model_exports(data: LabelledImages) -> None:
    model = make("AFF5", modes=1)
    model.prepare(data)
    capabilities = graphs("symmetry_two_stage", model)
    exported = export_graphs(capabilities, model.input, whole("symmetry_two_stage", model))
    assert set(exported.graphs) == {"transform", "canonicalize", "augment"} and max(exported.parity.values()) < 1e-4
    assert exported.graphs["augment"].inputs[1].shape == ("N", 4, 5)
    assert [tensor.name for tensor in exported.graphs["canonicalize"].inputs] == ["image"]


def test_a_turn_of_the_picture_turns_the_pose(data: LabelledImages) -> None:
    """Before any training: the polar net is equivariant by construction, and the centroid exactly."""
    model = make("SE2").eval()
    images = data.images[:30].float() / 255
    turn = torch.full((30,), 2 * math.pi * 7 / 32)
    known = similarity(turn, torch.zeros(30, 2))
    with torch.no_grad():
        before, after = model._found(images), model._found(move(images, known, mode="bicubic"))
        middle = (after.matrix - compose(known, before.matrix))[:, :, 2]
    gap = torch.rad2deg(wrapped(after.coefficients[:, 0] - before.coefficients[:, 0] - turn)).abs()
    assert float(gap.median()) < 3
    assert float(middle.abs().max()) < 0.05
