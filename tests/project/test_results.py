"""RESULTS.md and the pages with figures: their tables say what the committed JSON says, their commands can be given."""

import json
import re
from pathlib import Path

import jinja2
import pytest

from results.render import BLOCK, PAGES, over_seeds, rendered

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
        "{{ model('equivae-mnist/3').test.no_such_figure | places(2) }}",
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
