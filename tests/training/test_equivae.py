"""EquiVAE against naive re-implementations of its equations, and what its parts promise the loop and the service."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from contract.manifest import InputSpec
from training.augment import augment
from training.augment_config import AugmentConfig
from training.complements import Grouped, draw_complements, in_batch_weights
from training.datasets import LabelledImages
from training.distances import (
    class_quantiles,
    fit_temperature,
    leave_one_out_distances,
    share_below,
    spaced_quantiles,
    squared_distances,
)
from training.latent import class_mean_energy, kl_per_dimension
from training.models.equivae import EquiVAE
from training.models.equivae_config import EquiVAEConfig
from training.outliers import outliers

SIDE, CLASSES = 8, 3
INPUT = InputSpec(channels=1, height=SIDE, width=SIDE)
SMALL = {
    "kind": "equivae",
    "r_dim": 4,
    "v_dim": 5,
    "encoder": {"filters": [4, 8], "strides": [1, 2], "kernel": 3, "hidden": 16},
    "posterior": {"kind": "dense", "widths": [16]},
    "decoder": {"kind": "dense", "widths": [24]},
}
OURS = SMALL | {
    "complements": "in_batch",
    "encoder": {**SMALL["encoder"], "norm": True, "pool": "depthwise"},  # type: ignore[dict-item]
    "distance_weight": 5,
    "reject_distance": 9,
    "outlier_share": 0.25,
    "class_mean_weight": 2,
    "swap_weight": 3,
    "augment": {"rotation_degrees": 10, "elastic": 0.3},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    return bars(0)


def bars(seed: int) -> LabelledImages:
    """Three classes of 20 bars: level, upright, aslant; each at its own place and brightness."""
    generator = seeded(seed)
    labels = torch.arange(60) % CLASSES
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    planes = torch.stack([rows - 3.5, columns - 3.5, (rows - columns) / math.sqrt(2)]).float()[labels]
    offset = torch.rand((60, 1, 1), generator=generator) * 2 - 1
    level = 0.6 + 0.4 * torch.rand((60, 1, 1), generator=generator)
    images = (255 * level * torch.exp(-((planes - offset) ** 2))).to(torch.uint8)
    return LabelledImages(images[:, None], labels, ("level", "upright", "aslant"))


def make(config: dict[str, object]) -> EquiVAE:
    return EquiVAE(EquiVAEConfig.model_validate(config), INPUT, CLASSES)


def fitted(config: dict[str, object], data: LabelledImages, steps: int) -> EquiVAE:
    model = make(config)
    model.prepare(data)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        batch = model.batch(data, torch.randperm(60, generator=seeded(step)), seeded(step))
        loss = model.loss(batch, seeded(step), step / steps)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


# --- complements (Eq. 2) ----------------------------------------------------------------------------------------------


def test_drawn_complements_are_others_of_the_class_without_repetition() -> None:
    labels = torch.tensor([0] * 9 + [1] * 5 + [2] * 4)[torch.randperm(18, generator=seeded())]
    indices = torch.arange(18)
    sizes = set()
    for seed in range(60):
        chosen = draw_complements(Grouped(labels), indices, 7, seeded(seed))
        sizes.add(chosen.shape[1])
        assert torch.equal(labels[chosen], labels[:, None].expand_as(chosen))
        assert not bool((chosen == indices[:, None]).any())
        assert all(len(set(row)) == len(row) for row in chosen.tolist())
    assert sizes == {1, 2, 3}  # the smallest class has three others


def test_every_complement_is_equally_likely() -> None:
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 0])
    counts = torch.zeros(7)
    for seed in range(600):
        chosen = draw_complements(Grouped(labels), torch.full((50,), 2), 1, seeded(seed))
        counts += torch.bincount(chosen.flatten(), minlength=7)
    expected = torch.tensor([1, 0, 0, 1, 0, 1, 1]) * 600 * 50 / 4
    torch.testing.assert_close(counts, expected, rtol=0.04, atol=0.5)


def test_in_batch_weights_average_random_others_of_the_class() -> None:
    labels = torch.tensor([0, 1, 2] * 6)
    used = torch.zeros(18, 18)
    sizes = set()
    for seed in range(50):
        weights = in_batch_weights(labels, 4, seeded(seed))
        torch.testing.assert_close(weights.sum(1), torch.ones(18))
        assert not bool(weights.diagonal().any())
        assert not bool(weights[labels[:, None] != labels[None]].any())
        sizes |= set((weights > 0).sum(1).tolist())
        used += weights
    assert sizes == {1, 2, 3, 4}
    same = (labels[:, None] == labels[None]) & ~torch.eye(18, dtype=torch.bool)
    assert float(used[same].min()) > 0.4 * float(used[same].mean())


def test_in_batch_weights_take_all_where_there_are_too_few() -> None:
    weights = in_batch_weights(torch.tensor([0, 0, 1, 1]), 7, seeded())
    assert torch.equal(weights, torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]))


def test_in_batch_weights_refuse_an_image_alone() -> None:
    with pytest.raises(ValueError, match="balanced"):
        in_batch_weights(torch.tensor([0, 0, 1]), 2, seeded())


def test_both_ways_give_one_r(data: LabelledImages) -> None:
    """W H with one row of equal weights is the mean over the hidden units of separately encoded complements."""
    model = make(SMALL).eval()
    images = data.images[data.labels == 0].float()[:4] / 255
    hidden = model.body(images)
    weights = torch.tensor([[0.0, 1 / 3, 1 / 3, 1 / 3]])
    apart = torch.stack([model.body(image[None]) for image in images[1:]]).mean(0)
    torch.testing.assert_close(model.head(weights @ hidden), model.head(apart))


# --- the objective (Eqs. 3 and 4) -------------------------------------------------------------------------------------


@torch.no_grad()
def test_paper_loss_is_the_elbo_written_out(data: LabelledImages) -> None:
    model = make(SMALL)
    indices = torch.arange(12)
    batch = model.batch(data, indices, seeded(1))
    terms = model.loss(batch, seeded(2))
    noise = torch.randn((12, 5), generator=seeded(2))
    nats = 0.0
    for index in range(12):
        x = data.images[index].double() / 255
        hidden = torch.stack([model.body(c[None].float())[0] for c in batch["complements"][index]])
        r = model.head(hidden.mean(0, keepdim=True))
        mean, log_variance = model.posterior(r, x[None].float())
        deviation = torch.exp(log_variance / 2)
        probability = model.decode(r, mean + deviation * noise[index])[0].double()
        nats -= float((x * probability.log() + (1 - x) * (1 - probability).log()).sum())
        prior = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
        nats += float(torch.distributions.kl_divergence(torch.distributions.Normal(mean[0], deviation[0]), prior).sum())
    assert float(terms["loss"]) == pytest.approx(nats / 12, rel=1e-4)
    assert float(terms["loss"]) == pytest.approx(float(terms["reconstruction"] + terms["kl"]), rel=1e-6)
    assert set(terms) == {"loss", "reconstruction", "kl"}


def test_gaussian_reconstruction_is_the_density_of_standardised_pixels(data: LabelledImages) -> None:
    model = make(SMALL | {"likelihood": "gaussian"})
    model.prepare(data)
    pixels = data.images.float() / 255
    torch.testing.assert_close(model.pixel_mean, pixels.mean(0))
    r, v = torch.randn(3, 4), torch.randn(3, 5)
    deviation = model.pixel_deviation
    target = (pixels[:3] - model.pixel_mean) / deviation
    normal = torch.distributions.Normal(model.decoder(r, v), torch.exp(model.log_sigma))
    torch.testing.assert_close(model.reconstruction(pixels[:3], r, v), -normal.log_prob(target).sum((1, 2, 3)))
    images = model.decode(r, v)
    assert 0 <= float(images.detach().min()) and float(images.detach().max()) <= 1


def test_class_mean_energy_counts_pairs_of_different_images() -> None:
    mean, labels = torch.randn(9, 2), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    classes = []
    for k in range(3):
        rows = mean[labels == k]
        products = [float(a @ b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        classes.append(sum(products) / len(products))
    assert float(class_mean_energy(mean, labels, 3)) == pytest.approx(sum(classes) / 3, rel=1e-5)


def test_r_of_the_image_itself_leaves_v_with_nothing(data: LabelledImages) -> None:
    wide = SMALL | {"r_dim": 12}
    kl = {
        name: fitted({**wide, "complements": name}, data, 120).validate(data, data)["kl"]
        for name in ("own", "in_batch")
    }
    assert kl["own"] < 0.5 * kl["in_batch"], kl


def test_own_is_one_image_s_embedding(data: LabelledImages) -> None:
    model = make({**SMALL, "complements": "own"})
    batch = model.batch(data, torch.arange(6), seeded())
    r = model.head(batch["weights"] @ model.body(batch["encoded"]))
    assert torch.allclose(r, model.invariant(batch["images"]), atol=1e-5)


def test_kl_is_zero_at_the_prior_alone() -> None:
    assert not bool(kl_per_dimension(torch.zeros(1, 2), torch.zeros(1, 2)).any())
    assert float(kl_per_dimension(torch.ones(1, 1), torch.zeros(1, 1))) == pytest.approx(0.5)


def test_leave_one_out_distances_are_those_of_means_without_x() -> None:
    embeddings, labels = torch.randn(10, 3), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    distances = leave_one_out_distances(embeddings, labels, 3)
    assert bool(distances[:, 2].isinf().all())
    for row in range(10):
        for k in range(2):
            members = [i for i in range(7) if labels[i] == k and i != row]
            expected = float(((embeddings[row] - embeddings[members].mean(0)) ** 2).sum())
            assert float(distances[row, k]) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_every_term_of_ours_is_in_the_loss(data: LabelledImages) -> None:
    model = make(OURS)
    batch = model.batch(data, torch.arange(30), seeded())
    terms = {name: float(value) for name, value in model.loss(batch, seeded(), 1.0).items()}
    expected = terms["reconstruction"] + terms["kl"] + 5 * terms["distance"] + 2 * max(0, terms["class_mean"])
    assert terms["loss"] == pytest.approx(expected + 3 * terms["swap"], rel=1e-5)
    early = {name: float(value) for name, value in model.loss(batch, seeded(), 0.0).items()}
    without_swap = early["reconstruction"] + early["kl"] + 5 * early["distance"] + 2 * max(0, early["class_mean"])
    assert early["loss"] == pytest.approx(without_swap, rel=1e-5)


def test_swap_term_teaches_the_decoder_and_q_but_not_the_judge(data: LabelledImages) -> None:
    model = make(OURS)
    labels = data.labels[:30]
    v = model.posterior(torch.zeros(30, 4), data.images[:30].float() / 255)[0]
    before = model.body[0].layers[0].norm.running_mean.clone()  # type: ignore[union-attr, operator]
    model._swap_term(torch.randn(30, 4), v, labels, torch.randn(CLASSES, 4), seeded()).backward()
    assert all(parameter.grad is None for part in (model.body, model.head) for parameter in part.parameters())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    assert all(parameter.grad is not None for parameter in model.posterior.mean.parameters())
    assert torch.equal(before, model.body[0].layers[0].norm.running_mean)  # type: ignore[union-attr, arg-type]
    assert all(module.training for module in model.modules())


def test_class_mean_term_leaves_f_alone(data: LabelledImages) -> None:
    """The style of the complements must not be worth carrying in r: f_inv's gradient is the same without the term."""
    gradients = []
    for weight in (0, 50):
        torch.manual_seed(0)
        model = make(OURS | {"class_mean_weight": weight})
        model.loss(model.batch(data, torch.arange(30), seeded()), seeded(), 1.0)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in (*model.body.parameters(), *model.head.parameters())]))
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_bfloat16_agrees_with_float32(data: LabelledImages) -> None:
    model = make(OURS)
    batch = model.batch(data, torch.arange(30), seeded())
    exact = model.loss(batch, seeded(), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.loss(batch, seeded(), 1.0)
    assert all(value.dtype == torch.float32 for value in rounded.values())
    assert float(rounded["loss"]) == pytest.approx(float(exact["loss"]), rel=0.05)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, OURS])
def test_batch_and_loss_follow_their_generators(config: dict[str, object], data: LabelledImages) -> None:
    model = make(config)
    indices = torch.arange(30)
    first, again, other = (model.batch(data, indices, seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(first[name].shape != other[name].shape or not torch.equal(first[name], other[name]) for name in first)
    losses = [float(model.eval().loss(first, seeded(seed), 0.5)["loss"].detach()) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_ours_reconstructs_the_images_as_they_are(data: LabelledImages) -> None:
    batch = make(OURS).batch(data, torch.arange(20), seeded())
    assert torch.equal(batch["images"], data.images[:20].float() / 255)
    assert batch["encoded"].shape == (25, 1, SIDE, SIDE)
    assert not torch.equal(batch["encoded"][:20], batch["images"])


def test_prepare_names_the_class_without_a_complement(data: LabelledImages) -> None:
    rows = torch.cat([torch.arange(60)[data.labels != 1], torch.tensor([1])])
    with pytest.raises(ValueError, match="'upright' has 1 images"):
        make(SMALL).prepare(data.subset(rows))


def test_prepare_needs_little_memory_beside_the_images() -> None:
    class Watching(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **kwargs or {})
            if isinstance(result, torch.Tensor):
                self.largest = max(self.largest, result.nbytes)
            return result

    images = torch.randint(256, (4000, 1, SIDE, SIDE), generator=seeded()).byte()
    model = make(SMALL | {"likelihood": "gaussian"})
    with Watching() as watching:
        model.prepare(LabelledImages(images, torch.arange(4000) % CLASSES, ("level", "upright", "aslant")))
    assert watching.largest <= images.nbytes
    pixels = images.double() / 255
    torch.testing.assert_close(model.pixel_mean, pixels.mean(0).float(), rtol=0, atol=1e-7)
    torch.testing.assert_close(model.pixel_deviation, pixels.std(0).float(), rtol=0, atol=1e-7)


# --- over a data set --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(data: LabelledImages) -> EquiVAE:
    torch.manual_seed(0)
    model = fitted(OURS, data, 150)
    model.calibrate(data, data.subset(torch.arange(60).repeat(4)))
    return model


def test_ours_learns_and_what_it_serves_is_calibrated(ours: EquiVAE, data: LabelledImages) -> None:
    model = ours
    figures = model.validate(data, data)
    assert figures["error"] <= 5
    assert figures["elbo"] == pytest.approx(-figures["reconstruction"] - figures["kl"])
    assert 0 <= figures["active_dims"] <= 5
    embedding, distances, probabilities, novelty = model.classify(data.images.float() / 255)
    torch.testing.assert_close(distances, squared_distances(embedding, model.classes.prototypes))
    torch.testing.assert_close(probabilities, torch.softmax(-distances / model.classes.temperature, 1))
    means = torch.stack([embedding[data.labels == k].mean(0) for k in range(CLASSES)])
    torch.testing.assert_close(model.classes.prototypes, means, rtol=1e-3, atol=1e-4)
    nearest, label = distances.min(1)
    own = torch.log(nearest)
    own = own - torch.stack([own[label == k].median() for k in range(CLASSES)])[label]
    torch.testing.assert_close(novelty, torch.argsort(torch.argsort(own)) / 59, atol=0.06, rtol=0)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_small_validation_set_does_not_make_every_other_picture_novel(
    ours: EquiVAE, data: LabelledImages, unlabelled: bool
) -> None:
    model, few = copy.deepcopy(ours), data.subset(torch.arange(6))
    change = AugmentConfig(rotation_degrees=15, shift=0.05)  # by hand, beyond what it was trained on
    others, unsorted = (augment(bars(seed).images.float() / 255, change, seeded(seed)) for seed in (8, 9))

    def novel(images: torch.Tensor) -> float:
        return float((model.classify(images)[3] > 0.99).float().mean())

    nearest, label = model.classify(few.images.float() / 255)[1].detach().min(1)
    model.classes.distance_knots.copy_(class_quantiles(torch.log(nearest), label, CLASSES, 101))
    by_six_alone = novel(others)
    train = replace(data, unlabelled=(255 * unsorted).round().byte().repeat(4, 1, 1, 1)) if unlabelled else data
    model.calibrate(train, few)
    assert novel(others) < 0.05 < 0.1 < by_six_alone
    assert novel(torch.rand((50, 1, SIDE, SIDE), generator=seeded(7))) > 0.6


def test_a_class_of_one_picture_repeated_leaves_novelty_a_number(data: LabelledImages) -> None:
    few = data.subset(torch.arange(4 * CLASSES))
    same = replace(few, images=torch.where(few.labels[:, None, None, None] == 0, few.images[:1], few.images))
    model = make(SMALL).eval()
    model.calibrate(same, same)
    with torch.no_grad():
        _, distances, _, novelty = model.classify(same.images.float() / 255)
    assert float(distances[0, 0]) == 0
    assert bool(((novelty >= 0) & (novelty <= 1)).all()) and float(novelty[0]) < 0.99


def test_made_up_outliers_are_pushed_beyond_the_distance_that_rejects(ours: EquiVAE, data: LabelledImages) -> None:
    """Of other pictures than those of training; without them in training 15 to 47 % were as far."""
    with torch.no_grad():
        distances = ours.classify(outliers(data.images.float() / 255, seeded(9)))[1]
    assert float((distances.amin(1) > OURS["reject_distance"]).float().mean()) > 0.75  # type: ignore[operator]


def test_half_of_the_outliers_are_the_data_s_own_where_it_has_any(data: LabelledImages) -> None:
    config = {name: value for name, value in OURS.items() if name != "augment"}
    model, indices = make(config), torch.arange(20)
    count = len(model.batch(data, indices, seeded())["encoded"]) - 20
    assert count == 5
    own = torch.full((3, 1, SIDE, SIDE), 77, dtype=torch.uint8)
    batch = model.batch(replace(data, outliers=own), indices, seeded())["encoded"]
    assert len(batch) == 20 + count
    is_own = (255 * batch).round().eq(77).flatten(1).all(1)
    assert is_own.tolist() == 23 * [False] + 2 * [True]
    changed = make(OURS).batch(replace(data, outliers=own), indices, seeded())["encoded"]
    assert not bool((255 * changed[23:]).round().eq(77).all())  # augmented as the other pictures are
    few = make(config).batch(replace(data, outliers=own), indices[:6], seeded())["encoded"]
    assert (255 * few).round().eq(77).flatten(1).all(1).tolist() == 7 * [False] + [True]  # one of either kind at least


def test_outliers_are_novel_and_novelty_grows_with_distance(ours: EquiVAE) -> None:
    noise = torch.rand((50, 1, SIDE, SIDE), generator=seeded(7))
    _, distances, _, novelty = ours.classify(noise)
    assert float((novelty > 0.99).float().mean()) > 0.9
    label = distances.argmin(1)
    for k in range(CLASSES):
        order = torch.argsort(distances[label == k].amin(1))
        assert bool((novelty[label == k][order].diff() >= 0).all())


def test_recombine_takes_v_with_the_styles_own_r(data: LabelledImages) -> None:
    model = make(SMALL).eval()
    content, style = data.images[:4].float() / 255, data.images[4:8].float() / 255
    v = model.posterior(model.invariant(style), style)[0]
    torch.testing.assert_close(model.recombine(content, style), model.decode(model.invariant(content), v))


def test_validation_leaves_the_mode_and_the_weights(data: LabelledImages) -> None:
    model = make(OURS).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = model.validate(data, data)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert first == model.validate(data, data)


def test_class_means_need_every_class(data: LabelledImages) -> None:
    with pytest.raises(ValueError, match="a class has no image"):
        make(SMALL).eval().class_means(data.subset(torch.arange(2)))


# --- distances --------------------------------------------------------------------------------------------------------


def test_temperature_is_recovered() -> None:
    generator = np.random.default_rng(0)
    distances = torch.from_numpy(generator.exponential(4, (20_000, 5)))
    likely = torch.softmax(-distances / 2.5, 1).numpy()
    labels = torch.tensor([generator.choice(5, p=row) for row in likely])
    assert fit_temperature(distances, labels) == pytest.approx(2.5, rel=0.05)


def test_share_below_is_the_distribution_function() -> None:
    values = torch.randn(500, generator=seeded()).sort().values
    knots = spaced_quantiles(values, 101)
    shares = share_below(values, knots.expand(500, -1))
    torch.testing.assert_close(shares, torch.linspace(0, 1, 500), atol=0.01, rtol=0)
    assert bool((shares.diff() >= 0).all())
    outside = share_below(torch.tensor([-1e9, 1e9]), knots.expand(2, -1))
    assert outside.tolist() == [0, 1]


def test_small_classes_share_one_spread() -> None:
    """With 20 images a class the pooled 99th percentile, moved to each class's median, keeps false alarms near 1 %."""
    generator = seeded(3)
    labels = torch.arange(200) % 10
    scale = torch.linspace(0, 3, 10)
    knots = class_quantiles(scale[labels] + torch.randn(200, generator=generator), labels, 10, 101)
    fresh = torch.arange(5000) % 10
    novelty = share_below(scale[fresh] + torch.randn(5000, generator=generator), knots[fresh])
    assert 0.002 < float((novelty > 0.99).float().mean()) < 0.03


def test_large_classes_keep_their_own_spread() -> None:
    labels = torch.arange(2000) % 2
    values = torch.randn(2000, generator=seeded()) * (1 + 9 * labels)
    knots = class_quantiles(values, labels, 2, 101)
    assert torch.equal(knots[1], spaced_quantiles(values[labels == 1], 101))


def test_quantiles_of_equal_values_stay_apart() -> None:
    knots = spaced_quantiles(torch.full((9,), 2.0), 5)
    assert bool((knots.diff() > 5e-4).all())


# --- configuration ----------------------------------------------------------------------------------------------------


def test_paper_default_has_the_size_of_app_b() -> None:
    model = EquiVAE(EquiVAEConfig(kind="equivae"), InputSpec(channels=1, height=28, width=28), 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 580_337
    images: Tensor = torch.rand(2, 1, 28, 28)
    assert model.recombine(images, images).shape == images.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": {}, "complements": "encoded"}, "in_batch"),
        ({"complements": "in_batch", "outlier_share": 0.1}, "go together"),
        ({"complements": "in_batch", "outliers_as_content": 0.5}, "outliers_as_content needs outlier_share"),
        ({"complements": "in_batch", "swap_weight": 1}, "distance_weight"),
        (
            {"complements": "in_batch", "outlier_share": 0.1, "reject_distance": 9},
            "outlier_share needs distance_weight",
        ),
        ({"encoder": {"filters": [8], "strides": [1, 2]}}, "1 filters but 2 strides"),
        ({"encoder": {"filters": [8], "strides": [1], "unpadded": 2}}, "unpadded is 2, of 1 convolutions"),
        ({"latent": 3}, "latent"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EquiVAEConfig.model_validate(SMALL | change)
