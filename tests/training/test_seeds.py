"""The many-seed runner: a line a finished seed, and no seed trained twice."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from training import seeds as seeds_module
from training.config import Config
from training.errors import ConfigError, RunError
from training.run import load_run
from training.seeds import run_seeds

MakeConfig = Callable[..., Config]


def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds for which the loop is called from here on."""
    genuine, called = seeds_module.train, []

    def train(config: Config, *arguments: object, **named: object) -> object:
        called.append(config.fit.seed)
        return genuine(config, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(seeds_module, "train", train)
    return called


def test_every_seed_leaves_a_line_and_is_trained_once(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output, runs = make_config("fit.steps=6"), tmp_path / "out" / "seeds.jsonl", tmp_path / "runs"
    rows = run_seeds(config, [3, 1, 3], output, runs)
    assert [row["seed"] for row in rows] == [3, 1]
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
    for row in rows:
        run = load_run(runs / f"small-{row['seed']}")
        assert row["validation"] == run.metrics and row["config"] == config.digest() == run.config.digest()
        assert row["test"] is None and row["minutes"] >= 0 and "CPU" in row["machine"]
    assert rows[0]["validation"] != rows[1]["validation"]
    called = trained(monkeypatch)
    assert run_seeds(config, [1, 2, 3], output, runs)[::2] == rows[::-1]
    assert called == [2]
    assert len(output.read_text().splitlines()) == 3


def test_a_line_that_a_kill_cut_short_is_written_again(make_config: MakeConfig, tmp_path: Path) -> None:
    config, output = make_config("fit.steps=6"), tmp_path / "seeds.jsonl"
    first = run_seeds(config, [1, 2], output, tmp_path / "runs")
    output.write_text(output.read_text()[:-40])
    assert len(output.read_text().splitlines()) == 2
    again = run_seeds(config, [1, 2], output, tmp_path / "runs")
    assert [row["validation"] for row in again] == [row["validation"] for row in first]
    assert [json.loads(line)["seed"] for line in output.read_text().splitlines()] == [1, 2]


def test_rows_that_another_process_writes_meanwhile_stay(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output, runs = make_config("fit.steps=2"), tmp_path / "seeds.jsonl", tmp_path / "runs"
    genuine = seeds_module.train

    def train(chosen: Config, *arguments: Any, **named: Any) -> object:
        monkeypatch.setattr(seeds_module, "train", genuine)
        run_seeds(config, [3, 2], output, runs)
        return genuine(chosen, *arguments, **named)

    monkeypatch.setattr(seeds_module, "train", train)
    run_seeds(config, [1, 2], output, runs)
    assert [json.loads(line)["seed"] for line in output.read_text().splitlines()] == [3, 2, 1]


def test_test_figures_only_where_they_are_asked_for(make_config: MakeConfig, tmp_path: Path) -> None:
    config, output = make_config("fit.steps=6"), tmp_path / "seeds.jsonl"
    run_seeds(config, [1], output, tmp_path / "runs")
    (row,) = run_seeds(config, [1], output, tmp_path / "runs", test=True)
    run = load_run(tmp_path / "runs" / "small-1")
    splits = run.splits()
    assert splits.test is not None
    assert row["test"] == run.model.validate(splits.train, splits.test)
    run_seeds(config, [1], output, tmp_path / "runs")
    assert len(output.read_text().splitlines()) == 2


def test_the_papers_other_classifiers_join_the_figures_of_a_finished_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds_module.probes, "neural_head", partial(seeds_module.probes.neural_head, steps=200))
    config, output, runs = make_config("fit.steps=6"), tmp_path / "seeds.jsonl", tmp_path / "runs"
    (bare,) = run_seeds(config, [1], output, runs)
    (row,) = run_seeds(config, [1], output, runs, test=True, benchmark_epochs=8)
    assert row["validation"].items() >= bare["validation"].items()
    for part in ("validation", "test"):
        errors = row[part]["error_neural_head"], row[part]["error_benchmark_cnn"]
        assert max(errors) < 75, errors  # of 90 by chance: f_inv has seen six steps
    count = len(output.read_text().splitlines())
    assert run_seeds(config, [1], output, runs, test=True, benchmark_epochs=0) == [row]
    assert run_seeds(config, [1], output, runs) == [bare]
    assert len(output.read_text().splitlines()) == count == 2
    (other,) = run_seeds(config, [1], output, runs, benchmark_epochs=1)
    assert other["benchmark_epochs"] == 1 and len(output.read_text().splitlines()) == 3


def test_every_seed_keeps_labels_of_its_own(make_config: MakeConfig, tmp_path: Path) -> None:
    few = make_config("fit.steps=2", "fit.batch=20", "data.labels=40", "model.few_labels={unlabelled_batch: 8}")
    rows = run_seeds(few, [1, 2], tmp_path / "seeds.jsonl", tmp_path)
    digests = [load_run(tmp_path / f"small-{seed}").data["digest"] for seed in (1, 2)]
    assert digests[0] != digests[1]
    assert {row["config"] for row in rows} == {few.digest()}
    assert make_config("data.labels=50", "fit.steps=2").digest() != make_config("fit.steps=2").digest()


def test_a_row_names_what_unlabelled_pictures_add_to_the_recipe(make_config: MakeConfig, tmp_path: Path) -> None:
    unsaid = make_config("fit.steps=2", "fit.batch=20", "data.labels=40", "model.distance_weight=1")
    (row,) = run_seeds(unsaid, [1], tmp_path / "seeds.jsonl", tmp_path)
    assert row["recipe"] == "test, consistency on unlabelled pictures"
    assert row["config"] == unsaid.for_data(unlabelled=True).digest() != unsaid.digest()


def test_rows_of_another_configuration_stay_and_do_not_count(make_config: MakeConfig, tmp_path: Path) -> None:
    output = tmp_path / "seeds.jsonl"
    run_seeds(make_config("fit.steps=6"), [1], output, tmp_path / "a")
    run_seeds(make_config("fit.steps=7"), [1], output, tmp_path / "b")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["step"] for row in rows] == [6, 7] and rows[0]["config"] != rows[1]["config"]


def test_a_run_of_another_configuration_in_the_way_is_left_and_what_helps_is_said(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_seeds(make_config("fit.steps=6"), [1], tmp_path / "six.jsonl", tmp_path / "runs")
    before, called = (tmp_path / "runs" / "small-1" / "model.pt").read_bytes(), trained(monkeypatch)
    longer, output = make_config("fit.steps=7"), tmp_path / "seven.jsonl"
    helps = r"small-1 .*\(fit.steps differ\): choose another --runs, or .* --set name="
    with pytest.raises(RunError, match=helps) as said:
        run_seeds(longer, [1], output, tmp_path / "runs")
    assert "--restart" not in str(said.value) and called == [] and not output.exists()
    assert (tmp_path / "runs" / "small-1" / "model.pt").read_bytes() == before
    run_seeds(longer, [1], output, tmp_path / "others")
    run_seeds(make_config("fit.steps=7", "name=other"), [1], output, tmp_path / "runs")
    assert called == [1, 1] and len(output.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "reason"), [("former: 1\n", "configuration, former: Extra inputs"), ("fit: [\n", "flow node")]
)
def test_a_run_of_another_version_in_the_way_says_what_it_has_and_what_helps(
    text: str, reason: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    config, folder = make_config("fit.steps=6"), tmp_path / "runs" / "small-1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()) + text)
    helps = f"config.yaml is damaged or of another version: .*{reason}.*; delete {folder}, or train it with --restart"
    with pytest.raises(RunError, match=helps):
        run_seeds(config, [1], tmp_path / "seeds.jsonl", tmp_path / "runs")


def test_rows_and_runs_of_other_data_do_not_count(make_config: MakeConfig, tmp_path: Path) -> None:
    def pictures(name: str) -> Config:
        rng = np.random.default_rng(len(name))
        for path in (tmp_path / name / kind / f"{i}.png" for kind in ("cat", "dog") for i in range(8)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
        return make_config(
            f"data={{source: folder, path: {tmp_path / name}, size: 8}}", "fit.batch=8", "fit.steps=2", "fit.seed=1"
        )

    one, other, output = pictures("one"), pictures("other"), tmp_path / "seeds.jsonl"
    assert one.digest() == other.digest()
    rows = run_seeds(one, [1], output, tmp_path / "runs")
    assert run_seeds(one, [1], output, tmp_path / "runs") == rows
    with pytest.raises(RunError, match="small-1 is complete, but of other data .*: delete .*small-1, or train"):
        run_seeds(other, [1], output, tmp_path / "runs")
    assert run_seeds(other, [1], output, tmp_path / "others")[0]["data"] != rows[0]["data"]
    before = {key: value for key, value in rows[0].items() if key != "data"}
    output.write_text(json.dumps(before) + "\n")
    assert run_seeds(other, [1], output, tmp_path / "runs") == [before]


def test_what_cannot_be_run_or_read_says_why(make_config: MakeConfig, tmp_path: Path) -> None:
    config, output = make_config("fit.steps=6"), tmp_path / "seeds.jsonl"
    for text in ('{"a": 1}\n{"a": 2}\n', '[{"a": 1}]\n', '{"a": 1}', "the only copy of my notes\n"):
        output.write_text(text)
        with pytest.raises(RunError, match=r"seeds.jsonl:1: .*another --output"):
            run_seeds(config, [1], output, tmp_path / "runs")
        assert output.read_text() == text
    with pytest.raises(ConfigError, match="one device"):
        run_seeds(make_config("fit.devices=2"), [1], tmp_path / "other.jsonl", tmp_path / "runs")


def test_figures_that_cannot_be_had_are_refused_before_any_training(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for path in (tmp_path / "pictures" / kind / f"{i}.png" for kind in ("cat", "dog") for i in range(8)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    untested = make_config(f"data={{source: folder, path: {tmp_path / 'pictures'}, size: 8}}", "fit.batch=8")
    other = make_config("model={kind: symmetry}", "fit.select=elbo", "fit.order=shuffled")
    called, output = trained(monkeypatch), tmp_path / "seeds.jsonl"
    with pytest.raises(ConfigError, match="pictures has no test part"):
        run_seeds(untested, [1], output, tmp_path / "runs", test=True)
    with pytest.raises(ConfigError, match="belong to an equivae, not to a symmetry"):
        run_seeds(other, [1], output, tmp_path / "runs", benchmark_epochs=0)
    assert called == [] and not output.exists()
