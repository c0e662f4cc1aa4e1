"""The experiments on the symmetry-transformation model, at the smallest scale: what their numbers mean."""

import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import ImageOps

from training import datasets
from training.config_file import load_config
from training.models.symmetry import Symmetry
from training.rotation import bin_angles, wrapped
from training.symmetry_experiments import ablations, conjectures, efficiency, letters
from training.symmetry_experiments.common import SIDE, fitted, keep, one_digit, turned

ROOT = Path(__file__).parents[2]
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def exported() -> efficiency.Exported:
    return efficiency.Exported(ROOT / "model_store" / "symmetry-mnist" / "1")


def test_the_eight_is_symmetric_and_the_two_is_not() -> None:
    eight, two = one_digit(8, symmetric=True), one_digit(2)
    assert torch.allclose(eight, eight.flip(2, 3), atol=1e-6)
    assert float((two - two.flip(2, 3)).abs().mean()) > 0.05


def test_what_a_gaussian_lacks_of_two_equal_modes_is_a_bit() -> None:
    """One of two modes of weight 1/2 is log 2 away from both; a density with one mode is its own nearest."""
    angles = bin_angles(96)

    def bump(centre: float) -> torch.Tensor:
        return torch.softmax(-0.5 * (wrapped(angles - centre) / 0.2) ** 2, 0)

    two = (bump(1.0) + bump(1.0 + math.pi)) / 2
    assert conjectures._nearest_gaussian(two[None], angles) == pytest.approx(math.log(2), abs=0.02)
    assert conjectures._nearest_gaussian(bump(1.0)[None], angles) < 0.02


def test_a_window_over_the_whole_circle_is_invariant_and_a_narrow_one_is_not() -> None:
    torch.manual_seed(0)
    polar = torch.rand(2, 3, 24)
    for rho, invariant in ((360.0, True), (0.0, False)):
        encoder = conjectures.WindowEncoder(3, 24, 2, rho)
        moved = (encoder(polar)[0] - encoder(polar.roll(7, 2))[0]).abs().max()
        assert (float(moved.detach()) < 0.3 * float(encoder(polar)[0].detach().abs().max())) == invariant


def test_the_views_that_share_a_prototype_are_counted() -> None:
    views = turned(one_digit(2), conjectures.SEEN)
    model = fitted(views, 2, 0, 0.3)
    assert conjectures._count(model, views)[0] == 1  # the encoder is invariant, before it has learned anything

    def plain(model: Symmetry) -> None:
        model.encoder = conjectures.WindowEncoder(12, 96, 4, 0.0)  # type: ignore[assignment]
        model.prototype = lambda z: views * 1.0  # type: ignore[method-assign]

    model = fitted(views, 0, 0, 0.3, plain)
    assert conjectures._count(model, views)[0] == 3


def test_numbers_are_kept_beside_each_other(tmp_path: Path) -> None:
    for name in ("one", "two", "one"):
        keep(tmp_path / "found.json", name, {"value": len(name)})
    assert json.loads((tmp_path / "found.json").read_text()) == {"one": {"value": 3}, "two": {"value": 3}}


def test_augmentations_leave_pictures_turn_them_and_draw_them(exported: efficiency.Exported) -> None:
    pictures = turned(one_digit(3), torch.tensor([0.0, 20.0, -40.0]))
    matrices = exported.draw(pictures, 0)
    assert matrices.shape == (3, exported.samples, 2, 3)
    changes = efficiency.augmentations(exported.degrees, matrices)
    rows = torch.arange(3)
    for name, change in changes.items():
        seen = change(pictures, rows, torch.Generator().manual_seed(0))
        assert seen.shape == (3, 1, SIDE, SIDE) and 0 <= float(seen.min()) <= float(seen.max()) <= 1
        assert torch.equal(seen, pictures) == (name == "none")


def test_an_exported_model_rebuilds_the_pictures_as_they_lie(exported: efficiency.Exported) -> None:
    pictures = turned(one_digit(3), torch.tensor([0.0, 20.0, -40.0]))
    rebuilt = exported.rebuild(pictures)
    errors = (rebuilt[:, None] - pictures).pow(2).mean((2, 3, 4))
    assert torch.equal(errors.argmin(1), torch.arange(3))  # each nearest to its own picture, not to another turn of it
    assert float(errors.diagonal().max()) < 0.5 * float(pictures.pow(2).mean())


def test_a_classifier_and_a_vae_learn_from_few_pictures() -> None:
    pictures = torch.cat([turned(one_digit(digit), torch.linspace(-20, 20, 8)) for digit in (1, 3)])
    labels = torch.arange(2).repeat_interleave(8)
    none = efficiency.augmentations(20.0, torch.zeros(16, 1, 2, 3))["none"]
    assert efficiency.classifier_error(pictures, labels, none, (pictures, labels), 15, 0) < 20
    blank = float(pictures.pow(2).mean())
    assert efficiency.vae_error(pictures, none, pictures, 40, 0) < 0.6 * blank


def test_every_ablation_is_kept_with_a_figure_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ablations.json"
    monkeypatch.setattr("sys.argv", ["ablations", "--steps", "2", "--seeds", "0", "--json", str(path)])
    ablations.main()
    kept = json.loads(path.read_text())
    assert set(kept) == set(json.loads((ROOT / "results" / "symmetry-ablations.json").read_text()))
    assert all(len(figures["canonical_mse"]) == 1 for figures in kept.values())
    # After two steps most variants differ already: what is changed reaches the model.
    assert len({figures["canonical_mse"][0] for figures in kept.values()}) > len(kept) / 2


def test_the_figure_of_an_ablation_falls_with_training_and_repeats() -> None:
    short, long, again = (ablations.trained(steps, seed=0)["canonical_mse"] for steps in (1, 10, 10))
    assert again == long < short


def test_a_letter_without_a_way_up_has_none_however_it_is_stretched() -> None:
    def gap(letter: str, seed: int) -> float:
        picture = letters.draw(letter, FONTS / "DejaVuSans.ttf", np.random.default_rng(seed))
        upside_down = ImageOps.flip(ImageOps.mirror(picture))
        return float(np.abs(np.asarray(picture, float) - np.asarray(upside_down, float)).mean()) / 255

    for seed in range(5):
        without, others = (max(gap(letter, seed) for letter in "INOZ"), min(gap(letter, seed) for letter in "AFLW"))
        assert without < 0.02 and others > 2 * without


def test_letters_are_a_folder_that_its_configuration_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fonts, pictures = tmp_path / "fonts", tmp_path / "letters"
    fonts.mkdir()
    for name in ("DejaVuSans.ttf", "DejaVuSerif.ttf"):
        (fonts / name).symlink_to(FONTS / name)
    monkeypatch.setattr("sys.argv", ["letters", str(pictures), "--fonts", str(fonts), "--each", "2"])
    letters.main()
    config = load_config(ROOT / "training" / "configs" / "symmetry-letters.yaml", [f"data.path={pictures}"])
    splits = datasets.load(config.data)
    assert splits.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ") and not splits.skipped and not splits.doubts
    assert len(splits.train) + len(splits.validation) == 26 * 2 * 2


def test_without_its_fonts_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["letters", str(tmp_path / "letters"), "--fonts", str(tmp_path)])
    with pytest.raises(SystemExit):
        letters.main()
    assert "apt-get install fonts-dejavu" in capsys.readouterr().err
