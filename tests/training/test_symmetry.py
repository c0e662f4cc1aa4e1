"""The symmetry-transformation model: what its parts promise, that it learns on small digits, and what is exported."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from rich.console import Console

from contract.manifest import InputSpec, verify
from training.config_file import load_config
from training.datasets import digits as small_digits
from training.export import export_run
from training.fit import train
from training.flow import PoseFlow, WrappedNormal
from training.graphs import export_graphs
from training.lie import resample
from training.models import symmetry_parts
from training.models.base import Graph
from training.models.registry import graphs, whole
from training.models.symmetry import Symmetry
from training.models.symmetry_config import PolarEncoderConfig, SymmetryConfig
from training.models.symmetry_parts import Correlator, InvariantEncoder
from training.rotation import wrapped
from training.run import LoadedRun, load_run
from training.symmetry_experiments import card
from training.turned import RelativeError, move, similarity

SMALL: dict[str, Any] = {
    "kind": "symmetry",
    "rotation_degrees": 30,
    "z_dim": 8,
    "modes": 2,
    "samples": 5,
    "anchored": 0.8,  # with less the frame of so short a run is upside down with one seed in a few
    "encoder": {"radii": 6, "angles": 64, "width": 24, "kernel": 3, "dilations": [1], "hidden": 32},
    "decoder": {"hidden": 48, "filters": [12, 12, 8]},
    "flow": {"features": [24, 8], "hidden": [16], "bins": 8, "transforms": 1},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(side: int, **changes: Any) -> Symmetry:
    torch.manual_seed(0)
    return Symmetry(
        SymmetryConfig.model_validate({**SMALL, **changes}), InputSpec(channels=1, height=side, width=side), 10
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("symmetry")
    values = {
        "name": "small-symmetry",
        "recipe": "test",
        "data": {"source": "digits", "canvas": 12, "exclude": ["1", "4", "5", "6", "7", "9"]},
        "model": SMALL,
        "fit": {
            "steps": 200,
            "batch": 64,
            "optimiser": {"kind": "adamw", "learning_rate": 0.005},
            "schedule": {"kind": "cosine"},
            "ema": 0.98,
            "validate_epochs": 1000,
            "select": "elbo",
            "select_mode": "max",
            "accelerator": "cpu",
            "threads": 1,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    train(load_config(path), folder / "run", console=Console(file=io.StringIO()))
    return load_run(folder / "run")


@pytest.fixture(scope="module")
def digits(run: LoadedRun) -> torch.Tensor:
    return run.splits().validation.images.float() / 255


def turned(images: torch.Tensor, degrees: torch.Tensor | float) -> torch.Tensor:
    angle = torch.deg2rad(torch.as_tensor(degrees)).expand(len(images))
    return move(images, similarity(angle, torch.zeros(len(images), 2)), mode="bicubic")


# --- the flow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [lambda: PoseFlow(1, 6, (16,), 8, 2), lambda: PoseFlow(1, 0, (16,), 8, 2), lambda: WrappedNormal(6, (16,))]
)
def test_a_density_of_the_angle_is_periodic_and_adds_up_to_one(build: Callable[[], Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        density = build()
    context = torch.randn(4, 6, generator=seeded())
    places = (2 * math.pi * torch.arange(2000) / 2000)[:, None, None].expand(2000, 4, 1)
    with torch.no_grad():
        log_density = density.log_prob(context, places)
        again = density.log_prob(context, places + 2 * math.pi)
    assert torch.allclose(log_density.exp().mean(0) * 2 * math.pi, torch.ones(4), atol=1e-3)
    assert torch.allclose(again, log_density, atol=1e-2)
    steps = (log_density - log_density.roll(1, 0)).abs().amax(1)
    assert steps[0] <= steps[1:].max() and steps[1000] <= steps.sort().values[-2]  # no seam at 0 or half a turn


@pytest.mark.parametrize("dimensions", [1, 3])
def test_the_inverse_flow_draws_from_the_density(dimensions: int) -> None:
    """The share of draws below a place is the integral of the density up to it."""
    torch.manual_seed(1)
    flow = PoseFlow(dimensions, 4, (16,), 8, 2)
    flow.standardise(torch.tensor([[0.0, 1.0, -1.0], [0.0, 1.2, -3.0]])[:, :dimensions])
    context = torch.randn(1, 4, generator=seeded())
    with torch.no_grad():
        drawn = flow.transform(context, torch.randn(20_000, 1, dimensions, generator=seeded()))
        places = torch.linspace(-math.pi, math.pi, 721)[:-1, None, None]
        density = flow.rotation(context).log_prob(places).exp()[:, 0] * 2 * math.pi / 720
    assert drawn.shape == (20_000, 1, dimensions)
    for place in (-2.0, -0.5, 0.3, 1.7):
        below = float((drawn[:, 0, 0] < place).float().mean())
        assert below == pytest.approx(float(density[places[:, 0, 0] < place].sum()), abs=0.02)
    if dimensions > 1:
        assert flow.rest is not None
        noise = torch.randn(20_000, 1, dimensions, generator=seeded())
        rotation = drawn[..., :1]
        given = torch.cat([context.expand(20_000, 1, 4), rotation.cos(), rotation.sin()], 2)
        with torch.no_grad():
            back = flow.rest(given).transform((drawn[..., 1:] - flow.centre) / flow.spread)
        assert torch.allclose(back, noise[..., 1:], atol=1e-3)


# --- the parts --------------------------------------------------------------------------------------------------------


def test_the_correlation_is_the_squared_distance_at_every_turn() -> None:
    correlator = Correlator(16, 5, 32, 2)
    picture, prototype = (torch.rand(3, 10, 32, generator=seeded(seed)) for seed in (0, 1))
    area = correlator.area
    naive = [((picture - prototype.roll(shift, 2)) ** 2 * area).sum((1, 2)) for shift in range(32)]
    assert torch.allclose(correlator(picture, prototype), torch.stack(naive, 1), rtol=1e-4, atol=1e-3)
    assert float(area.sum() * 32) == pytest.approx(correlator.pixels, rel=1e-5)


def test_turning_a_picture_turns_its_polar_map_counter_clockwise() -> None:
    images = small_digits.load(0).train.padded(16).images[:5].float() / 255
    correlator = Correlator(16, 6, 64, 1)
    for bin in (3, 20, 50):
        seen = correlator(correlator.polar(turned(images, 360 * bin / 64)), correlator.polar(images))
        assert (seen.argmin(1) == bin).all()


def test_the_encoder_is_invariant_by_construction() -> None:
    encoder = InvariantEncoder(6, 4, PolarEncoderConfig.model_validate(SMALL["encoder"])).eval()
    polar = torch.rand(3, 6, 64, generator=seeded())
    for found, again in zip(encoder(polar), encoder(polar.roll(14, 2)), strict=True):
        assert torch.allclose(found, again, atol=1e-5)


@pytest.mark.parametrize("prior", ["flow", "shared", "gaussian"])
def test_a_step_has_finite_terms_and_reaches_every_weight(prior: str) -> None:
    data = small_digits.load(0).train.padded(12)
    model = make(12, prior=prior)
    model.prepare(data)
    batch = model.batch(data, torch.arange(24), seeded())
    for progress in (0.0, 0.1, 0.9):
        terms = model.loss(batch, seeded(1), progress)
        assert ("flow" in terms) == (progress < 0.3)
        assert all(torch.isfinite(value) for value in terms.values())
        model.zero_grad()
        terms["loss"].backward()
        still = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
        assert all(name.startswith("features") for name in still) and (not still or prior == "shared")


def test_the_bound_is_the_posters_where_its_posterior_is_the_best() -> None:
    """log sum exp(likelihood + prior) = E_q likelihood - KL(q || prior) with q the posterior, and no q is better."""
    data = small_digits.load(0).train.padded(12)
    model = make(12).eval()
    model.prepare(data)
    batch = model.batch(data, torch.arange(24), seeded())
    with torch.no_grad():
        terms = model.loss(batch, seeded(1), 0.9)
        assert float(terms["elbo"]) == pytest.approx(
            -float(terms["reconstruction"] + terms["kl_eta"] + terms["kl_z"]), rel=1e-4
        )
        prototype = model.prototype(model.embed(batch["views"]))
        likelihood, prior = model.log_likelihood(batch["views"], prototype), model.log_prior(prototype)
        best = torch.logsumexp(likelihood + prior, 1).mean()
        other = model._terms(likelihood, prior, torch.softmax(0.5 * likelihood + prior, 1))
        assert float(-other["reconstruction"] - other["kl_eta"]) < float(best)


def test_every_training_picture_keeps_its_unknown_turn() -> None:
    data = small_digits.load(0).train
    model = make(8)
    model.prepare(data)
    first, again = (model.batch(data, torch.arange(40), seeded(seed))["views"] for seed in (0, 1))
    assert float((first - again).abs().mean()) < 0.02  # two kernels of interpolation
    assert float((first - data.images[:40].float() / 255).abs().mean()) > 0.05


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_it_finds_turns_that_it_was_never_told(run: LoadedRun, digits: torch.Tensor) -> None:
    angle = 120 * torch.rand(len(digits), generator=seeded()) - 60
    with torch.no_grad():
        before, after = run.model.pose(digits), run.model.pose(turned(digits, angle))
    error = torch.rad2deg(wrapped(after.coefficients[:, 0] - before.coefficients[:, 0] - torch.deg2rad(angle))).abs()
    assert float(error.median()) < 3
    assert torch.allclose(after.weights.sum(1), torch.ones(len(digits)), atol=1e-4)
    assert (after.weights.diff(dim=1) <= 1e-6).all()
    assert torch.allclose(after.matrix, after.modes[:, 0])


def test_one_orbit_has_one_prototype(run: LoadedRun, digits: torch.Tensor) -> None:
    with torch.no_grad():
        first, other = (run.model.canonicalize(pictures).canonical for pictures in (digits, turned(digits, 100.0)))
    assert float((first - other).pow(2).mean()) < 0.1 * float((first - first.roll(1, 0)).pow(2).mean())


def test_the_prototypes_stand_as_the_digits_do(run: LoadedRun, digits: torch.Tensor) -> None:
    """The range of the data is 30 degrees either way: the frame lies in its middle, without any label."""
    with torch.no_grad():
        found = torch.rad2deg(run.model.pose(digits).coefficients[:, 0])
    assert float(found.abs().median()) < 15


def test_variants_of_an_orbit_are_the_same_pictures(run: LoadedRun, digits: torch.Tensor) -> None:
    """A(Mx) = M A(x): with the same noise the variants of a picture and of the picture turned are alike."""
    images = digits[:20]
    seen = turned(images, 40.0)
    noise = torch.randn(20, 5, 1, generator=seeded())
    with torch.no_grad():
        first, other = run.model.augment(images, noise), run.model.augment(seen, noise)
        assert first.shape == (20, 5, 2, 3)
        assert torch.allclose(torch.det(first[..., :2]), torch.ones(20, 5), atol=1e-4)
        variants = [resample(pictures, matrix[:, 0]) for pictures, matrix in ((images, first), (seen, other))]
        found = torch.rad2deg(run.model.pose(variants[0]).coefficients[:, 0])
    same = (variants[0] - variants[1]).pow(2).mean((1, 2, 3))
    assert float(same.median()) < 0.15 * float((variants[0] - images).pow(2).mean())
    assert float(found.abs().median()) < 40


def test_a_blank_says_that_it_may_lie_any_way(run: LoadedRun) -> None:
    with torch.no_grad():
        pose = run.model.pose(torch.zeros(1, 1, 12, 12))
    assert float(torch.rad2deg(pose.coefficients_std[0, 0])) > 10


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_round")
def test_the_exported_graphs_draw_what_torch_draws(run: LoadedRun, digits: torch.Tensor, tmp_path: Path) -> None:
    folder = export_run(run.folder, tmp_path, console=Console(file=io.StringIO()))
    manifest = verify(folder)
    assert set(manifest.graphs) == {"embed", "transform", "canonicalize", "augment"}
    assert (manifest.kind, manifest.group) == ("symmetry", "SO2")
    assert manifest.graphs["augment"].inputs[1].shape == ("N", 5, 1)
    session = onnxruntime.InferenceSession(folder / "augment.onnx", providers=["CPUExecutionProvider"])
    noise = torch.randn(9, 5, 1, generator=seeded(3))
    with torch.no_grad():
        want = run.model.augment(digits[:9], noise).numpy()
    for count in (1, 9):
        (got,) = session.run(None, {"image": digits[:count].numpy(), "noise": noise[:count].numpy()})
        np.testing.assert_allclose(got, want[:count], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("flips", ["all", "but at one smoothing"])
def test_calibration_goes_on_where_every_picture_is_a_flip(flips: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(12)

    def error(*_: Any) -> RelativeError:
        degrees = 9.0 if flips != "all" and float(model.smoothing) == 16 else 170.0
        return RelativeError(torch.full((4,), degrees), torch.full((4, 2), 9.0), torch.zeros(4, 2))

    monkeypatch.setattr(symmetry_parts, "relative_error", error)
    data = small_digits.load(0).validation.padded(12).subset(torch.arange(4))
    symmetry_parts.fit_smoothing(model, data, 1.0)
    assert float(model.std_factor) == pytest.approx(1 if flips == "all" else 0.5**0.5)
    if flips != "all":
        assert float(model.smoothing) == 16


def test_a_model_without_a_flow_has_every_graph_but_that_of_variants() -> None:
    model = make(12, prior="gaussian").eval()
    capabilities = graphs("symmetry", model)
    assert set(capabilities) == {"embed", "transform", "canonicalize"}
    everything = whole("symmetry", model)
    assert everything is not None and everything.inputs == ("image",)
    assert {name for graph in capabilities.values() for name in graph.outputs} <= set(everything.outputs)


class Prior(Graph):
    """log p(rotation|x^) of prototypes, at every bin."""

    outputs = ("density",)

    def __init__(self, model: Symmetry) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.log_prior(image)


def test_one_gaussian_in_place_of_the_flow_exports() -> None:
    model = make(12, prior="gaussian").eval()
    exported = export_graphs({"embed": Prior(model)}, model.input)
    assert exported.graphs["embed"].outputs[0].shape == ("N", 64)


def test_the_card_of_experiments_needs_no_more_training_pictures_than_there_are(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "STEPS", 1)
    monkeypatch.setattr(card, "ORBITS", 2)
    found = card.measure(run.folder, "validation", 8, 0, tmp_path)
    assert len(run.splits().train) < card.FITTED and found["n"] == 8
    assert all(math.isfinite(value) for value in found["log_likelihood_of_eta"].values())
