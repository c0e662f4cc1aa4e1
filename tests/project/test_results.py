"""RESULTS.md and the pages with figures: their tables say what the committed JSON says."""

import json
from pathlib import Path

import jinja2
import pytest

from results.render import PAGES, ROOT, main, over_seeds, page_of, rendered


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_template_and_the_committed_json_make(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == page_of(name), "run python results/render.py"


def test_a_page_changed_by_hand_is_told_and_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = "docs/bulk.md"
    monkeypatch.setattr("results.render.PAGES", (page,))
    monkeypatch.setattr("results.render.TEMPLATES", tmp_path / "templates")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "bulk.md").write_text("{{ figures('bulk') | length }}\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.setattr("results.render.ROOT", tmp_path)
    (tmp_path / page).write_text("by hand\n")
    assert main(["--check"]) == 1 and page in capsys.readouterr().err
    assert main([]) == 0
    expected = len(json.loads((ROOT / "results" / "bulk.json").read_text()))
    assert (tmp_path / page).read_text().splitlines()[1:] == [str(expected)]
    assert main(["--check"]) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        "{{ model('equivae-mnist/4').test.no_such_figure | places(2) }}",
        "{{ rows('equivae-mnist') | places }",
        "{{ rows('equivae-mnist') | no_such_filter }}",
    ],
)
def test_a_template_that_asks_for_what_is_not_there_is_an_error(wrong: str) -> None:
    with pytest.raises((jinja2.TemplateError, TypeError)):
        rendered(wrong)


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
    template = "{{ rows('x') | over_seeds('error') }}, {{ rows('y') | over_seeds('error') }}"
    assert rendered(template) == "2.00 ± 1.00 (2 seeds), not run"
    assert rendered("{{ lines('x')[0].error }} of {{ lines('x') | length }}, {{ lines('y') }}") == "9 of 3, []"
