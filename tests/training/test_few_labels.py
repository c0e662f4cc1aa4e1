"""Few labels: the data that keeps only some, Eq. 6 against loops, and a model that learns from both kinds of images."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from contract.manifest import InputSpec
from training import datasets
from training.augment_config import AugmentConfig
from training.config import Config, DigitsData, FolderData
from training.datasets import LabelledImages
from training.errors import DataError
from training.latent import kl_per_dimension
from training.models.equivae_config import EquiVAEConfig, FewLabelsConfig
from training.models.equivae_few import SHARES_STEPS, FewLabelEquiVAE

INPUT = InputSpec(channels=1, height=8, width=8)
BODY = {"filters": [4, 8], "strides": [1, 2], "kernel": 3, "hidden": 16}
SMALL = {
    "kind": "equivae",
    "r_dim": 4,
    "v_dim": 3,
    "encoder": BODY,
    "posterior": {"kind": "dense", "widths": [16]},
    "decoder": {"kind": "dense", "widths": [24]},
    "few_labels": {"encoder": BODY, "widths": [16], "unlabelled_batch": 12},
}
STRONG = {"rotation_degrees": 20, "shift": 0.1}
OURS = SMALL | {
    "complements": "in_batch",
    "augment": {"rotation_degrees": 5},
    "distance_weight": 5,
    "few_labels": {**SMALL["few_labels"], "consistency_weight": 1.0, "strong": STRONG, "threshold": 0.5},  # type: ignore[dict-item]
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def data() -> LabelledImages:
    return datasets.load(DigitsData(source="digits", labels=40, label_seed=3)).train


def model_of(values: dict[str, object]) -> FewLabelEquiVAE:
    return FewLabelEquiVAE(EquiVAEConfig.model_validate(values), INPUT, 10)


def fitted(model: FewLabelEquiVAE, data: LabelledImages, steps: int) -> list[float]:
    """Train on two labelled images a class; -L_unlab at every step comes back."""
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    order = torch.stack([members[:2] for members in data.by_class], 1).flatten()
    history = []
    for step in range(steps):
        terms = model.loss(model.batch(data, order, seeded(step)), seeded(step + 1000), step / steps)
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        history.append(float(terms["unlabelled"].detach()))
        assert math.isfinite(history[-1])
    return history


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_labels_are_kept_in_equal_numbers_and_no_image_is_lost() -> None:
    whole = datasets.load(DigitsData(source="digits"))
    few = datasets.load(DigitsData(source="digits", labels=40))
    assert torch.bincount(few.train.labels).tolist() == [4] * 10
    assert few.train.unlabelled is not None
    assert len(few.train.unlabelled) + 40 == len(whole.train)
    assert few.summary()["counts"]["unlabelled"] == len(few.train.unlabelled)
    pixels = torch.cat([few.train.images, few.train.unlabelled]).flatten(1)
    assert torch.equal(pixels.unique(dim=0), whole.train.images.flatten(1).unique(dim=0))
    assert few.digest != whole.digest
    assert few.validation.digest() == whole.validation.digest()


def test_which_labels_are_kept_follows_the_seed() -> None:
    one, again, other = (
        datasets.load(DigitsData(source="digits", labels=40, label_seed=seed)).digest for seed in (1, 1, 2)
    )
    assert one == again != other


@pytest.mark.parametrize("count", [45, 10, 100_000])
def test_counts_that_are_not_balanced_or_not_there_are_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"digits: {count} labels are not equally many"):
        datasets.load(DigitsData(source="digits", labels=count))


def test_classes_are_excluded_before_labels_are_hidden_never_after(data: LabelledImages) -> None:
    splits = datasets.load(DigitsData(source="digits", exclude=("3",), labels=36))
    assert splits.train.class_names == ("0", "1", "2", "4", "5", "6", "7", "8", "9")
    with pytest.raises(DataError, match="cannot be excluded"):
        splits.without(("4",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for name, level in (("dark", 60), ("light", 200)):
        (root / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.full((8, 8), level, np.uint8)
            pixels[number, 2:6] = 255
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_a_folder_named_unlabelled_is_no_class(folder: Path) -> None:
    config = FolderData(source="folder", path=folder, size=8)
    assert datasets.load(config).train.unlabelled is None
    (folder / "unlabelled" / "deeper").mkdir(parents=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "unlabelled" / "deeper" / "a.png")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "unlabelled" / "c.png")
    (folder / "unlabelled" / "b.png").write_text("no picture")
    splits = datasets.load(config)
    assert splits.class_names == ("dark", "light")
    assert splits.train.unlabelled is not None
    assert splits.train.unlabelled.flatten().tolist() == 2 * list(range(64))
    assert [line for line in splits.skipped if line.startswith("unlabelled/b.png: ")]


@torch.no_grad()
def test_eq_6_is_the_sum_over_every_class_written_out(data: LabelledImages) -> None:
    model = model_of(SMALL).eval()
    model.prepare(data)
    batch = model.batch(data, torch.arange(20), seeded())
    r = model._class_representations(batch, model._hidden(batch))
    images = batch["unlabelled"]
    got = model._unlabelled_term(images, model.logits(images), r, seeded(5))
    noise = torch.randn((len(images) * 10, 3), generator=seeded(5)).view(len(images), 10, 3)
    total = 0.0
    for n, image in enumerate(images):
        q = torch.softmax(model.logits(image[None])[0], 0)
        for y in range(10):
            mean, log_variance = model.posterior(r[y : y + 1], image[None])
            v = mean + torch.exp(0.5 * log_variance) * noise[n, y]
            elbo = -model.reconstruction(image[None], r[y : y + 1], v)[0] - kl_per_dimension(mean, log_variance).sum()
            total -= float(q[y] * (elbo - torch.log(q[y] / (1 / 10))))
    assert float(got) == pytest.approx(total / len(images), rel=1e-4)


def test_representations_of_the_classes_are_of_labelled_images_alone(data: LabelledImages) -> None:
    model = model_of(SMALL).eval()
    batch = model.batch(data, torch.arange(20), seeded())
    known = data.images.float().div(255).flatten(1)
    for k, images in enumerate(batch["of_classes"]):
        for image in images:
            rows = torch.nonzero((known == image.flatten()).all(1)).flatten()
            assert k in data.labels[rows].tolist()


def test_labels_weigh_one_and_f_gets_no_gradient_from_the_classifier(data: LabelledImages) -> None:
    model = model_of(SMALL)
    model.prepare(data)
    batch = model.batch(data, torch.arange(20), seeded())
    terms = model.loss(batch, seeded(1))
    parts = terms["reconstruction"] + terms["kl"] + terms["classifier"] + terms["unlabelled"]
    assert float(terms["loss"].detach()) == pytest.approx(float(parts.detach()), rel=1e-5)
    model.zero_grad()
    F.cross_entropy(model.logits(batch["images"]), batch["labels"]).backward()
    assert all(value.grad is None for value in (*model.body.parameters(), *model.head.parameters()))
    assert all(value.grad is not None for value in model.classifier.parameters())


def test_at_first_q_of_y_learns_of_labels_alone(data: LabelledImages) -> None:
    model = model_of({**SMALL, "few_labels": {**SMALL["few_labels"], "labels_first": 0.5, "dropout": 0.0}})  # type: ignore[dict-item]
    model.prepare(data)
    batch = model.batch(data, torch.arange(20), seeded())

    def gradients(term: str, progress: float) -> list[torch.Tensor]:
        model.zero_grad()
        model.loss(batch, seeded(1), progress)[term].backward()
        return [torch.zeros(0) if value.grad is None else value.grad for value in model.parameters()]

    def norm(found: list[torch.Tensor]) -> float:
        return sum(float(value.square().sum()) for value in found)

    classifier = {id(value) for value in model.classifier.parameters()}
    of_classifier = [id(value) in classifier for value in model.parameters()]
    for progress, silent in ((0.49, True), (0.5, False)):
        found = gradients("unlabelled", progress)
        of_q = norm([value for value, its in zip(found, of_classifier, strict=True) if its])
        assert (of_q == 0) is silent
        assert norm(found) > of_q  # the decoder learns of unlabelled images from the first step
    assert norm(gradients("classifier", 0.0)) > 0


def test_unsure_images_take_no_part_in_consistency(data: LabelledImages) -> None:
    never = {**OURS, "few_labels": {**OURS["few_labels"], "threshold": 1.0}}  # type: ignore[dict-item]
    model = model_of(never)
    model.prepare(data)
    terms = model.loss(model.batch(data, torch.arange(40), seeded()), seeded(1))
    assert float(terms["sure"].detach()) == float(terms["consistency"].detach()) == 0.0


CHEAP = OURS | {"few_labels": {**OURS["few_labels"], "encoder": None, "dropout": 0.1, "decoded": 4}}  # type: ignore[dict-item]


def test_decoded_takes_eq_6_over_some_images_of_the_batch(data: LabelledImages) -> None:
    model = model_of(CHEAP)
    model.prepare(data)
    batch = model.batch(data, torch.arange(40), seeded())
    decoded: list[int] = []
    model.decoder.register_forward_hook(lambda _module, _inputs, output: decoded.append(len(output)))
    model.loss(batch, seeded(1))
    assert decoded == [40, 4 * 10]
    assert len(batch["weak"]) == len(batch["strong"]) == 12


def test_a_wrong_class_of_a_sure_image_is_what_consistency_punishes(data: LabelledImages) -> None:
    model = model_of({**CHEAP, "few_labels": {**CHEAP["few_labels"], "threshold": 0.0}})  # type: ignore[dict-item]
    model.prepare(data)
    fitted(model, data, 60)
    batch = model.batch(data, torch.arange(40), seeded())
    as_weak = model.loss(batch | {"strong": batch["weak"]}, seeded(1))
    other = model.loss(batch | {"strong": batch["weak"].flip(0)}, seeded(1))
    assert float(as_weak["sure"]) == float(other["sure"]) == 1.0
    assert float(as_weak["consistency"].detach()) < float(other["consistency"].detach())


def test_sure_unlabelled_images_are_to_lie_nearer_than_outliers(data: LabelledImages) -> None:
    """Else novelty has to allow for unlabelled pictures that are of a class and yet far from all of them."""
    with_outliers = {**CHEAP, "reject_distance": 4.0, "outlier_share": 0.2}
    model = model_of({**with_outliers, "few_labels": {**CHEAP["few_labels"], "threshold": 0.0}})  # type: ignore[dict-item]
    model.prepare(data)
    batch, consistency = model.batch(data, torch.arange(40), seeded()), []
    for distance in (1e-3, 4.0, 1e3):
        model.config = model.config.model_copy(update={"reject_distance": distance})
        consistency.append(float(model.loss(batch, seeded(1))["consistency"].detach()))
    assert consistency == sorted(consistency, reverse=True) and consistency[0] > consistency[2]


@torch.no_grad()
def test_aligned_guesses_have_the_class_shares_of_the_prior() -> None:
    model = model_of({**CHEAP, "few_labels": {**CHEAP["few_labels"], "align": True}})  # type: ignore[dict-item]
    skewed = torch.softmax(torch.randn((200, 10), generator=seeded()) + torch.linspace(-1, 1, 10), 1)
    even = 1 / 10
    before = (skewed.mean(0) - even).abs().max()
    for _ in range(5 * SHARES_STEPS):
        aligned = model._aligned(skewed)
    torch.testing.assert_close(model.shares, skewed.mean(0), atol=2e-3, rtol=0)
    torch.testing.assert_close(aligned.sum(1), torch.ones(200))
    assert float((aligned.mean(0) - even).abs().max()) < float(before) / 3


def test_a_recipe_that_says_nothing_of_unlabelled_images_learns_by_consistency(
    make_config: Callable[..., Config], data: LabelledImages
) -> None:
    """f_inv, by which the model answers, learns of them; q(y|x) never of Eq. 6."""
    config = make_config("model.augment.shear_degrees=40", "model.distance_weight=5", "model.likelihood=gaussian")
    assert config.for_data(unlabelled=False) == config
    few = config.for_data(unlabelled=True)
    assert few.recipe == "test, consistency on unlabelled pictures"
    assert isinstance(few.model, EquiVAEConfig) and few.model.few_labels is not None
    assert few.model.few_labels.strong == AugmentConfig(rotation_degrees=20, shear_degrees=45, shift=0.2, erase=0.5)
    model = FewLabelEquiVAE(few.model, INPUT, 10)
    model.few = model.few.model_copy(update={"threshold": 0.0})  # untrained, it is sure of nothing
    model.prepare(data)
    for term, reached in (("unlabelled", model.decoder), ("consistency", model.body)):
        terms = model.loss(model.batch(data, torch.arange(40), seeded()), seeded(1), progress=1 - 1e-6)
        model.zero_grad()
        terms[term].backward()  # type: ignore[no-untyped-call]
        assert any(value.grad is not None and value.grad.any() for value in reached.parameters())
        if term == "unlabelled":
            assert all(value.grad is None for value in model.classifier.parameters())


@pytest.mark.parametrize("lacking", ["model.augment=null", "model.distance_weight=0"])
def test_a_recipe_without_what_consistency_needs_is_the_papers(
    make_config: Callable[..., Config], lacking: str
) -> None:
    few = make_config(lacking).for_data(unlabelled=True)
    assert isinstance(few.model, EquiVAEConfig) and few.model.few_labels == FewLabelsConfig()
    assert few.recipe == "test, unlabelled pictures by Eqs. 6 and 7"


def test_stronger_is_never_weaker() -> None:
    most = AugmentConfig(
        rotation_degrees=180, shear_degrees=59, scale=0.9, shift=0.5, contrast=0.9, erase=1, elastic=1, unchanged=0.3
    )
    assert most.stronger() == most.model_copy(update={"elastic": 2.0, "unchanged": 0.0})
    assert AugmentConfig(scale=0.3, colours=0.2).stronger() == AugmentConfig(scale=0.5, colours=0.2, erase=0.5)


@pytest.mark.parametrize("values", [SMALL, OURS, CHEAP])
def test_it_learns_from_both_kinds_of_images(values: dict[str, object], data: LabelledImages) -> None:
    model = model_of(values)
    model.prepare(data)
    history = fitted(model, data, 60)
    assert np.mean(history[-10:]) < 0.8 * np.mean(history[:5])
    figures = model.validate(data, data)
    assert figures["classifier_error"] < 75


def test_pixels_are_standardised_by_the_unlabelled_images(data: LabelledImages) -> None:
    model = model_of(SMALL | {"likelihood": "gaussian"})
    model.prepare(data)
    assert data.unlabelled is not None
    pixels = data.unlabelled.float() / 255
    torch.testing.assert_close(model.pixel_mean, pixels.mean(0))
    torch.testing.assert_close(model.pixel_deviation, pixels.std(0).clamp_min(1e-2))


def test_batches_follow_their_generator(data: LabelledImages) -> None:
    model = model_of(OURS)
    one, again, other = (model.batch(data, torch.arange(40), seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["unlabelled"], other["unlabelled"])


@pytest.mark.parametrize("count", [None, 0, 1])
def test_without_two_unlabelled_images_it_says_what_to_set(data: LabelledImages, count: int | None) -> None:
    assert data.unlabelled is not None
    data = replace(data, unlabelled=None if count is None else data.unlabelled[:count])
    with pytest.raises(ValueError, match=f"not {count or 0}: set data.labels, or put them into a folder unlabelled"):
        model_of(SMALL).prepare(data)


@pytest.mark.parametrize(
    ("few", "message"),
    [
        ({"consistency_weight": 1.0}, "needs strong"),
        ({"dropout": 1.0}, "less than 1"),
        ({"unlabelled_batch": 0}, "greater than or equal to 1"),
    ],
)
def test_contradictions_are_refused(few: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EquiVAEConfig.model_validate(OURS | {"few_labels": few})
