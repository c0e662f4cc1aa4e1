"""RESULTS.md and the pages with figures: their tables say what the committed JSON says, their commands can be given."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jinja2
import pytest
import typer

from results.render import BLOCK, PAGES, over_seeds, rendered
from training.__main__ import app
from training.config import load_config
from training.errors import ConfigError

ROOT = Path(__file__).parents[2]
TEXTS = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
TEXT = TEXTS[0]


@pytest.mark.parametrize("text", TEXTS, ids=PAGES)
def test_the_tables_are_those_of_the_committed_json(text: str) -> None:
    assert rendered(text) == text, "run python results/render.py"


@pytest.mark.parametrize("text", TEXTS, ids=PAGES)
def test_every_template_is_found_with_its_end(text: str) -> None:
    assert len(BLOCK.findall(text)) == text.count("<!-- rendered from") == text.count("\n<!-- end -->") > 0


def test_a_figure_changed_by_hand_is_put_right() -> None:
    table = next(BLOCK.finditer(TEXT))["text"]
    changed = re.sub(r"\d+\.\d+", "12.34", table)
    assert changed != table
    assert rendered(TEXT.replace(table, changed)) == TEXT


@pytest.mark.parametrize(
    "wrong",
    [
        "{{ model('equivae-mnist/1').test.no_such_figure | places(2) }}",
        "{{ rows('equivae-mnist') | places }",
        "{{ rows('equivae-mnist') | no_such_filter }}",
    ],
)
def test_a_template_that_asks_for_what_is_not_there_is_an_error(wrong: str) -> None:
    with pytest.raises((jinja2.TemplateError, TypeError)):
        rendered(f"<!-- rendered from\n{wrong}\n-->\n<!-- end -->\n")


def test_error_bars_are_the_papers() -> None:
    rows = [{"test": {"error": value}} for value in (0.7, 0.8, 0.9)]
    assert over_seeds(rows, "test.error") == "0.80 ± 0.06 (3 seeds)"  # 0.0816 / sqrt(2)
    assert over_seeds(rows[:1], "test.error") == "0.70 (one seed)"
    without = [{"test": None}, {"test": {"error": None}}, {"test": {}}, *rows[:1]]
    assert over_seeds(without, "test.error") == "0.70 (one seed)"
    assert over_seeds(without[:3], "test.error") == "not run"


def test_rows_of_an_earlier_configuration_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    lines = [{"config": "a", "error": 9}, {"config": "b", "error": 1}, {"config": "b", "error": 3}]
    (tmp_path / "results" / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr("results.render.ROOT", tmp_path)
    text = "<!-- rendered from\n{{ rows('x') | over_seeds('error') }}, {{ rows('y') | over_seeds('error') }}\n-->\n"
    assert rendered(text + "<!-- end -->") == text + "2.00 ± 1.00 (2 seeds), not run\n<!-- end -->"


def commands(text: str) -> list[list[str]]:
    """The commands of a page by word: indented lines, and spans of code in a paragraph; `--set` alone is one, too."""
    hand = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    lines = re.findall(r"^    (\S.*)$", hand, re.MULTILINE)
    spans = [
        " ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"^    .*$", "", hand, flags=re.MULTILINE))
    ]
    found = [line for line in (*lines, *spans) if re.match(r"(python|make) \S|--set \S+=\S", line)]
    return [shlex.split(line.replace("$M", "7").replace(" ... ", " "), comments=True) for line in found]


ANY = {"CONFIG": "training/configs/equivae-mnist.yaml", "SPLIT": "test"}  # where a line stands for many
COMMANDS = [[ANY.get(word, word) for word in words] for words in commands(TEXT)]


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[:3] == ["python", "-m", "training"]], ids=" ".join
)
def test_a_training_command_names_a_configuration_that_loads(words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    given = group.commands[words[3]].make_context(words[3], words[4:]).params
    if "config" in given:
        load_config(ROOT / given["config"], given["set_"] or ())


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "--set"], ids=" ".join)
def test_an_override_alone_fits_a_configuration(words: list[str]) -> None:
    def fits(path: Path) -> bool:
        try:
            load_config(path, words[1::2])
        except ConfigError:
            return False
        return True

    assert set(words[::2]) == {"--set"}
    assert any(fits(path) for path in (ROOT / "training" / "configs").glob("*.yaml"))


PROGRAMS = [words for words in COMMANDS if words[0] == "python" and words[:3] != ["python", "-m", "training"]]


@pytest.mark.parametrize("words", PROGRAMS, ids=" ".join)
def test_a_program_is_there_and_has_the_options(words: list[str]) -> None:
    """Its source names them: starting every program takes seconds."""
    path = ROOT / (words[2].replace(".", "/") if words[1] == "-m" else words[1].removesuffix(".py"))
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in source, option


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "make"], ids=" ".join)
def test_a_target_of_make_is_there(words: list[str]) -> None:
    assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
