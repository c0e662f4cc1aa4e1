"""Recipe `paper` of MCE-VAE against the reference code's formulas, written out naively."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from contract.manifest import InputSpec, verify
from training import lie
from training.config_file import load_config
from training.datasets import LabelledImages, Splits, digits
from training.errors import ConfigError
from training.export import export_run
from training.fit import train
from training.models.fixed_pose import draw_fixed_poses, pose_images
from training.models.mcevae_paper import MCEVAEPaper
from training.models.mcevae_paper_config import MCEVAEPaperConfig
from training.run import load_run

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return digits.load(0)


def make(side: int = 8, channels: int = 1, **config: object) -> MCEVAEPaper:
    values = MCEVAEPaperConfig.model_validate({"kind": "mcevae_paper", "transforms": 2, **config})
    return MCEVAEPaper(values, InputSpec(channels=channels, height=side, width=side), 10)


# --- shape ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "count"), [("SO2", 3_208_420), ("SE2", 3_208_552)])
def test_there_are_as_many_parameters_as_in_the_reference_code(group: str, count: int) -> None:
    assert sum(p.numel() for p in make(28, group=group).parameters()) == count


def test_the_parts_have_the_shapes_of_the_reference_code() -> None:
    """784 features from 28 x 28, ten and three latents; the canonical image stays 1/512 away from 0 and 1."""
    model = make(28, group="SE2").eval()
    images = torch.rand((3, 1, 28, 28), generator=seeded())
    features = model.encoder(images)
    assert features.shape == (3, 784)
    assert [part.mean(features).shape[1] for part in (model.content, model.style, model.pose_heads)] == [10, 3, 3]
    canonical = model.decode(20 * torch.randn((3, 10), generator=seeded()), torch.zeros(3, 3)).detach()
    assert canonical.shape == images.shape
    assert 1 / 512 <= float(canonical.min()) <= float(canonical.max()) <= 511 / 512


def test_images_whose_side_cannot_be_halved_twice_are_refused() -> None:
    data = LabelledImages(torch.zeros((2, 1, 30, 30), dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(ValueError, match="30 x 30.*multiple of 4"):
        make(30).prepare(data)


# --- the data: one transform an image ---------------------------------------------------------------------------------


def test_fixed_poses_stay_and_fill_the_range() -> None:
    poses = draw_fixed_poses(5000, 28, 90, 0.25, seed=3)
    assert torch.equal(poses, draw_fixed_poses(5000, 28, 90, 0.25, seed=3))
    assert not torch.equal(poses, draw_fixed_poses(5000, 28, 90, 0.25, seed=4))
    angles = torch.rad2deg(torch.atan2(poses[:, 0, 1], poses[:, 0, 0]))
    assert -90 <= float(angles.min()) < -88 and 88 < float(angles.max()) <= 90
    pixels = poses[:, :, 2] * 14
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-5)
    assert set(pixels.round().flatten().tolist()) == set(range(-7, 8))
    assert float(torch.corrcoef(torch.cat([angles[:, None], pixels], 1).T).sub(torch.eye(3)).abs().max()) < 0.05


def test_an_image_is_turned_counter_clockwise_then_moved() -> None:
    image = torch.rand((1, 1, 8, 8), generator=seeded())
    turned = lie.exponential("SO2", torch.tensor([[math.pi / 2]]))
    torch.testing.assert_close(pose_images(image, turned), torch.rot90(image, 1, (2, 3)))
    turned[:, :, 2] = torch.tensor([2.0, 0.0]) / 8 * 2  # two pixels to the right
    moved = F.pad(torch.rot90(image, 1, (2, 3)), (2, -2))
    torch.testing.assert_close(pose_images(image, turned), moved)


def test_a_batch_holds_every_image_under_its_own_transform(splits: Splits) -> None:
    data = splits.train
    model = make(group="SE2")
    first = model.batch(data, torch.tensor([5, 9, 700]), seeded(1))
    again = model.batch(data, torch.tensor([700, 5]), seeded(2))
    torch.testing.assert_close(first["observed"][[2, 0]], again["observed"])
    torch.testing.assert_close(first["upright"][0], data.images[5] / 255)
    assert bool((first["observed"] != first["upright"]).flatten(1).any(1).all())


# --- the objective ----------------------------------------------------------------------------------------------------


def reference_matrix(tau: Tensor) -> Tensor:
    """`get_M`: what the code resamples with, observed -> canonical. tau [N,1] or [N,3]"""
    rows = []
    for values in tau.unbind(0):
        theta = values[0] + 1e-20
        cos, sin = torch.cos(theta), torch.sin(theta)
        x = y = torch.zeros(())
        if len(values) == 3:
            x = values[1] / theta * sin - values[2] / theta * (1 - cos)
            y = values[1] / theta * (1 - cos) + values[2] / theta * sin
        rows.append(torch.stack([torch.stack([cos, -sin, x]), torch.stack([sin, cos, y])]))
    return torch.stack(rows)


def reference_resample(images: Tensor, tau: Tensor) -> Tensor:
    grid = F.affine_grid(reference_matrix(tau), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def reference_loss(model: MCEVAEPaper, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """`calc_loss` with bce, from the same draws; signs of tau as in the code."""
    config, x, n = model.config, batch["observed"], len(batch["observed"])
    signs = torch.tensor([1.0, -1, -1])[: lie.DIMENSIONS[config.group]]

    def sample(head: torch.nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = head(features)
        return mean + torch.randn(mean.shape, generator=generator) * torch.exp(0.5 * log_variance), log_variance

    def bce(target: Tensor, image: Tensor) -> Tensor:
        target, image = target.clamp(1e-5, 1 - 1e-5), image.clamp(1e-5, 1 - 1e-5)
        return -(target * torch.log(image) + (1 - target) * torch.log(1 - image)).sum()

    features = model.encoder(x)
    z, z_log_variance = sample(model.style, features)
    z_c, z_c_log_variance = sample(model.content, features)
    tau, tau_log_variance = sample(model.pose_heads, features)
    canonical = model.decode(z_c, z)
    total = bce(x, reference_resample(canonical, tau * signs))
    if config.supervised:
        total = total + bce(batch["upright"], canonical)
    else:
        for _ in range(config.transforms):
            with torch.no_grad():
                noise = 2 * torch.rand(tau.shape, generator=generator) - 1
                other_features = model.encoder(
                    reference_resample(x, noise * torch.tensor([-math.pi, 0.25, 0.25])[: len(signs)])
                )
                other_z_c, _ = sample(model.content, other_features)
                other_z, _ = sample(model.style, other_features)
                target = model.decode(other_z_c, other_z)
            distance = ((other_z - z) ** 2).sum() + ((other_z_c - z_c) ** 2).sum() + bce(target, canonical)
            total = total + distance / config.transforms
    for value, log_variance in ((z, z_log_variance), (tau, tau_log_variance)):
        total = total - 0.5 * (1 + log_variance).sum() + 0.5 * (value**2).sum()
    k = config.clusters
    log_q = -0.5 * (1 + z_c_log_variance / k + (k - 1) * z_c**2 / k).sum()
    log_p = -0.5 * (z_c**2).sum() + z_c.sum() / k
    return (total + log_q - log_p) / n


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("group", ["SO2", "SE2"])
def test_the_loss_is_the_reference_codes(group: str, supervised: bool, splits: Splits) -> None:
    """Up to the constant n_C / 2 that the code's expression for z_c has beside a KL."""
    data = splits.train
    model = make(group=group, supervised=supervised).train()
    for head in (model.pose_heads.mean[2], model.pose_heads.log_variance[2]):
        torch.nn.init.normal_(head.weight, std=0.3, generator=seeded())  # as after some training
    batch = model.batch(data, torch.arange(20), seeded())
    expected = reference_loss(model, batch, seeded(7)) + 5
    terms = model.loss(batch, seeded(7))
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["loss"], sum(terms.values()) - terms["loss"])
    assert ("canonical" in terms) == supervised != ("invariance" in terms)


def test_a_single_gaussian_changes_the_kl_of_z_c_alone(splits: Splits) -> None:
    mixture, single = make(group="SE2"), make(group="SE2", content_prior="gaussian")
    single.load_state_dict(mixture.state_dict())
    batch = mixture.batch(splits.train, torch.arange(20), seeded())
    terms, changed = (model.eval().loss(batch, seeded(7)) for model in (mixture, single))
    assert {name for name in terms if terms[name] != changed[name]} == {"loss", "kl_content"}
    features = mixture.encoder(batch["observed"])
    draw = seeded(7)
    torch.randn((20, 3), generator=draw)  # z is drawn first
    mean, log_variance = mixture.content(features)
    z_c = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=draw)
    expected = 0.5 * (z_c**2 - 1 - log_variance).sum(1).mean()
    torch.testing.assert_close(changed["kl_content"], expected)
    closed = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    of_mixture = 0.5 * ((mean - 1) ** 2 + log_variance.exp() - 1 - log_variance).mean(1)
    with torch.no_grad():
        difference = single.rebuild(batch["observed"])[1] - mixture.rebuild(batch["observed"])[1]
    torch.testing.assert_close(difference, (closed - of_mixture).detach(), rtol=1e-4, atol=1e-3)


def test_starred_quantities_get_no_gradient_and_move_the_running_statistics(splits: Splits) -> None:
    model = make(transforms=3).train()
    batch = model.batch(splits.train, torch.arange(10), seeded())
    model.loss(batch, seeded())["loss"].backward()
    assert int(model.encoder[1].num_batches_tracked) == 4
    x, z_c, z = batch["observed"], torch.zeros(10, 10), torch.zeros(10, 3)
    assert not model._invariance(x, z_c, z, model.decode(z_c, z).detach(), seeded()).requires_grad


@pytest.mark.parametrize("group", ["SO2", "SE2"])
def test_the_gradient_is_finite_where_the_angle_is_exactly_0(group: str, splits: Splits) -> None:
    """The fresh model's angle is 0; without noise its sample is too. The reference's formula has no gradient there."""
    tau = torch.tensor([[0, 0.1, 0.2]], requires_grad=True)
    reference_matrix(tau).sum().backward()
    assert bool(tau.grad[0, 0].isnan())  # type: ignore[index]

    model = make(group=group)
    batch = model.batch(splits.train, torch.arange(10), seeded())
    torch.nn.init.constant_(model.pose_heads.log_variance[2].bias, -1e4)
    with torch.no_grad():
        model.pose_heads.mean[2].bias[1:] = 0.1
    model.loss(batch, seeded())["loss"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert float(model.pose_heads.mean[2].bias.grad.abs().max()) > 0


# --- what is served ---------------------------------------------------------------------------------------------------


def test_the_pose_follows_the_projects_convention(splits: Splits) -> None:
    """A head that answers +30 degrees and a shift whatever it sees: what is made of it."""
    model = make(group="SE2").eval()
    with torch.no_grad():
        model.pose_heads.mean[2].bias.copy_(torch.tensor([math.pi / 6, 0.2, -0.1]))
        model.pose_heads.log_variance[2].bias.copy_(torch.tensor([9.0, -2, -2]))
        images = splits.train.images[:5].float() / 255
        pose, canonical, rectified, embedding = model.canonicalize(images)
        assert torch.equal(embedding, model.embed(images))
    turned = torch.tensor([[0.8660, 0.5], [-0.5, 0.8660]])
    torch.testing.assert_close(pose.matrix[:, :, :2], turned.expand(5, 2, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(pose.matrix, lie.exponential("SE2", pose.coefficients))
    assert pose.modes.shape == (5, 1, 2, 3) and torch.equal(pose.modes[:, 0], pose.matrix)
    assert torch.equal(pose.weights, torch.ones(5, 1))
    expected = torch.tensor([math.pi / math.sqrt(3), math.exp(-1), math.exp(-1)])
    torch.testing.assert_close(pose.coefficients_std, expected.expand(5, 3))
    torch.testing.assert_close(rectified, lie.resample(images, pose.matrix))
    assert canonical.shape == images.shape
    for one, other in zip(pose, model.pose(images), strict=True):
        torch.testing.assert_close(one, other)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(splits: Splits) -> MCEVAEPaper:
    """SE(2), 50 steps on scikit-learn's digits."""
    torch.manual_seed(0)
    model = make(group="SE2", transforms=1).train()
    model.prepare(splits.train)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(50):
        indices = torch.randperm(len(splits.train), generator=seeded(step))[:100]
        loss = model.loss(model.batch(splits.train, indices, seeded(step)), seeded(step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.calibrate(splits.train, splits.validation)
    return model.eval()


def test_training_lowers_every_figure_of_the_reconstruction(fitted: MCEVAEPaper, splits: Splits) -> None:
    """Below the fresh model, and below the mean of the observed images: the best that ignores its input."""
    before = make(group="SE2").validate(splits.train, splits.validation)
    after = fitted.validate(splits.train, splits.validation)
    observed = torch.cat(list(fitted._observed(splits.validation)))
    mean = observed.mean(0, keepdim=True).expand_as(observed)
    assert after["reconstruction"] < 0.8 * before["reconstruction"]
    assert after["mse"] < 0.95 * float(((mean - observed) ** 2).mean())
    assert after == fitted.validate(splits.train, splits.validation)


def test_clusters_are_the_nearest_of_k_means(fitted: MCEVAEPaper, splits: Splits) -> None:
    images = torch.cat(list(fitted._observed(splits.train)))
    with torch.no_grad():
        embeddings, clusters = fitted.embed(images), fitted.clusters(images)
    assert embeddings.shape == (len(images), 10)
    assert torch.equal(clusters.sum(1), torch.ones(len(images))) and bool(clusters.any(0).all())
    means = clusters.T @ embeddings / clusters.sum(0)[:, None]  # Lloyd's fixed point
    torch.testing.assert_close(fitted.centroids, means, rtol=1e-2, atol=1e-2)


def test_a_run_ends_in_a_model_folder(tmp_path: Path, write: Callable[[dict[str, Any]], Path]) -> None:
    """Train through the loop, read the run again, export it: the graphs agree with torch or the export fails."""
    values = {
        "name": "paper",
        "recipe": "paper",
        "data": {"source": "digits"},
        "model": {"kind": "mcevae_paper", "group": "SE2", "transforms": 1},
        "fit": {
            "steps": 3,
            "batch": 20,
            "select": "reconstruction",
            "keep": "best",
            "accelerator": "cpu",
            "threads": 1,
        },
    }
    console = Console(file=io.StringIO())
    outcome = train(load_config(write(values)), tmp_path / "run", console=console)
    assert set(outcome.metrics) == set(MCEVAEPaperConfig.metrics)
    run = load_run(outcome.folder)
    assert isinstance(run.model, MCEVAEPaper) and bool(run.model.centroids.any())
    folder = export_run(outcome.folder, tmp_path / "store", console=console)
    manifest = verify(folder)
    assert (manifest.kind, manifest.group) == ("mcevae", "SE2")
    assert set(manifest.graphs) == {"embed", "transform", "canonicalize"}


@pytest.mark.parametrize(("group", "name"), [("SO2", "so2"), ("SE2", "se2")])
def test_the_shipped_configurations_are_the_reference_codes(group: str, name: str) -> None:
    config = load_config(CONFIGS / f"mcevae-mnist-{name}-paper.yaml")
    model, fit = config.model, config.fit
    assert isinstance(model, MCEVAEPaperConfig)
    assert (config.recipe, model.group, model.supervised) == ("paper", group, False)
    assert (model.clusters, model.style_dim, model.rotation_degrees, model.shift) == (10, 3, 90, 0.25)
    assert (fit.batch, fit.optimiser.kind, fit.optimiser.learning_rate) == (100, "adam", 1e-3)
    supervised = load_config(CONFIGS / f"mcevae-mnist-{name}-paper.yaml", ["model.supervised=true"])
    assert supervised.model.supervised  # type: ignore[union-attr]


def test_groups_that_the_recipe_lacks_are_refused(tmp_path: Path) -> None:
    text = (CONFIGS / "mcevae-mnist-so2-paper.yaml").read_text().replace("SO2", "SIM2")
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="model.group.*SO2.*SE2"):
        load_config(path)
