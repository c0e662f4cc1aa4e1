"""Configurations: every mistake is one error that names the file and the line; nothing is guessed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.config import Config, restore_config
from training.config_file import load_config
from training.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, RESULTS = ROOT / "training" / "configs", ROOT / "results"

GOOD = """\
name: small
recipe: test
data:
  source: digits
model:
  kind: equivae
fit:
  epochs: 2
  optimiser:
    learning_rate: 1e-3
  schedule:
    kind: cosine
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, overrides)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_committed_configurations_load_under_their_own_name(path: Path) -> None:
    own_data = {"equivae-folder": "my-model", "mcevae-folder": "my-upright-model"}  # the user's own name goes there
    assert load_config(path).name == own_data.get(path.stem, path.stem)


def test_paper_configurations_keep_the_paper_s_protocol() -> None:
    for name, epochs, m_max in (("equivae-mnist-paper", 40, 7), ("equivae-svhn-paper", 90, 10)):
        config = load_config(CONFIGS / f"{name}.yaml")
        assert (config.recipe, config.fit.epochs, config.fit.batch, config.fit.ema) == ("paper", epochs, 32, None)
        assert config.model.max_complements == m_max
        assert config.model.augment is None and config.model.distance_weight == 0
        assert (config.fit.optimiser.kind, config.fit.optimiser.learning_rate) == ("adam", 1e-3)


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "+1e-3", "1.e-3", "1.0e-03", ".1e-2", "0.1e-2", "1e-003"])
def test_numbers_in_exponent_notation_are_numbers(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, GOOD.replace("1e-3", written)).fit.optimiser.learning_rate == 0.001


@pytest.mark.parametrize("written", ["1.5e3", "1.5e+3", "15e2", "1500.", "0.15e4", ".15E4"])
def test_a_positive_exponent_needs_no_sign(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, GOOD, f"fit.clip={written}").fit.clip == 1500
    assert load(tmp_path, GOOD, f"recipe='{written}'").recipe == written


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("source: digits", "source: digit", 4, ["data.source:", '"digit"', "'mnist'"]),
        ("source: digits", "split_seed: 1", 3, ["data.source: is missing"]),
        ("  epochs: 2", "  epochs: 2\n  epoch: 3", 9, ["fit.epoch", "unknown key"]),
        ("  epochs: 2", "  epochs: '2'", 8, ["fit.epochs", "valid integer", '"2"']),
        ("  epochs: 2", "  epochs: 0", 8, ["fit.epochs", "greater than or equal to 1", "0"]),
        ("  epochs: 2", "  epochs: 2\n  steps: 3", 7, ["fit", "either epochs or steps"]),
        ("  epochs: 2", "  epochs: 2\n  ema: .nan", 9, ["fit.ema", "finite"]),
        ("  kind: equivae", "  kind: equivae\n  swap_weight: .inf", 7, ["model.swap_weight", "finite"]),
        ("  kind: equivae", "  kind: equivae\n  augment: {elastic: .inf}", 7, ["model.augment.elastic", "finite"]),
        ("  epochs: 2", "  epochs: 2\n  channels_last: 1", 9, ["fit.channels_last", "boolean"]),
        ("  epochs: 2", "  epochs: 2\n  select: accuracy", 9, ["fit.select", "'elbo'", '"accuracy"']),
        ("1e-3", "-1e-3", 10, ["fit.optimiser.learning_rate", "greater than 0"]),
        ("1e-3", "1e-3\n    betas: [0.9, 1.0]", 11, ["fit.optimiser.betas.1", "less than 1"]),
        ("  kind: equivae", "  kind: equivae\n  posterior: {kind: dense, widths: []}", 7, ["widths", "at least 1"]),
        ("  kind: equivae", "  kind: equivae\n  encoder: {kernel: 4}", 7, ["kernel 4 is even"]),
        ("  kind: equivae", "  kind: equivae\n  encoder: {strides: [0, 1, 1, 1, 1]}", 7, ["encoder.strides.0", "1"]),
        (
            "  kind: equivae",
            "  kind: equivae\n  decoder: {kind: transposed, filters: [-4]}",
            7,
            ["decoder.filters.0", "1"],
        ),
        ("  kind: equivae", "  kind: mcevae\n  pose: 5", 7, ["model.pose:", "an object, not 5"]),
        ("  kind: equivae", "  kind: mcevae\n  pose:", 7, ["model.pose:", "an object, not null"]),
        ("  kind: equivae", "  kind: mcevae\n  pose: [1]", 7, ["model.pose:", "an object"]),
        ("  kind: equivae", "  kind: mcevae\n  pose: {kind: poler}", 7, ["model.pose.kind:", "'lifted'", '"poler"']),
        ("  kind: equivae", "  kind: mcevae\n  pose: {angles: 16}", 7, ["pose: a kernel", "once around the 8 places"]),
        ("  kind: equivae", "  kind: symmetry\n  encoder: {angles: 16}", 7, ["dilation 8", "once around the 8 places"]),
        ("  kind: equivae", f"  kind: mcevae_paper\n  pose_seed: {2**32}", 7, ["pose_seed", "less than"]),
        ("  kind: equivae", f"  kind: mcevae\n  turn_seed: {2**63}", 7, ["turn_seed", "less than"]),
        ("  kind: equivae", "  kind: symmetry_two_stage\n  group: SO2\n  shift: .3", 5, ["SO2 has no shift: use SE2"]),
        ("  kind: equivae", "  kind: symmetry_two_stage\n  scale: .5", 5, ["SE2 has no scale: use AFF5"]),
        ("    kind: cosine", "    kind: cosin", 12, ["fit.schedule.kind:", "cosin", "'cosine'"]),
        ("    kind: cosine", "    kind: cosine\n    warm: 1", 13, ["fit.schedule.warm", "unknown key"]),
        ("  source: digits", "  source: digits\n  path: x", 5, ["data.path", "unknown key"]),
        ("  source: digits", "  source: folder", 3, ["data.path", "missing"]),
        ("  kind: equivae", "  kind: equivae\n  r_dimension: 3", 7, ["model.r_dimension", "unknown key"]),
        ("  kind: equivae", "  kind: equivae\n  encoder: {filters: [8, x]}", 7, ["model.encoder.filters.1", '"x"']),
        ("  kind: equivae", "  kind: mcevae\n  decoder: {filters: [1, 2]}", 7, ["decoder.filters.2: is missing"]),
        ("  kind: equivae", "  kind: vae", 6, ["model.kind:", "'equivae'", "'mcevae'"]),
        ("name: small", "name: Sm all", 1, ["name", "pattern"]),
        ("name: small", "nam: small", 1, ["name", "missing"]),
        ("fit:", "fits:", 7, ["fits", "unknown key"]),
        ("recipe: test", "recipe: test\nrecipe: again", 3, ["recipe", "twice"]),
        ("recipe: test", "recipe: [", 4, []),
        ("recipe: test", "recipe: {{ template }}", 2, ["unhashable key"]),
        ("recipe: test", "? [a, b]\n: 1", 2, ["unhashable key"]),
        ("recipe: test", "recipe: !!python/object:os.system x", 2, ["python/object"]),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, old: str, new: str, line: int, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    message = str(error.value)
    assert f"c.yaml:{line}:" in message
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("2024-02-30", "day"),
        ("{2024-02-03: 1}", "keys must be"),
        ("&a [*a]", "Circular"),
        ("9" * 5000, "digits"),
        ("[" * 600 + "]" * 600, "recursion"),
        ('"\\ud800"', "surrogates"),
    ],
)
def test_what_no_value_can_be_is_one_line(tmp_path: Path, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^[^\n]*c.yaml: cannot be read as YAML: .*{words}[^\n]*$"):
        load(tmp_path, GOOD.replace("recipe: test", f"recipe: {value}"))
    with pytest.raises(ConfigError, match="--set recipe=.*the value is not YAML"):
        load(tmp_path, GOOD, f"recipe={value}")


@pytest.mark.parametrize("text", ["", "just text", "- a\n- list", "3"])
def test_a_file_without_sections_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="c.yaml:1: expected the sections"):
        load(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "binary.yaml")


def test_overrides_win_over_the_file_and_may_name_absent_keys(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD, "fit.epochs=5", "fit.optimiser.kind=adamw", "fit.ema=0.99", "data.exclude=['3']")
    assert (config.fit.epochs, config.fit.optimiser.kind, config.fit.ema) == (5, "adamw", 0.99)
    assert config.data.exclude == ("3",)


def test_an_override_changes_one_of_two_places_that_are_written_as_one(tmp_path: Path) -> None:
    bodies = "  encoder: &body {kind: convolution, hidden: 64}\n  posterior: *body"
    text = GOOD.replace("  kind: equivae", f"  kind: equivae\n{bodies}")
    model = load(tmp_path, text, "model.encoder.hidden=32").model
    assert (model.encoder.hidden, model.posterior.hidden) == (32, 64)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("fit.epochs=many", ["--set fit.epochs=many", "valid integer"]),
        ("fit.epocs=3", ["--set fit.epocs=3", "unknown key"]),
        ("fit.epochs", ["section.key=value"]),
        ("=3", ["section.key=value"]),
        ("fit.epochs.x=3", ["epochs is not a section"]),
        ("fit.ema=[", ["not YAML"]),
        ("fit.optimiser={learning_rate: -1}", ["--set fit.optimiser=", "greater than 0"]),
        ("model.augment.scale=many", ["--set model.augment.scale=many: model.augment.scale:", "valid number"]),
    ],
)
def test_a_wrong_override_names_itself(tmp_path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD, override)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("name", "overrides", "start"),
    [
        ("mcevae-digits", ["model.pose=5"], "model.pose: Input should be an object, not 5"),
        ("mcevae-digits", ["model.pose=null"], "model.pose: Input should be an object, not null"),
        ("mcevae-digits", ["model.pose=[1]"], "model.pose: Input should be an object"),
        ("mcevae-digits", ["model.pose.kind=poler"], "model.pose.kind: expected one of 'polar', 'lifted', not"),
        ("mcevae-digits", ["model.shift=0.2"], "model: group SO2 has no shift"),
        ("mcevae-digits", ["model.z_dim=3", "model.shift=0.2"], "model: group SO2 has no shift"),
        ("mcevae-digits", ["model.pose.kernel=4"], "model.pose: kernel 4 is even"),
        ("equivae-mnist", ["model.distance_weight=0"], "model: swap_weight needs distance_weight"),
        ("equivae-mnist", ["model.encoder.kernel=4"], "model.encoder: kernel 4 is even"),
        ("equivae-mnist-paper", ["model.posterior.kernel=4"], "model.posterior.kind: is missing"),
        ("equivae-svhn-paper", ["model.posterior={kind: convolution, kernel: 4}"], "model.posterior: kernel 4 is even"),
        ("equivae-mnist", ["model.decoder.widths=[x]"], "model.decoder.widths.0: Input should be a valid integer"),
        ("equivae-digits", ["data.split_seed=-1"], "data.split_seed: Input should be greater"),
        ("equivae-digits", ["fit.schedule={kind: cosine, warmup: 3}"], "fit.schedule.warmup: Input should be less"),
        ("upright-mnist-rotnet", ["model.extractor.kernel=4"], "model.extractor: kernel 4 is even"),
    ],
)
def test_an_override_inside_one_of_several_kinds_of_section_is_named(
    name: str, overrides: list[str], start: str
) -> None:
    """What says the kind is no key. Of a section as a whole, every override inside it is named."""
    with pytest.raises(ConfigError) as error:
        load_config(CONFIGS / f"{name}.yaml", overrides)
    assert str(error.value).startswith(" ".join(f"--set {text}" for text in overrides) + f": {start}"), error.value


def test_a_configuration_survives_its_own_record(make_config: Callable[..., Config]) -> None:
    config = make_config("fit.schedule={kind: batch-doubling, after_epochs: [1, 2]}")
    assert restore_config(config.as_dict()) == config


def test_a_record_of_another_version_names_the_key(make_config: Callable[..., Config]) -> None:
    values = make_config().as_dict()
    values["model"]["former"] = 0.5
    with pytest.raises(ValueError, match=r"model\.equivae\.former: Extra inputs"):
        restore_config(values)


def test_what_a_model_folder_tells_has_no_place_of_this_machine(tmp_path: Path) -> None:
    folder = GOOD.replace("source: digits", "source: folder\n  path: /home/somebody/pictures\n  size: 8")
    config = load(tmp_path, folder, "fit.initial=/home/somebody/runs/first")
    told = config.portable()
    assert "somebody" not in json.dumps(told) and told["fit"]["initial"] == "first"
    assert config.identity()["data"] == told["data"] and config.as_dict()["data"]["path"] == "/home/somebody/pictures"


def test_the_digest_tells_what_decides_the_result(make_config: Callable[..., Config], small: dict[str, Any]) -> None:
    digest = make_config().digest()
    assert make_config("fit.seed=9").digest() == digest
    assert make_config("fit.threads=2", "fit.log_steps=9").digest() == digest
    assert make_config("fit.ema=0.91").digest() != digest
    assert make_config("model.r_dim=5").digest() != digest
    assert make_config("data.split_seed=1").digest() != digest


def test_an_option_added_later_leaves_the_digest_of_finished_runs(make_config: Callable[..., Config]) -> None:
    class Longer(Config):
        added: int | None = None

    config = make_config()
    assert Longer(**dict(config)).digest() == config.digest()
    assert Longer(**dict(config), added=1).digest() != config.digest()


@pytest.mark.parametrize(
    "path",
    # The others come from a configuration and `--set`: RESULTS.md has their commands.
    [path for path in sorted(RESULTS.glob("equivae-*.jsonl")) if (CONFIGS / f"{path.stem}.yaml").exists()],
    ids=lambda path: path.stem,
)
def test_finished_seeds_are_of_the_committed_configuration(path: Path) -> None:
    digest = load_config(CONFIGS / f"{path.stem}.yaml").digest()
    assert [row["seed"] for row in map(json.loads, path.read_text().splitlines()) if row["config"] == digest]
