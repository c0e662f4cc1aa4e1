"""How sure models of poses are where nothing is up: of blanks, single circles, white noise and soft clouds.

    python -m benchmarks.uncertainty model_store/mcevae-mnist-so2/2 model_store/upright-text/3 \
        --json results/uncertainty.json

Every picture comes to the model as a request's does, by the contract's `prepare`: in the model's own size it passes as
it is, in any other its content is looked for. Where none is found the service turns nothing, whatever the model says,
so that such pictures count in no figure but their number. What a model was made for stands beside them: digits,
capitals or lines of text, turned by angles that it knows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from contract.manifest import Manifest, read_manifest
from contract.preprocess import prepare
from training.datasets.text import crops

Pixels = npt.NDArray[np.uint8]
Generator = np.random.Generator

SIDES = (20, 32, 64, 200)  # pixels, beside the model's own
OF_EACH = 100
SURE = 20.0  # degrees: what a reader may take for an answer
KNOWN_ANGLE = 45.0  # degrees either way, which every model of digits or capitals has seen
PAGE = 300  # pixels a side of the page of a digit or a capital, which take half of it
CAPITALS = "ABCDEFGJKLMPQRTUVWY"  # the others are much the same upside down


def blank(side: int, rng: Generator) -> Pixels:
    return np.full((side, side), rng.integers(256), np.uint8)


def circle(side: int, rng: Generator) -> Pixels:
    """Light on dark, anything from a thin line to a disc, with smooth edges; near the middle and wholly inside."""
    radius = rng.uniform(0.15, 0.4) * side
    width = rng.uniform(1, radius)
    across, down = (side - 1) / 2 + rng.uniform(-0.05, 0.05, 2) * side
    place = np.arange(side)
    beyond = abs(np.hypot(place - across, place[:, None] - down) - (radius - width / 2)) - width / 2
    return np.asarray(255 * np.clip(0.5 - beyond, 0, 1), np.uint8)


def noise(side: int, rng: Generator) -> Pixels:
    return rng.integers(0, 256, (side, side), np.uint8)


def clouds(side: int, rng: Generator) -> Pixels:
    """Noise blurred by a sixteenth to a sixth of the side, from black to white."""
    soft = gaussian_filter(rng.standard_normal((side, side)), side / rng.uniform(6, 16), mode="wrap")
    return np.asarray(255 * ((soft - soft.min()) / np.ptp(soft)), np.uint8)


KINDS: dict[str, Callable[[int, Generator], Pixels]] = {
    "blanks": blank,
    "circles": circle,
    "white noise": noise,
    "soft clouds": clouds,
}


def digits(rng: Generator) -> Iterator[Pixels]:
    """Scikit-learn's, which no model of poses was trained on."""
    for digit in rng.permutation(load_digits().images)[:OF_EACH]:
        small = Image.fromarray(np.pad(np.asarray(digit * 255 / 16, np.uint8), 1))
        yield turned(small.resize((PAGE // 2, PAGE // 2), Image.Resampling.BICUBIC), rng)


def capitals(rng: Generator) -> Iterator[Pixels]:
    for letter in rng.choice(list(CAPITALS), OF_EACH):
        ink = Image.new("L", (PAGE // 2, PAGE // 2))
        ImageDraw.Draw(ink).text((PAGE // 4, PAGE // 4), letter, 255, ImageFont.load_default(PAGE // 2), "mm")
        yield turned(ink, rng)


def turned(ink: Image.Image, rng: Generator) -> Pixels:
    """Light ink, as dark ink in the middle of a page."""
    page = Image.new("L", (PAGE, PAGE))
    page.paste(ink, (PAGE // 4, PAGE // 4))
    return 255 - np.asarray(page.rotate(rng.uniform(-KNOWN_ANGLE, KNOWN_ANGLE), Image.Resampling.BICUBIC))


def lines_of_text(rng: Generator) -> Iterator[Pixels]:
    """At any angle, in Pillow's own font, so that none has to be installed."""
    for crop in crops({"latin": {"Pillow's": (None,)}}, "test", OF_EACH, int(rng.integers(2**31))):
        yield crop.pixels


CONTROLS: dict[str, Callable[[Generator], Iterator[Pixels]]] = {"letters": capitals, "text": lines_of_text}
"""By the name of a model's data; digits for any other."""


def drawn(manifest: Manifest) -> Iterator[tuple[str, list[Pixels]]]:
    """The pictures of every kind and size."""
    own = manifest.input.height
    for kind, draw in KINDS.items():
        for side in (own, *SIDES):
            rng = np.random.default_rng(side)
            name = f"{kind}, " + ("in the frame" if side == own else f"{side} pixels")
            yield name, [draw(side, rng) for _ in range(OF_EACH)]
    yield "with a way up", list(CONTROLS.get(manifest.data["name"], digits)(np.random.default_rng(0)))


def measured(pictures: list[Pixels], manifest: Manifest, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """How many are drawn and have content; of the latter's deviations in degrees the least, the median, and how many
    are below SURE.
    """
    prepared = [prepare(pixels, manifest.input, manifest.preprocessing) for pixels in pictures]
    images = [each.image for each in prepared if each.has_content]
    found: dict[str, Any] = {"drawn": len(pictures), "with_content": len(images)}
    if images:
        (deviations,) = session.run(["coefficients_std"], {"image": np.stack(images)})
        degrees = np.degrees(deviations[:, 0])  # the rotation comes first in every group
        found |= {"least": round(float(degrees.min()), 3), "median": round(float(np.median(degrees)), 3)}
        found["sure"] = int((degrees < SURE).sum())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="version folders of models with a graph `transform`")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = {}
    for folder in arguments.folders:
        manifest = read_manifest(folder)
        session = onnxruntime.InferenceSession(folder / "transform.onnx", providers=["CPUExecutionProvider"])
        kinds = {kind: measured(pictures, manifest, session) for kind, pictures in drawn(manifest)}
        figures[f"{manifest.name}/{manifest.version}"] = kinds
        for kind, found in kinds.items():
            print(f"{manifest.name}, {kind}: {json.dumps(found)}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
