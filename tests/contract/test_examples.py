"""The committed examples are what the committed script makes of scikit-learn's digits."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from contract.picture import open_picture

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    script = runpy.run_path(str(EXAMPLES / "make.py"))
    script["main"].__globals__["FOLDER"] = folder
    script["main"]()
    return folder


def test_every_example_is_made_by_the_script(made: Path) -> None:
    committed = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".png", ".jpg")}
    committed.remove("turned-text.jpg")  # make_text.py's, which needs a font
    assert committed == {path.name for path in made.iterdir()}
    for name in committed:
        one, other = (open_picture((folder / name).read_bytes()).pixels for folder in (EXAMPLES, made))
        tolerance = 2.0 if name.endswith(".jpg") else 0.0  # JPEG encoders differ a little
        assert np.abs(one.astype(float) - other).mean() <= tolerance
