"""The user's own folder of pictures: nothing is dropped without a word."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from contract.manifest import Preprocessing
from contract.picture_header import PictureLimits
from training import datasets
from training.config import FolderData
from training.datasets import folder as folder_dataset
from training.datasets import folder_pictures
from training.errors import DataError


def save(path: Path, value: int, size: int = 8, mode: str = "L") -> Path:
    """A picture of one grey value with a black corner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size), value, np.uint8)
    pixels[0, 0] = 0
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of ten pictures."""
    for name, base in (("cat", 100), ("dog", 200)):
        for i in range(10):
            save(tmp_path / "pets" / name / f"{i}.png", base + i)
    return tmp_path / "pets"


def config(root: Path, **changes: object) -> FolderData:
    return FolderData.model_validate({"source": "folder", "path": root, "size": 8, **changes})


def test_pictures_of_the_model_s_size_come_back_as_they_are(root: Path) -> None:
    splits = datasets.load(config(root))
    assert splits.name == "pets" and splits.class_names == ("cat", "dog") and splits.test is None
    assert (len(splits.train), len(splits.validation), splits.skipped) == (18, 2, ())
    for part in (splits.train, splits.validation):
        for image, label in zip(part.images, part.labels, strict=True):
            assert int(image[0, 4, 4]) // 100 == int(label) + 1 and int(image[0, 0, 0]) == 0
    values = torch.cat([splits.train.images, splits.validation.images])[:, 0, 4, 4]
    assert sorted(values.tolist()) == [*range(100, 110), *range(200, 210)]


def test_the_split_follows_the_seed(root: Path) -> None:
    digests = {seed: datasets.load(config(root, split_seed=seed)).digest for seed in (0, 1)}
    assert digests[0] != digests[1]
    assert datasets.load(config(root, split_seed=0)).digest == digests[0]


def test_every_format_and_mode_that_is_served_is_read(root: Path) -> None:
    for i, (suffix, mode) in enumerate(
        [("jpg", "RGB"), ("webp", "RGB"), ("tif", "L"), ("bmp", "1"), ("gif", "P"), ("png", "RGBA")]
    ):
        save(root / "cat" / f"more{i}.{suffix}", 150, size=32, mode=mode)
    for suffix, mode in [("ppm", "RGB"), ("pgm", "L"), ("tga", "RGBA"), ("pcx", "P"), ("jp2", "RGB"), ("avif", "RGB")]:
        save(root / "dog" / f"more.{suffix}", 150, size=32, mode=mode)
    splits = datasets.load(config(root, channels=3))
    assert splits.skipped == ()
    assert len(splits.train) + len(splits.validation) == 32
    assert splits.train.images.shape[1:] == (3, 8, 8)


def test_pictures_are_framed_as_the_service_frames_them(root: Path) -> None:
    page = np.full((100, 100), 255, np.uint8)
    page[30:70, 45:55] = 0
    Image.fromarray(page).save(root / "cat" / "page.png")
    Image.fromarray(np.full((100, 100), 255, np.uint8)).save(root / "cat" / "blank.png")
    framing = Preprocessing(polarity="light", fit="box", margin=0.0)
    splits = datasets.load(config(root, preprocessing=framing))
    bar = torch.tensor([0, 0, 0, 255, 255, 0, 0, 0], dtype=torch.uint8).repeat(8, 1)
    everything = torch.cat([splits.train.images, splits.validation.images])[:, 0]
    assert any(torch.equal(image, bar) for image in everything)
    assert splits.preprocessing == framing.model_copy(update={"own_size": "framed"})
    assert splits.skipped == ("cat/blank.png: blank: no content was found in it",)


def test_pictures_of_the_models_own_size_are_framed_too_unless_they_are_frames_already(root: Path) -> None:
    page = np.full((8, 8), 255, np.uint8)
    page[1:5, 2:6] = 0
    Image.fromarray(page).save(root / "cat" / "own.png")
    read = {}
    for own_size in (None, "unchanged"):
        framing = {"polarity": "light", "fit": "box", "margin": 0.0} | ({"own_size": own_size} if own_size else {})
        splits = datasets.load(config(root, preprocessing=framing))
        read[own_size] = torch.cat([splits.train.images, splits.validation.images])[:, 0]
    unchanged = torch.from_numpy(page)
    assert any(int(image.min()) > 150 for image in read[None])  # light, and its box fills the frame
    assert not any(torch.equal(image, unchanged) for image in read[None])
    assert any(torch.equal(image, unchanged) for image in read["unchanged"])


def test_what_cannot_be_used_is_listed_with_its_reason(root: Path) -> None:
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "cut.png").write_bytes(whole[:-30])
    (root / "cat" / "empty.png").touch()
    (root / "cat" / "notes.txt").write_text("not a picture")
    (root / "cat" / ".DS_Store").write_text("no part of the data")
    (root / "cat" / "broken.png").symlink_to(root / "nowhere.png")
    (root / "cat" / "loop").symlink_to(root)
    (root / "stray.png").write_bytes(whole)
    save(root / "dog" / "thin.png", 200, size=2)
    os.mkfifo(root / "dog" / "pipe.png")
    splits = datasets.load(config(root))
    reasons = dict(line.split(": ", 1) for line in splits.skipped)
    assert reasons.keys() == {
        "cat/cut.png",
        "cat/empty.png",
        "cat/notes.txt",
        "cat/broken.png",
        "cat/loop",
        "stray.png",
        "dog/thin.png",
        "dog/pipe.png",
    }
    assert "cut short" in reasons["cat/cut.png"] and reasons["cat/broken.png"] == "a broken link"
    assert "not followed" in reasons["cat/loop"] and "regular" in reasons["dog/pipe.png"]
    assert splits.summary()["skipped"] == 8
    assert len(splits.train) + len(splits.validation) == 20


def test_a_folder_that_cannot_be_listed_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(root / "cat" / "shut" / "x.png", 150)
    genuine = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", path)
        return genuine(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert datasets.load(config(root)).skipped == ("cat/shut: a folder that cannot be listed: Permission denied",)


def test_names_that_are_no_text_stay_on_their_line(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root / "cat") + b"/bad\xff.png")).touch()
    (root / "cat" / "two\nlines.png").touch()
    skipped = datasets.load(config(root)).skipped
    assert [line.split(":")[0] for line in skipped] == [r"'cat/bad\udcff.png'", r"'cat/two\nlines.png'"]
    "".join(skipped).encode()
    Path(os.fsdecode(os.fsencode(root) + b"/cl\xffass")).mkdir()
    with pytest.raises(DataError, match=r"the class 'cl\\udcffass' .* not printable text"):
        datasets.load(config(root))


def test_pictures_that_are_there_twice_are_told(tmp_path: Path, root: Path) -> None:
    (tmp_path / "split").mkdir()
    shutil.move(root, tmp_path / "split" / "train")
    base = tmp_path / "split"
    save(base / "test" / "cat" / "0.png", 104)  # of training
    save(base / "test" / "cat" / "1.png", 150)
    save(base / "test" / "dog" / "1.png", 150)  # of the test set alone: flatters nobody
    assert datasets.load(config(base)).doubts == (
        "pictures of test that are in training too, which makes its figures too good: "
        "1, the first train/cat/4.png and test/cat/0.png",
    )
    save(base / "train" / "cat" / "again.png", 100)
    save(base / "train" / "dog" / "cat.png", 101, mode="RGB")
    save(base / "train" / "dog" / "cat-2.png", 101)
    two_classes, in_test, twice = datasets.load(config(base)).doubts
    assert two_classes.endswith(
        "no model can tell which is meant: 2, the first train/cat/1.png and train/dog/cat-2.png"
    )
    assert in_test.endswith("train/cat/4.png and test/cat/0.png")
    assert twice.startswith("copies of other pictures") and twice.endswith(
        ": 1, the first train/cat/0.png and train/cat/again.png"
    )
    save(base / "outliers" / "a.png", 30)
    save(base / "outliers" / "b.png", 105)
    save(base / "test" / "outliers" / "c.png", 30)
    save(base / "test" / "outliers" / "d.png", 150)
    of_both, of_two = datasets.load(config(base)).doubts[2:4]
    assert of_both == ("pictures of a class that are in outliers too: 2, the first train/cat/5.png and outliers/b.png")
    assert of_two.startswith("copies among outliers") and of_two.endswith(
        ": 1, the first outliers/a.png and test/outliers/c.png"
    )


def test_a_picture_keeps_its_file(root: Path) -> None:
    splits = datasets.load(config(root))
    for part in (splits.train, splits.validation, splits.train.without(("cat",))):
        assert part.files is not None
        for image, file in zip(part.images, part.files, strict=True):
            name, number = file.removesuffix(".png").split("/")
            assert int(image[0, 4, 4]) == {"cat": 100, "dog": 200}[name] + int(number)


def test_links_to_pictures_and_deeper_folders_are_read(root: Path) -> None:
    (root / "cat" / "link.png").symlink_to(root / "dog" / "0.png")
    save(root / "cat" / "deep" / "er" / "x.png", 150)
    splits = datasets.load(config(root))
    assert splits.skipped == () and len(splits.train) + len(splits.validation) == 22


def test_a_huge_file_is_refused_before_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (root / "cat" / "huge.png").open("wb") as file:
        file.truncate(10**12)
    splits = datasets.load(config(root))
    assert splits.skipped == ("cat/huge.png: the picture has 1,000,000,000,000 bytes, the limit is 67,108,864",)
    save(root / "cat" / "wide.png", 100, size=64)
    splits = folder_dataset.load(config(root), PictureLimits(pixels=64 * 64 - 1))
    assert any(line.startswith("cat/wide.png: the picture is 64 x 64") for line in splits.skipped)


def test_more_than_fits_into_memory_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_pictures, "_memory_bytes", lambda: 3 * 20 * 64 - 1)
    with pytest.raises(DataError, match="20 files, as images of 8 x 8 x 1 .*more than a third"):
        datasets.load(config(root))


@pytest.mark.parametrize("limit", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_memory_of_a_container_is_its_limit(tmp_path: Path, limit: str) -> None:
    whole = folder_pictures._memory_bytes(tmp_path)
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    for text, expected in (("1048576\n", 2**20), ("max\n", whole), (f"{2**63 - 4096}\n", whole)):
        (tmp_path / limit).write_text(text)
        assert folder_pictures._memory_bytes(tmp_path) == expected


def test_a_test_folder_is_kept_apart(tmp_path: Path, root: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    root.rename(whole / "train")
    save(whole / "test" / "dog" / "t.png", 222)
    save(whole / "test" / "cow" / "t.png", 222)
    splits = datasets.load(config(whole))
    assert splits.test is not None and splits.test.labels.tolist() == [1]
    assert int(splits.test.images[0, 0, 4, 4]) == 222
    assert splits.skipped == ("test/cow: no class of train",)
    (whole / "train").rename(whole / "training")
    with pytest.raises(DataError, match="none named train"):
        datasets.load(config(whole))


def test_folders_that_cannot_be_trained_on(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        datasets.load(config(tmp_path / "none"))
    with pytest.raises(DataError, match="is not a folder"):
        datasets.load(config(root / "cat" / "0.png"))
    with pytest.raises(DataError, match=r"one class \(deep\)"):
        save(tmp_path / "one" / "deep" / "x.png", 1)
        datasets.load(config(tmp_path / "one"))
    with pytest.raises(DataError, match="no folder"):
        datasets.load(config(root / "cat"))
    (root / "emu").mkdir()
    with pytest.raises(DataError, match="class 'emu' of .* has 0 usable pictures, at least 3"):
        datasets.load(config(root))
    for i in range(3):
        (root / "emu" / f"{i}.png").write_text("no picture")
    with pytest.raises(DataError, match="3 files could not be used, the first: emu/0.png"):
        datasets.load(config(root))


def test_what_lies_beside_train_is_listed(tmp_path: Path, root: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    root.rename(whole / "train")
    save(whole / "val" / "cat" / "x.png", 222)
    (whole / "stray.png").touch()
    splits = datasets.load(config(whole))
    stray, val = splits.skipped
    assert stray == "stray.png: lies beside train, not in it"
    assert val == "val: lies beside train, not in it: validation is drawn from train, see data.validation"


@pytest.mark.parametrize("place", ["unlabelled", "train/unlabelled", "Unlabeled"])
def test_pictures_that_nobody_sorted_lie_beside_the_classes_or_beside_train(
    tmp_path: Path, root: Path, place: str
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    root.rename(whole / "train")
    for name in ("x.png", "y.png"):
        save(whole / place / name, 222)
    splits = datasets.load(config(whole))
    assert splits.class_names == ("cat", "dog") and not splits.skipped
    assert splits.train.unlabelled is not None and len(splits.train.unlabelled) == 2


@pytest.mark.parametrize(("linked", "count"), [(False, 4), (True, 2)])
def test_pictures_in_both_places_count_once(tmp_path: Path, root: Path, linked: bool, count: int) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    root.rename(whole / "train")
    for place in ("unlabelled",) if linked else ("unlabelled", "train/unlabelled"):
        for name in ("x.png", "y.png"):
            save(whole / place / name, 222)
    if linked:
        (whole / "train" / "unlabelled").symlink_to("../unlabelled")
    unlabelled = datasets.load(config(whole)).train.unlabelled
    assert unlabelled is not None and len(unlabelled) == count


@pytest.mark.parametrize("place", ["outliers", "train/outliers", "Outliers"])
def test_outliers_are_divided_as_the_classes_are(tmp_path: Path, root: Path, place: str) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(root, whole / "test")
    root.rename(whole / "train")
    for index in range(10):
        save(whole / place / "deeper" / f"{index}.png", 30 + index)
    save(whole / "test" / "outliers" / "a.png", 50)
    save(whole / "test" / "outliers" / "b.png", 51)
    splits = datasets.load(config(whole, validation=0.2))
    assert splits.class_names == ("cat", "dog") and not splits.skipped
    found = {}
    for name, part in splits.parts.items():
        assert part.outliers is not None
        found[name] = part.outliers[:, 0, 4, 4].tolist()
    assert (len(found["train"]), len(found["validation"]), found["test"]) == (8, 2, [50, 51])
    assert sorted(found["train"] + found["validation"]) == list(range(30, 40))
    assert splits.summary()["counts"] == {"train": 16, "validation": 4, "test": 20, "outliers": 8}
    again = datasets.load(config(whole, validation=0.2))
    assert again.digest == splits.digest
    save(whole / place / "deeper" / "0.png", 99)
    assert datasets.load(config(whole, validation=0.2)).digest != splits.digest


def test_outliers_of_two_places_count_together(tmp_path: Path, root: Path) -> None:
    root.rename(tmp_path / "train")
    save(tmp_path / "outliers" / "a.png", 50)
    save(tmp_path / "train" / "outliers" / "b.png", 51)
    splits = datasets.load(config(tmp_path))
    assert splits.train.outliers is not None and splits.validation.outliers is not None and not splits.skipped


def test_test_outliers_without_test_pictures_are_told(tmp_path: Path, root: Path) -> None:
    root.rename(tmp_path / "train")
    for name in ("a.png", "b.png"):
        save(tmp_path / "test" / "outliers" / name, 50)
    splits = datasets.load(config(tmp_path))
    assert splits.test is None
    assert splits.skipped == ("test: outliers alone, and no picture of a class, are no test set",)


def test_one_outlier_is_said_to_be_too_few(root: Path) -> None:
    save(root / "outliers" / "a.png", 50)
    splits = datasets.load(config(root))
    assert splits.train.outliers is None and splits.class_names == ("cat", "dog")
    assert splits.skipped == ("outliers: 1 usable pictures: fewer than 2 tell nothing",)


def test_outliers_stay_where_labels_or_classes_are_taken_away(root: Path) -> None:
    for index in range(4):
        save(root / "outliers" / f"{index}.png", 30 + index)
        save(root / "owl" / f"{index}.png", 150 + index)
    light = Preprocessing(polarity="light", fit="image", own_size="unchanged")
    for changes in ({"labels": 6}, {"exclude": ("owl",)}, {"canvas": 12, "preprocessing": light}):
        outliers = datasets.load(config(root, **changes)).train.outliers
        assert outliers is not None and len(outliers) == 3
        assert outliers.shape[2] == (12 if "canvas" in changes else 8)


def test_train_and_test_in_capitals_are_no_classes(tmp_path: Path, root: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(root, whole / "Test")
    root.rename(whole / "TRAIN")
    splits = datasets.load(config(whole))
    assert splits.class_names == ("cat", "dog") and splits.test is not None and not splits.skipped


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_class_may_be_called_as_a_part_is(root: Path, name: str) -> None:
    for i in range(4):
        save(root / name / f"{i}.png", 150)
    splits = datasets.load(config(root))
    assert splits.class_names == ("cat", "dog", name) and splits.test is None


def test_train_and_test_without_classes_are_not_two_classes(tmp_path: Path, root: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    (root / "cat").rename(whole / "train")
    (root / "dog").rename(whole / "test")
    with pytest.raises(DataError, match=r"train holds no folder"):
        datasets.load(config(whole))


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_unlabelled_is_as_good_as_no_folder_for_it(root: Path, count: int) -> None:
    (root / "unlabelled").mkdir()
    (root / "unlabelled" / "notes.txt").write_text("not a picture")
    for name in ("x.png",)[:count]:
        save(root / "unlabelled" / name, 222)
    splits = datasets.load(config(root))
    assert splits.train.unlabelled is None and splits.class_names == ("cat", "dog")
    assert [line.split(":")[0] for line in splits.skipped] == ["unlabelled/notes.txt", "unlabelled"]


def test_a_test_folder_without_usable_pictures_is_no_test_set(tmp_path: Path, root: Path) -> None:
    whole = tmp_path / "whole"
    (whole / "test" / "cat").mkdir(parents=True)
    root.rename(whole / "train")
    assert datasets.load(config(whole)).test is None
    (whole / "test" / "cat" / "notes.txt").write_text("not a picture")
    splits = datasets.load(config(whole))
    assert splits.test is None and splits.summary()["skipped"] == 1


def test_a_class_name_that_no_model_folder_takes_is_told_when_it_is_read(root: Path) -> None:
    (root / "cat").rename(root / ("c" * 200))
    assert datasets.load(config(root)).class_names == ("c" * 200, "dog")
    (root / ("c" * 200)).rename(root / ("c" * 201))
    with pytest.raises(DataError, match="more than 200 characters"):
        datasets.load(config(root))
