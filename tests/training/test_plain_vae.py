"""The VAEs beside MCE-VAE: what each makes of a transform, its objective written out, and that it learns."""

import pytest
import torch

from contract.manifest import InputSpec
from training import datasets
from training.config import DigitsData
from training.datasets import LabelledImages
from training.evaluation.pose_models import LatentModel
from training.graphs import export_graphs
from training.lie import exponential, inverse, resample
from training.models.fixed_pose import cross_entropy
from training.models.plain_vae import PlainVAE
from training.models.plain_vae_config import PlainVAEConfig
from training.models.registry import graphs, whole

METHODS = ("beta", "affine", "spatial")
INPUT = InputSpec(channels=1, height=12, width=12)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    return datasets.load(DigitsData(source="digits", canvas=12)).train


def make(method: str, **values: object) -> PlainVAE:
    return PlainVAE(PlainVAEConfig.model_validate({"kind": "plain_vae", "method": method, **values}), INPUT, 10)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group", ["SO2", "SE2"])
def test_it_learns_and_finds_clusters(method: str, group: str, data: LabelledImages) -> None:
    model = make(method, group=group, shift=0.1)
    model.prepare(data)
    few = data.subset(torch.arange(200))
    before = model.validate(few, few)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(20):
        rows = torch.randperm(len(data), generator=seeded(step))[:64]
        loss = model.loss(model.batch(data, rows, seeded(step)), seeded(step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = model.validate(few, few)
    assert after["reconstruction"] < 0.8 * before["reconstruction"]
    model.calibrate(few, few)
    images = data.images[:50].float() / 255
    assert model.clusters(images).sum(1).tolist() == [1.0] * 50
    pose, canonical, rectified, embedding = model.canonicalize(images)
    assert torch.equal(embedding, model.embed(images))
    assert canonical.shape == rectified.shape == images.shape
    found = float(pose.coefficients.detach().abs().max())
    assert found == 0 if method == "beta" else found > 0


@pytest.mark.parametrize("method", ["affine", "beta"])
def test_what_is_decoded_is_the_canonical_picture_under_the_transform(method: str) -> None:
    model = make(method)
    z, matrix = torch.randn(3, 16), exponential("SO2", torch.tensor([[0.5], [-1.0], [0.0]]))
    canonical = model.decode(z, z)
    torch.testing.assert_close(model.decode_under(matrix, z), resample(canonical, inverse(matrix)))


def test_spatial_decodes_places_where_the_transform_moves_them() -> None:
    """A quarter of a turn maps the pixel grid onto itself."""
    model = make("spatial")
    z, quarter = torch.randn(1, 16), exponential("SO2", torch.tensor([[torch.pi / 2]]))
    upright = model.decode(z, z)
    turned = model.decode_under(quarter, z)
    torch.testing.assert_close(turned, torch.rot90(upright, 1, (2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(turned, resample(upright, inverse(quarter), "nearest"), rtol=1e-3, atol=1e-4)


def test_affine_encodes_what_its_own_transform_has_undone(data: LabelledImages) -> None:
    model = make("affine")
    torch.nn.init.normal_(model.tau.weight, std=0.05)
    images = data.images[:4].float() / 255
    q = model.posterior(images)
    undone = resample(images, exponential("SO2", q.tau))
    torch.testing.assert_close(q.z, model.z(model.encoder(undone)).chunk(2, 1)[0])
    assert q.tau_log_variance is None and float(q.tau.detach().abs().max()) > 0.01


def test_beta_weighs_the_kl_of_z(data: LabelledImages) -> None:
    model = make("beta", beta=3)
    batch = model.batch(data, torch.arange(8), seeded())
    terms = model.loss(batch, seeded(1))
    expected = terms["reconstruction"] + 3 * terms["kl"]
    torch.testing.assert_close(terms["loss"], expected)
    q = model.posterior(batch["observed"])
    z = q.z + torch.exp(0.5 * q.z_log_variance) * torch.randn(q.z.shape, generator=seeded(1))
    rebuilt = model.decode_under(exponential("SO2", q.tau), z)
    torch.testing.assert_close(terms["reconstruction"], cross_entropy(batch["observed"], rebuilt).mean())


@pytest.mark.parametrize("method", METHODS)
def test_the_drawn_reconstruction_is_the_objectives(method: str, data: LabelledImages) -> None:
    model = make(method, pose_seed=3).eval()
    few = data.subset(torch.arange(40))
    expected = model.loss(model.batch(few, torch.arange(40), seeded()), seeded(3))["reconstruction"].item()
    figures = model.validate(data, few)
    assert figures["reconstruction_drawn"] == pytest.approx(expected, rel=1e-5)
    assert set(figures) == set(PlainVAEConfig.metrics)


@pytest.mark.parametrize("method", METHODS)
def test_the_means_of_clusters_can_be_decoded(method: str, data: LabelledImages) -> None:
    """As a figure does: `canonicalize` decodes the same latents."""
    model = make(method).eval()
    images = data.images[:3].float() / 255
    assert isinstance(model, LatentModel)
    torch.testing.assert_close(model.decode(*model.latents(images)), model.canonicalize(images).canonical)


@pytest.mark.parametrize("method", ["beta", "spatial"])
def test_it_exports(method: str) -> None:
    model = make(method).eval()
    capabilities = graphs("plain_vae", model)
    # Which pose a picture has is nothing that a beta-VAE could answer.
    assert set(capabilities) == {"embed"} | (set() if method == "beta" else {"transform", "canonicalize"})
    exported = export_graphs(capabilities, INPUT, whole("plain_vae", model))
    assert max(exported.parity.values()) < 1e-4
