"""SECURITY.md: every promise names a test that there is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = re.findall(r"^\| (?!promise|---)(.+) \| (.+) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
NAMED = re.compile(r"`(?P<file>test_\w+\.py)?(?:::(?P<test>test_\w+))?`")


def test_every_promise_names_tests_that_there_are() -> None:
    files = {path.name: path.read_text() for path in ROOT.glob("tests/*/test_*.py")}
    assert len(TABLE) > 10
    for promise, tests in TABLE:
        file = ""
        named = list(NAMED.finditer(tests))
        assert named, promise
        for each in named:
            file = each["file"] or file
            assert file in files, (promise, each[0])
            assert each["test"] is None or f"def {each['test']}(" in files[file], (promise, each[0])
