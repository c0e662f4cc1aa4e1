"""The model of upright pictures: what it sees, that it learns, what it serves, its graphs."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from contract.manifest import InputSpec
from contract.preprocess import prepare
from training.config_file import load_config
from training.datasets import LabelledImages
from training.datasets import digits as small_digits
from training.datasets.rotnet import as_rotnet_draws
from training.datasets.text import PREPROCESSING
from training.datasets.text_crops import Look, draw_mask, load_font, take_picture
from training.errors import ConfigError
from training.graphs import export_graphs
from training.lie import exponential
from training.models.lifted_config import LiftedConfig
from training.models.registry import graphs
from training.models.upright import Upright
from training.models.upright_config import ConvolutionalConfig, PolarConfig, UprightConfig
from training.rotation import wrapped

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
SPEC = InputSpec(channels=1, height=32, width=32)
LIFTED = UprightConfig(
    kind="upright",
    extractor=LiftedConfig(kind="lifted", bins=64, filters=(8, 16, 32), strides=(2, 2, 2)),
    target_degrees=6,
    outlier_share=0.1,
    modes=2,  # the exporter takes seconds for each
)
POLAR = UprightConfig(
    kind="upright", extractor=PolarConfig(kind="polar", radii=8, angles=64, width=8, dilations=(1, 2)), target_degrees=6
)

CONVOLUTIONAL = UprightConfig(
    kind="upright",
    extractor=ConvolutionalConfig(kind="convolutional", bins=32, filters=(8, 16), strides=(1, 2)),
    target_degrees=6,
)


def words(count: int, seed: int) -> LabelledImages:
    """The word "Fly" in black on white, turned by any angle and framed."""
    rng = np.random.default_rng(seed)
    look = Look(32, 1, 0.2, "left", (0, 0, 0), (255, 255, 255), 0.0, (1.0, 0.0), 0.0, 0.0, 0, 20)
    mask = draw_mask("Fly", "latin", load_font(None, look.size), look)
    angles = rng.uniform(-180, 180, count)
    pictures = [prepare(take_picture(mask, look, a, rng), SPEC, PREPROCESSING, fit="content").image for a in angles]
    images = torch.from_numpy(np.rint(np.stack(pictures) * 255).astype(np.uint8))
    turns = torch.from_numpy(np.radians(angles).astype(np.float32))
    return LabelledImages(images, torch.zeros(count, dtype=torch.int64), ("word",), turns)


def model_of(config: UprightConfig) -> Upright:
    torch.manual_seed(0)
    return Upright(config, SPEC, 1)


@pytest.fixture(scope="module")
def trained() -> Upright:
    model, data = model_of(LIFTED), words(64, 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(120):
        rows = torch.randint(len(data), (24,), generator=source)
        terms = model.loss(model.batch(data, rows, source))
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
    model.calibrate(data, words(64, 1))
    return model


def test_it_learns_which_way_is_up(trained: Upright) -> None:
    figures = trained.validate(words(2, 3), words(64, 2))
    assert set(figures) == set(UprightConfig.metrics)
    assert figures["rotation_flips"] == 0 and figures["rotation_median"] < 4


def test_its_uncertainty_is_small_on_words_and_large_where_nothing_is_up(trained: Upright) -> None:
    data = words(32, 4)
    on_words = torch.rad2deg(trained.pose(data.images.float() / 255).coefficients_std[:, 0])
    rows = torch.linspace(-1, 1, 32)
    ring = ((torch.hypot(rows[:, None], rows) - 0.6).abs() < 0.1).float()[None, None]
    noise = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for nothing in (torch.zeros(1, 1, 32, 32), ring, noise):
        std = torch.rad2deg(trained.pose(nothing).coefficients_std[:, 0])
        assert std.median() > 60 > 4 * on_words.median(), nothing.shape


def test_most_errors_lie_within_two_standard_deviations(trained: Upright) -> None:
    data = words(64, 5)
    assert data.turns is not None
    pose = trained.pose(data.images.float() / 255)
    inside = wrapped(pose.coefficients[:, 0] - data.turns).abs() < 2 * pose.coefficients_std[:, 0]
    assert inside.float().mean() > 0.8


def test_the_pose_is_a_rotation_with_its_modes_best_first(trained: Upright) -> None:
    with torch.no_grad():
        pose = trained.pose(words(5, 6).images.float() / 255)
    assert torch.allclose(pose.matrix, exponential("SO2", pose.coefficients), atol=1e-6)
    assert torch.equal(pose.modes[:, 0], pose.matrix) and pose.modes.shape == (5, 2, 2, 3)
    assert torch.allclose(pose.weights.sum(1), torch.ones(5))
    assert (pose.weights.diff(dim=1) <= 1e-6).all()


def test_rectified_pictures_are_upright(trained: Upright) -> None:
    data = words(16, 7)
    with torch.no_grad():
        canonical = trained.canonicalize(data.images.float() / 255)
        again = trained.pose(canonical.rectified)
    assert torch.equal(canonical.canonical, canonical.rectified)
    assert torch.rad2deg(again.coefficients).abs().median() < 4


def test_a_batch_of_known_turns_by_quarters_is_exact() -> None:
    model, data = model_of(LIFTED.model_copy(update={"quarters": 1.0, "outlier_share": 0.0})), words(8, 0)
    assert data.turns is not None
    batch = model.batch(data, torch.arange(8), torch.Generator().manual_seed(1))
    for view, image, turn, before in zip(batch["views"], data.images, batch["turns"], data.turns, strict=True):
        quarters = round(float(turn - before) / (math.pi / 2))
        assert torch.equal(view, torch.rot90(image.float() / 255, quarters, (1, 2)))
        assert float(turn) == pytest.approx(float(before) + quarters * math.pi / 2, abs=1e-5)


def test_a_batch_follows_from_its_generator_and_outliers_come_last() -> None:
    model, data = model_of(LIFTED), words(20, 0)
    one, other = (model.batch(data, torch.arange(20), torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [len(one[name]) for name in ("views", "turns", "outliers", "draws")] == [20, 20, 2, 22]


def test_pictures_of_unknown_turn_count_as_upright(trained: Upright) -> None:
    data = words(12, 0)
    assert data.turns is not None
    with torch.no_grad():
        upright = trained.canonicalize(data.images.float() / 255).rectified
    plain = LabelledImages((upright * 255).to(torch.uint8), data.labels, data.class_names)
    batch = trained.batch(plain, torch.arange(12), torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = trained.pose(batch["views"]).coefficients[:, 0]
    assert torch.rad2deg(wrapped(found - batch["turns"])).abs().median() < 6
    assert trained.validate(plain, plain)["rotation_median"] < 6


def test_a_share_of_the_pictures_is_drawn_by_rotnets_generator() -> None:
    """Turned by whole degrees that the model is told, and smaller where that is far from a quarter of a circle."""
    data = small_digits.load(0).train
    config = CONVOLUTIONAL.model_copy(update={"rotnet_share": 0.5})
    model = Upright(config, InputSpec(channels=1, height=8, width=8), 10)
    batch = model.batch(data, torch.arange(200), torch.Generator().manual_seed(0))
    views, degrees = batch["views"], torch.rad2deg(batch["turns"])
    drawn = ((views == 0) | (views == 1)).flatten(1).all(1)
    assert 0.4 < float(drawn.float().mean()) < 0.6
    assert float((degrees - degrees.round())[drawn].abs().max()) < 1e-3
    assert torch.equal(views[drawn], as_rotnet_draws(data.images[:200][drawn], degrees.round()[drawn]))
    with pytest.raises(ValueError, match="rotnet_share is for grey pictures"):
        Upright(config, InputSpec(channels=3, height=8, width=8), 10)
    with pytest.raises(ValueError, match="rotnet_share needs upright pictures"):
        model_of(config).prepare(words(2, 0))


@pytest.mark.parametrize("config", [LIFTED, POLAR, CONVOLUTIONAL], ids=["lifted", "polar", "convolutional"])
def test_the_loss_starts_near_the_uniform_posterior_and_has_finite_gradients(config: UprightConfig) -> None:
    model, data = model_of(config).train(), words(12, 0)
    terms = model.loss(model.batch(data, torch.arange(12), torch.Generator().manual_seed(0)))
    assert float(terms["pose"].detach()) == pytest.approx(math.log(64 if config is LIFTED else 32), abs=1.0)
    terms["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("one_round")
def test_its_graphs_give_what_torch_gives(trained: Upright) -> None:
    capabilities = graphs("upright", trained)
    assert set(capabilities) == {"transform", "canonicalize"}
    exported = export_graphs(capabilities, SPEC)
    whole, part = (
        onnx.load_from_string(exported.contents[f"{name}.onnx"]).graph for name in ("canonicalize", "transform")
    )
    assert tuple(value.name for value in part.output) == capabilities["transform"].outputs
    assert {node.name for node in part.node} < {node.name for node in whole.node}  # cut out of it, not exported again
    session = onnxruntime.InferenceSession(exported.contents["canonicalize.onnx"], providers=["CPUExecutionProvider"])
    images = words(9, 8).images.float() / 255
    with torch.no_grad():
        wanted = trained.canonicalize(images)
    matrix, rectified = session.run(["matrix", "rectified"], {"image": images.numpy()})
    assert np.allclose(matrix, wanted.pose.matrix, atol=1e-4)
    assert np.allclose(rectified, wanted.rectified, atol=1e-4)


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("one_round")
def test_a_convolutional_net_exports_at_any_batch() -> None:
    model = model_of(CONVOLUTIONAL)
    torch.nn.init.normal_(model.extractor.head.weight)  # of weights of 0 all angles are equal, and rounding chooses
    exported = export_graphs({"transform": graphs("upright", model)["transform"]}, SPEC)
    assert exported.graphs["transform"].inputs[0].shape == ("N", 1, 32, 32) and max(exported.parity.values()) < 1e-4


def test_the_shipped_configuration_is_small_enough() -> None:
    config = load_config(CONFIGS / "upright-text.yaml")
    assert isinstance(config.model, UprightConfig)
    model = Upright(config.model, InputSpec(channels=1, height=96, width=96), 8)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"extractor": {"kind": "lifted", "kernel": 4}}, "even"),
        ({"extractor": {"kind": "lifted", "filters": [4], "strides": [2, 2]}}, "strides"),
        ({"extractor": {"kind": "polar", "kernel": 4}}, "even"),
        ({"extractor": {"kind": "convolutional", "kernel": 4}}, "even"),
        ({"extractor": {"kind": "square"}}, "extractor"),
        ({}, "extractor"),
        ({"extractor": {"kind": "lifted"}, "quarters": 2}, "quarters"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(
    section: dict[str, Any], message: str, small: dict[str, Any], write: Callable[..., Path]
) -> None:
    values = copy.deepcopy(small)
    values["model"] = {"kind": "upright", **section}
    values["fit"]["select"] = "rotation_flips"
    with pytest.raises(ConfigError, match=message):
        load_config(write(values))
