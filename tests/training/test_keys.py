"""The list of a configuration's keys: complete by the committed configurations, and true of what is accepted."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.config_file import load_config
from training.errors import ConfigError
from training.keys import keys, nearest

CONFIGS = sorted(Path("training/configs").glob("*.yaml"))
LISTED = list(keys())
PATHS = {re.split(r" [\[(]", line)[0] for line in LISTED}
OF_THEIR_OWN = {"data.more"}  # whose keys are the user's


def of(path: str) -> list[str]:
    return [line for line in LISTED if re.split(r" [\[(]", line)[0] == path]


def paths(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = f"{before}{name}"
        if name not in ("kind", "source") or path == "fit.optimiser.kind":
            yield path
        if isinstance(value, dict) and path not in OF_THEIR_OWN:
            yield from paths(value, f"{path}.")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_key_of_a_configuration_is_listed(config: Path) -> None:
    assert set(paths(yaml.safe_load(config.read_text()))) <= PATHS


def test_a_line_says_what_is_taken_the_default_and_the_meaning() -> None:
    (batch,) = of("fit.batch")
    assert re.fullmatch(r"fit\.batch \(integer >= 2, default 32\): images a step .*", batch)
    assert of("fit.optimiser.betas") == ["fit.optimiser.betas (list of 2: number >= 0 < 1, default [0.9, 0.999])"]
    assert of("model.likelihood")[0].startswith("model.likelihood [equivae] (bernoulli or gaussian, default")
    # One line for what several kinds share, none for what cannot be chosen.
    assert [line.partition(" (")[0] for line in of("model.decoder.widths")] == [
        "model.decoder.widths [equivae, dense/layered]"
    ]
    assert len(of("data.labels")) == 1 and "[" not in of("data.labels")[0].partition("(")[0]
    assert not of("model.kind") and len(LISTED) == len(set(LISTED))


@pytest.mark.parametrize(
    ("path", "least", "under"), [("fit.batch", 2, 1), ("model.r_dim", 1, 0), ("data.split_seed", 0, -1)]
)
def test_the_limits_are_those_that_are_checked(path: str, least: int, under: int) -> None:
    assert f">= {least}" in of(path)[0]
    assert load_config(Path("training/configs/equivae-digits.yaml"), [f"{path}={least}"])
    with pytest.raises(ConfigError, match=re.escape(path)):
        load_config(Path("training/configs/equivae-digits.yaml"), [f"{path}={under}"])


@pytest.mark.parametrize(
    ("written", "kinds", "meant"),
    [
        ("fit.batchsize", (), "fit.batch"),
        ("model.rotation_degrees", ("equivae",), "model.augment.rotation_degrees"),  # that of another kind
        ("model.decoder.width", ("equivae", "dense"), "model.decoder.widths"),
        ("model.decoder.width", ("equivae", "transposed"), "model.decoder.units"),
        ("data.paths", ("digits",), None),
        ("data.paths", ("folder",), "data.path"),
        ("fit.colour", (), None),
    ],
)
def test_the_nearest_key_is_one_of_the_same_kind(written: str, kinds: tuple[str, ...], meant: str | None) -> None:
    assert nearest(written, kinds) == meant
