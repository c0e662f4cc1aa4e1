"""The canonicaliser over C_n is equivariant whatever its weights, and both readers learn to read turned bars."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmarks.readers import LiftedReader, Turned, fit_reader
from training.evaluation.pose_measures import wrapped_degrees
from training.evaluation.probes import predict, small_cnn
from training.evaluation.views import observe, rotation_matrices


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_quarter_of_a_turn_changes_the_angle_found_and_not_the_answer() -> None:
    """Quarters are exact: the pixel grid is mapped onto itself."""
    model = LiftedReader(1, 12, 5, copies=4).eval()
    images = torch.rand(6, 1, 12, 12)
    quarter = torch.rot90(images, 1, (2, 3))
    with torch.no_grad():
        torch.testing.assert_close(model(quarter), model(images), rtol=1e-4, atol=1e-5)
        found = wrapped_degrees(model.degrees(quarter) - model.degrees(images))
    assert found.tolist() == [90.0] * 6


def test_the_energy_net_is_taught_through_the_choice() -> None:
    model = LiftedReader(1, 12, 3, copies=4)
    nn.functional.cross_entropy(model(torch.rand(4, 1, 12, 12)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(float(value.grad.abs().sum()) > 0 for value in model.energy[0].parameters())


def test_pictures_are_turned_in_training_alone() -> None:
    images = torch.rand(3, 1, 12, 12)
    layer = Turned(60)
    assert not torch.allclose(layer(images), images)
    assert torch.equal(layer.eval()(images), images)


def bars(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A thin bar, a thick one and a corner, 12 x 12."""
    pictures, labels = torch.zeros(count, 1, 12, 12, dtype=torch.uint8), torch.arange(count) % 3
    pictures[labels == 0, :, 2:10, 5:7] = 255
    pictures[labels == 1, :, 2:10, 4:8] = 255
    pictures[labels == 2, :, 2:10, 5:7] = 255
    pictures[labels == 2, :, 8:10, 5:10] = 255
    return pictures, labels


@pytest.mark.parametrize(
    ("make", "steps"),
    [(lambda: small_cnn(1, 12, 3), 40), (lambda: LiftedReader(1, 12, 3, 4), 30)],
    ids=["augmented", "lifted"],
)
def test_turned_bars_are_read(make: Callable[[], nn.Module], steps: int) -> None:
    network = make()
    fit_reader(network, *bars(18), 90, steps=steps, seed=0)
    pictures, labels = bars(45)
    angles = torch.rand(45, generator=torch.Generator().manual_seed(1)) * 180 - 90
    shown = observe(pictures.float() / 255, rotation_matrices(angles))
    assert float((predict(network, shown) == labels).float().mean()) > 0.8
