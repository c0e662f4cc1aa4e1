"""Which way is up on crops of rendered text: a model of this project beside Tesseract and deskew, on the same pictures.

    python -m benchmarks.text_orientation model_store/upright-text/3 --part validation --output text.json

Needs the fonts of docs/fonts.md, and Debian's tesseract-ocr and tesseract-ocr-osd and `pip install deskew==1.6.1`; with
`--only model` neither of the two. Each is scored on what it can answer:

- any angle: the model's error of the whole angle; deskew's error modulo 90 degrees, and the model's;
- quarter turns, with a slant within 5 degrees: Tesseract's orientation detection (`--psm 0`, its least number of
  characters lowered from 50 to 3: with 50 it refuses every crop), and the model's nearest quarter.

The other two see a crop as it is, in grey, and once more helped: enlarged to a font of 48 pixels, dark on light. A crop
that is refused counts as wrong.

    python -m benchmarks.text_orientation model_store/upright-text/3 --crossed hebrew --output hebrew.json

tells fonts from words: one script in every family of fonts, with the real words of each part and with made-up ones.

    python -m benchmarks.text_orientation model_store/upright-text/3 --part test --letters 12 24 48 --output lines.json

tells how long a line may be: single lines of Latin letters, and numbers of eight digits.
"""

import argparse
import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageOps

from contract.geometry import compose, to_parts
from contract.manifest import read_verified
from contract.preprocess import prepare
from training.datasets.text import PARTS, Crop, Fonts, crops
from training.datasets.text_crops import draw_look, draw_mask, load_font, take_picture
from training.datasets.text_fonts import SCRIPTS, Part, Script, find_fonts
from training.datasets.text_words import draw_text

Angles = npt.NDArray[np.float64]

DESKEW = "1.6.1"
QUARTERS = (0, 90, 180, 270)
SLANT_DEGREES = 5.0
HELPED_PX = 48
TIMEOUT_S = 60


def wrapped(degrees: npt.ArrayLike, circle: float = 360.0) -> Angles:
    """The same angles in [-circle/2, circle/2)."""
    return np.asarray(np.remainder(np.asarray(degrees, np.float64) + circle / 2, circle) - circle / 2)


class Model:
    """A model folder's `transform` graph behind the service's own preprocessing."""

    def __init__(self, folder: Path) -> None:
        self.manifest, files = read_verified(folder)
        graph = files[self.manifest.graphs["transform"].file]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def angle(self, crop: Crop) -> float | None:
        """Degrees counter-clockwise by which the crop is turned; None: no content was found."""
        framed = prepare(crop.pixels, self.manifest.input, self.manifest.preprocessing, fit="content")
        if not framed.has_content:
            return None
        (matrix,) = self.session.run(["matrix"], {"image": framed.image[None]})
        return to_parts(compose(framed.frame, matrix[0])).rotation_degrees


def deskew_angle(picture: Image.Image) -> float | None:
    """deskew's answer as the picture's turn counter-clockwise, modulo 90."""
    from deskew import determine_skew

    found = determine_skew(np.asarray(picture))
    return None if found is None else -float(found)


def as_sent(crop: Crop) -> Image.Image:
    """The crop in grey."""
    return Image.fromarray(crop.pixels).convert("L")


def helped(crop: Crop) -> Image.Image:
    """The crop dark on light, and enlarged to a font of 48 pixels where its own is smaller."""
    picture = as_sent(crop)
    if sum(crop.look.ink) > sum(crop.look.paper):
        picture = ImageOps.invert(picture)
    factor = max(1.0, HELPED_PX / crop.look.size)
    size = round(picture.width * factor), round(picture.height * factor)
    return picture.resize(size, Image.Resampling.BICUBIC)


def tesseract_quarter(picture: Image.Image) -> float | None:
    """Tesseract's answer as the picture's turn counter-clockwise, a quarter."""
    file = BytesIO()
    picture.save(file, "PNG")
    command = ["tesseract", "stdin", "stdout", "--psm", "0", "-c", "min_characters_to_try=3"]
    done = subprocess.run(
        command,
        input=file.getvalue(),
        capture_output=True,
        timeout=TIMEOUT_S,
        env={"OMP_THREAD_LIMIT": "1"},
        check=False,
    )
    return quarter_in(done.stdout.decode())


def quarter_in(output: str) -> float | None:
    """The clockwise turn that Tesseract asks for, which is the text's turn counter-clockwise; None: it refused."""
    found = re.search(r"^Rotate: (0|90|180|270)$", output, re.MULTILINE)
    return float(found[1]) if found else None


def answers(estimates: Iterable[float | None]) -> Angles:
    """[N] degrees, NaN where there was no answer."""
    return np.array([np.nan if found is None else found for found in estimates], np.float64)


def angle_scores(found: Angles, truth: Angles, circle: float) -> dict[str, float]:
    """Of the errors modulo `circle`; a refusal counts as an error of half the circle, the most there is."""
    error = np.abs(wrapped(found - truth, circle))
    refused = np.isnan(error)
    error[refused] = circle / 2
    scores = {
        "median_degrees": float(np.median(error)),
        "mean_degrees": float(error.mean()),
        "within_2_percent": 100 * float((error <= 2).mean()),
        "within_5_percent": 100 * float((error <= 5).mean()),
        "refused_percent": 100 * float(refused.mean()),
    }
    if circle == 360:
        scores["over_90_percent"] = 100 * float((error > 90).mean())
    return scores


def quarter_scores(found: Angles, truth: Angles) -> dict[str, float]:
    """Share of the right quarter turns among all crops; the model's angle takes its nearest quarter."""
    right = np.abs(wrapped(np.round(np.nan_to_num(found, nan=45.0) / 90) * 90 - truth)) < 45
    right &= ~np.isnan(found)
    answered = ~np.isnan(found)
    return {
        "right_percent": 100 * float(right.mean()),
        "right_of_answered_percent": 100 * float(right[answered].mean()) if answered.any() else 0.0,
        "refused_percent": 100 * float((~answered).mean()),
    }


def measure(
    model: Model | None, others: bool, part: Part, fonts: Path, any_angle: int, quarters: int, seed: int
) -> Any:
    """Every figure of the model, of the others, or of both, as plain values."""
    files = {script: dict(families) for script, families in find_fonts(fonts, part, SCRIPTS).items()}
    drawn = list(crops(files, part, any_angle, seed))
    truth = np.array([crop.degrees for crop in drawn])
    scripts = np.array([crop.script for crop in drawn])
    rng = np.random.default_rng((seed, 1))
    turns = np.array(QUARTERS)[np.arange(quarters) % 4] + rng.uniform(-SLANT_DEGREES, SLANT_DEGREES, quarters)
    turned = list(crops(files, part, quarters, seed + 1, turns.tolist()))
    nearest = np.round(turns / 90) * 90
    result: dict[str, Any] = {"modulo_90": {}, "quarters": {}}
    if model:
        found = answers(map(model.angle, drawn))
        result["any_angle"] = {"model": angle_scores(found, truth, 360)}
        result["any_angle_by_script"] = {
            script: {"crops": int((scripts == script).sum())}
            | angle_scores(found[scripts == script], truth[scripts == script], 360)
            for script in SCRIPTS
        }
        result["modulo_90"]["model"] = angle_scores(found, truth, 90)
        result["quarters"]["model"] = quarter_scores(answers(map(model.angle, turned)), nearest)
    if others:
        for suffix, shown in (("", as_sent), (", helped", helped)):
            skews = answers(deskew_angle(shown(crop)) for crop in drawn)
            result["modulo_90"]["deskew" + suffix] = angle_scores(skews, truth, 90)
            found = answers(tesseract_quarter(shown(crop)) for crop in turned)
            result["quarters"]["tesseract" + suffix] = quarter_scores(found, nearest)
    return result


def crossed(model: Model, fonts: Mapping[Part, Fonts], script: Script, count: int, seed: int) -> Any:
    """Scores of `count` crops of one script in each family of fonts with each part's words.

    Returns:
        "part, family" -> "train", "validation", "test" (real words) or "made up" -> scores at any angle
    """
    result: dict[str, dict[str, Any]] = {}
    for part, of_part in fonts.items():
        for family, files in of_part[script].items():
            scores = result[f"{part}, {family}"] = {}
            for words in (*PARTS, None):
                made_up = 1.0 if words is None else 0.0
                drawn = list(crops({script: {family: files}}, words or "train", count, seed, made_up=made_up))
                truth = np.array([crop.degrees for crop in drawn])
                scores[words or "made up"] = angle_scores(answers(map(model.angle, drawn)), truth, 360)
    return result


def by_length(model: Model, part: Part, fonts: Fonts, lengths: Sequence[int], count: int, seed: int) -> Any:
    """Scores at any angle of `count` single Latin lines of each length, in the part's words, and of as many numbers.

    Returns:
        "18 letters", and so on, or "numbers" -> scores at any angle
    """
    families = sorted(fonts["latin"])

    def line(text: str, rng: np.random.Generator) -> Crop:
        family = families[int(rng.integers(len(families)))]
        files = fonts["latin"][family]
        look = replace(draw_look(rng), lines=1)
        font = load_font(files[int(rng.integers(len(files)))], look.size)
        degrees = float(rng.uniform(-180, 180))
        pixels = take_picture(draw_mask(text, "latin", font, look), look, degrees, rng)
        return Crop(pixels, degrees, "latin", family, text, look)

    def letters(length: int, rng: np.random.Generator) -> str:
        text = ""
        while len(text) < length:
            text = f"{text} {draw_text('latin', part, rng)}".strip()
        return text[:length].strip()

    result: dict[str, Any] = {}
    for length in (*lengths, 0):
        sources = [np.random.default_rng((seed, length, index)) for index in range(count)]
        drawn = [line(letters(length, rng) if length else str(rng.integers(10**7, 10**8)), rng) for rng in sources]
        truth = np.array([crop.degrees for crop in drawn])
        name = f"{length} letters" if length else "numbers"
        result[name] = angle_scores(answers(map(model.angle, drawn)), truth, 360)
    return result


def versions() -> dict[str, str]:
    """Raises:
    SystemExit: Tesseract or the right deskew is not there.
    """
    try:
        done = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=True)
        listed = subprocess.run(["tesseract", "--list-langs"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit("no tesseract here: apt-get install tesseract-ocr tesseract-ocr-osd") from error
    if "osd" not in listed.split():
        raise SystemExit("tesseract has no orientation data: apt-get install tesseract-ocr-osd")
    try:
        installed = version("deskew")
    except ImportError as error:
        raise SystemExit(f"no deskew here: pip install deskew=={DESKEW}") from error
    if installed != DESKEW:
        raise SystemExit(f"deskew {installed} is installed: pip install deskew=={DESKEW}")
    return {"tesseract": done.stdout.split()[1], "deskew": installed}


def table(result: dict[str, Any]) -> str:
    """The figures as text, one line each."""
    lines = []
    for task, rows in sorted(result.items()):
        for who, scores in rows.items():
            figures = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
            lines.append(f"{task:<20} {who:<18} {figures}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="model folder with a transform graph")
    parser.add_argument(
        "--part", choices=("validation", "test"), default="validation", help="test: held-out fonts, once"
    )
    parser.add_argument("--any-angle", type=int, default=2000, metavar="N", help="crops turned by any angle")
    parser.add_argument("--quarters", type=int, default=500, metavar="N", help="crops turned by quarters")
    parser.add_argument("--seed", type=int, default=100, help="not one that the model was trained or chosen with")
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"))
    parser.add_argument("--only", choices=("model", "others"), help="the model alone, or Tesseract and deskew alone")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--crossed", choices=SCRIPTS, help="this script alone: each family of fonts, each part's words")
    alone.add_argument(
        "--letters", type=int, nargs="+", metavar="N", help="single lines of so many Latin letters alone"
    )
    parser.add_argument("--each", type=int, default=200, metavar="N", help="crops of a row of --crossed or --letters")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    if options.crossed or options.letters:
        one = Model(options.model)
        if options.crossed:
            families: dict[Part, Fonts] = {part: find_fonts(options.fonts, part, [options.crossed]) for part in PARTS}
            found = crossed(one, families, options.crossed, options.each, options.seed)
        else:
            latin = find_fonts(options.fonts, options.part, ["latin"])
            found = {"line": by_length(one, options.part, latin, options.letters, options.each, options.seed)}
        print(table(found))
        if options.output:
            options.output.write_text(json.dumps({"each": options.each, "figures": found}, indent=1) + "\n")
        return
    others = options.only != "model"
    used = versions() if others else {}
    model = Model(options.model) if options.only != "others" else None
    figures = measure(model, others, options.part, options.fonts, options.any_angle, options.quarters, options.seed)
    print(table(figures))
    if options.output:
        protocol = {name: getattr(options, name) for name in ("part", "seed", "any_angle", "quarters")}
        served = model and {"name": model.manifest.name, "version": model.manifest.version}
        whole = {"model": served, "protocol": protocol, "versions": used, "figures": figures}
        options.output.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
