"""Data sets: what is read, how it is divided, and what is said of data that is absent or broken."""

import gzip
import hashlib
import http.server
import io
import math
import re
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix
from sklearn.datasets import load_digits

from training import datasets
from training.config import DigitsData, FolderData, MnistData, SvhnData
from training.datasets import LabelledImages, mnist, storage, svhn
from training.datasets.images import first_of_each_class, stratified_split
from training.datasets.storage import data_root, download
from training.errors import DataError


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EQUIPOISE_TRAINING_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTP server of a folder on this machine: its address and the folder."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/", folder
    httpd.shutdown()
    httpd.server_close()
    thread.join()


# --- arrays with labels ---------------------------------------------------------------------------------------------


def some_images(count: int = 12) -> LabelledImages:
    pixels = torch.arange(count * 4, dtype=torch.int64).reshape(count, 1, 2, 2) % 256
    return LabelledImages(pixels.to(torch.uint8), torch.arange(count) % 3, ("a", "b", "c"))


def test_the_digest_changes_with_any_pixel_label_name_or_shape() -> None:
    data = some_images()
    pixel, label = data.images.clone(), data.labels.clone()
    pixel[3, 0, 1, 1] += 1
    label[0] = 2
    others = [
        LabelledImages(pixel, data.labels, data.class_names),
        LabelledImages(data.images, label, data.class_names),
        LabelledImages(data.images, data.labels, ("a", "b", "d")),
        LabelledImages(data.images.reshape(12, 1, 4, 1), data.labels, data.class_names),
    ]
    assert len({data.digest(), *(other.digest() for other in others)}) == 5
    strided = torch.stack([data.images, data.images], 1)[:, 0]
    assert LabelledImages(strided, data.labels, data.class_names).digest() == data.digest()


def test_excluded_classes_go_and_the_others_are_renumbered() -> None:
    data = some_images().without(("b",))
    assert data.class_names == ("a", "c")
    assert data.labels.tolist() == [0, 1] * 4
    assert torch.equal(data.images, some_images().images[some_images().labels != 1])


def test_wrong_arrays_are_refused() -> None:
    data = some_images()
    with pytest.raises(ValueError, match="uint8"):
        LabelledImages(data.images.float(), data.labels, data.class_names)
    with pytest.raises(ValueError, match="int64"):
        LabelledImages(data.images, data.labels[:3], data.class_names)
    with pytest.raises(ValueError, match="class_names"):
        LabelledImages(data.images, data.labels, ("a", "b"))


def test_a_split_takes_its_share_of_every_class_by_the_seed() -> None:
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 3)
    kept, held = stratified_split(labels, 0.2, seed=0, fewest_kept=2)
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(113))
    assert torch.bincount(labels[held]).tolist() == [20, 2, 1]
    assert not torch.equal(kept, kept.sort().values)  # classes are mixed even where they lie one after the other
    assert torch.equal(held, stratified_split(labels, 0.2, seed=0, fewest_kept=2)[1])
    assert not torch.equal(held, stratified_split(labels, 0.2, seed=1, fewest_kept=2)[1])
    assert torch.bincount(labels[stratified_split(labels, 0.9, seed=0, fewest_kept=2)[0]]).tolist() == [10, 2, 2]


def test_a_part_for_class_means_misses_no_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 3 + [2] * 50)
    data = LabelledImages(torch.zeros(153, 1, 2, 2, dtype=torch.uint8), labels, ("a", "b", "c"))
    assert torch.bincount(first_of_each_class(data, 60).labels).tolist() == [20, 3, 20]
    assert torch.bincount(first_of_each_class(data, 2).labels).tolist() == [1, 1, 1]


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learn_s_divided_without_overlap() -> None:
    splits = datasets.load(DigitsData(source="digits"))
    assert sum(len(part) for part in splits.parts.values()) == 1797
    together = torch.cat([part.images for part in splits.parts.values()])
    source = torch.from_numpy((load_digits().images * 255 / 16).round()).to(torch.uint8).unsqueeze(1)
    assert torch.equal(together.flatten(1).unique(dim=0), source.flatten(1).unique(dim=0))
    for part in splits.parts.values():
        share = torch.bincount(part.labels) / len(part)
        assert float((share - 0.1).abs().max()) < 0.02
    assert int(together.max()) == 255


def test_the_division_of_digits_follows_its_seed_alone() -> None:
    digests = [datasets.load(DigitsData(source="digits", split_seed=seed)).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_classes_can_be_left_out_of_a_data_set() -> None:
    splits = datasets.load(DigitsData(source="digits", exclude=("3",)))
    assert splits.class_names == tuple("012456789")
    assert all(int(part.labels.max()) == 8 for part in splits.parts.values())
    with pytest.raises(DataError, match="no class ten"):
        datasets.load(DigitsData(source="digits", exclude=("ten",)))
    with pytest.raises(DataError, match="two classes"):
        datasets.load(DigitsData(source="digits", exclude=tuple("123456789")))


# --- MNIST ----------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def stand_in() -> dict[str, np.ndarray]:
    """Arrays of MNIST's shapes."""
    x = np.zeros((60_000, 28, 28), np.uint8)
    x[:, 0, 0] = np.arange(60_000) % 251
    y = (np.arange(60_000) % 10).astype(np.uint8)
    return {"x_train": x, "y_train": y, "x_test": x[:10_000] + 1, "y_test": y[:10_000]}


def write_idx(folder: Path, arrays: dict[str, np.ndarray], packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for (name, _), array in zip(mnist.FILES, arrays.values(), strict=True):
        content = idx(array)
        target = folder / (f"{name}.gz" if packed else name)
        target.write_bytes(gzip.compress(content, 1) if packed else content)


def test_mnist_itself_is_divided_as_in_the_paper(mnist_folder: Path) -> None:
    splits = datasets.load(MnistData(source="mnist", path=mnist_folder))
    assert {name: len(part) for name, part in splits.parts.items()} == {
        "train": 55_000,
        "validation": 5_000,
        "test": 10_000,
    }
    images, labels, *_ = mnist._named(mnist_folder)
    assert np.array_equal(splits.validation.images[:, 0].numpy(), images[-5_000:])
    assert np.array_equal(splits.validation.labels.numpy(), labels[-5_000:])


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_reads_the_same_from_idx_and_npz(
    tmp_path: Path, stand_in: dict[str, np.ndarray], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path / "idx" / "mnist", stand_in, packed)
    np.savez(tmp_path / "mnist.npz", **stand_in)
    named = datasets.load(MnistData(source="mnist", path=tmp_path / "idx" / "mnist"))
    assert named.digest == datasets.load(MnistData(source="mnist", path=tmp_path / "mnist.npz")).digest
    for root in (tmp_path / "idx", tmp_path / "idx" / "mnist", tmp_path, tmp_path / "mnist.npz"):
        monkeypatch.setenv("EQUIPOISE_TRAINING_DATA", str(root))
        assert datasets.load(MnistData(source="mnist")).digest == named.digest


def test_mnist_is_downloaded_once_and_checked(
    tmp_path: Path, stand_in: dict[str, np.ndarray], server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = server
    write_idx(folder, stand_in, packed=True)
    sums = [(name, hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()) for name, _ in mnist.FILES]
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/", address))
    monkeypatch.setattr(mnist, "FILES", sums)
    assert len(datasets.load(MnistData(source="mnist")).train) == 55_000
    assert sorted(path.name for path in (data_root() / "mnist").iterdir()) == sorted(f"{name}.gz" for name, _ in sums)
    monkeypatch.setattr(mnist, "MIRRORS", ())
    assert len(datasets.load(MnistData(source="mnist")).test or ()) == 10_000


def test_offline_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(DataError, match=r"127.0.0.1:9.*refused.*EQUIPOISE_TRAINING_DATA.*digits"):
        datasets.load(MnistData(source="mnist"))


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path: Path, server: tuple[str, Path]) -> None:
    address, folder = server
    (folder / "file").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"wrong checksum.*File not found.*do this"):
        download("file", (address, f"{address}none/"), "0" * 32, tmp_path / "target", "do this")
    assert list((tmp_path / "target").iterdir()) == []


def test_two_processes_of_one_number_may_download_one_file(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first processes of two containers."""
    address, folder = server
    (folder / "file").write_bytes(b"content")
    wanted = ("file", (address,), hashlib.md5(b"content").hexdigest(), tmp_path / "target", "")
    genuine = storage.md5

    def md5(path: Path) -> str:
        monkeypatch.setattr(storage, "md5", genuine)
        download(*wanted)
        return genuine(path)

    monkeypatch.setattr(storage, "md5", md5)
    assert download(*wanted).read_bytes() == b"content"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="data folder"):
        download("x", (), "0", tmp_path / "file" / "sub", "")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: cut(folder / "t10k-images-idx3-ubyte"), "cut short"),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(b""), "not an idx file"),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(b"PNG" * 9), "not an idx file"),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "neither mnist.npz nor t10k-labels"),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8))), r"uint8 \[9\]"),
        (
            lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(10_000, 11, np.uint8))),
            "label 11",
        ),
    ],
)
def test_damaged_idx_files_are_named(
    tmp_path: Path, stand_in: dict[str, np.ndarray], damage: Callable[[Path], None], words: str
) -> None:
    write_idx(tmp_path, stand_in, packed=False)
    damage(tmp_path)
    with pytest.raises(DataError, match=words):
        datasets.load(MnistData(source="mnist", path=tmp_path))


def mark(archive: bytes, local: int, central: int, value: int) -> bytes:
    """Set a byte of the headers of every file in a zip archive."""
    marked = bytearray(archive)
    for signature, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        for found in re.finditer(re.escape(signature), archive):
            marked[found.start() + offset] = value
    return bytes(marked)


def test_files_that_lie_about_themselves_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "bare.npy", np.zeros(3))
    np.savez(tmp_path / "plain.npz", **{name: np.zeros(3, np.uint8) for name in mnist.ARRAYS})
    plain = (tmp_path / "plain.npz").read_bytes()
    (tmp_path / "encrypted.npz").write_bytes(mark(plain, 6, 8, 1))
    (tmp_path / "method.npz").write_bytes(mark(plain, 8, 10, 97))
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        for name in mnist.ARRAYS:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**6)}
            )
            archive.writestr(f"{name}.npy", header.getvalue())
    for name in ("bare.npy", "encrypted.npz", "method.npz", "huge.npz"):
        with pytest.raises(DataError, match=f"{name} cannot be read as .npz"):
            datasets.load(MnistData(source="mnist", path=tmp_path / name))
    for shape, words in (((65536, 65536, 65536), "cut short: 0 of 281,474"), ((1,) * 255, "not an idx file")):
        for name, _ in mnist.FILES:
            (tmp_path / name).write_bytes(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape))
        with pytest.raises(DataError, match=words):
            datasets.load(MnistData(source="mnist", path=tmp_path))


def test_the_home_of_nobody_does_not_exist() -> None:
    path = Path("~nobody-of-this-name/data")
    for config, words in (
        (MnistData(source="mnist", path=path), "does not exist"),
        (SvhnData(source="svhn", path=path), "has no train_32x32.mat"),
        (FolderData(source="folder", path=path, size=8), "does not exist"),
    ):
        with pytest.raises(DataError, match=words):
            datasets.load(config)


def test_a_damaged_gzip_or_npz_is_named(tmp_path: Path, stand_in: dict[str, np.ndarray]) -> None:
    write_idx(tmp_path / "idx", stand_in, packed=True)
    cut(tmp_path / "idx" / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz cannot be read.*delete it"):
        datasets.load(MnistData(source="mnist", path=tmp_path / "idx"))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "part.npz", x_train=stand_in["x_test"])
    np.savez(tmp_path / "objects.npz", **{name: np.array([{}], dtype=object) for name in mnist.ARRAYS})
    for name, words in (("text", "cannot be read"), ("part", "no array y_train"), ("objects", "cannot be read")):
        with pytest.raises(DataError, match=words):
            datasets.load(MnistData(source="mnist", path=tmp_path / f"{name}.npz"))
    with pytest.raises(DataError, match="does not exist"):
        datasets.load(MnistData(source="mnist", path=tmp_path / "none.npz"))


# --- SVHN -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def svhn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MATLAB files as published, with fewer images: the label 10 is the digit 0."""
    folder = tmp_path_factory.mktemp("svhn")
    generator = np.random.default_rng(0)
    for name, count in (("train_32x32.mat", svhn.VALIDATION + 30), ("test_32x32.mat", 20)):
        images = generator.integers(0, 256, (32, 32, 3, count), np.uint8)
        savemat(folder / name, {"X": images, "y": (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None]})
    return folder


def test_svhn_reads_the_published_files(svhn_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = datasets.load(SvhnData(source="svhn", path=svhn_folder))
    assert {name: len(part) for name, part in splits.parts.items()} == {"train": 30, "validation": 3_257, "test": 20}
    assert splits.train.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    generator = np.random.default_rng(0)
    first = generator.integers(0, 256, (32, 32, 3, svhn.VALIDATION + 30), np.uint8)[:, :, :, 0]
    assert np.array_equal(splits.train.images[0].numpy(), first.transpose(2, 0, 1))
    monkeypatch.setenv("EQUIPOISE_TRAINING_DATA", str(svhn_folder))
    monkeypatch.setattr(svhn, "_content", loadmat)  # the processes that read it have been seen to
    assert datasets.load(SvhnData(source="svhn")).digest == splits.digest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"X": np.zeros((32, 32, 3, 4), np.uint8)}, "arrays X and y"),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((5, 1), np.uint8)}, "expected uint8"),
        ({"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1), np.uint8)}, "expected uint8"),
        *(
            (
                {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1, label]])},
                f"the label {label}, expected whole",
            )
            for label in (0, 11, 1.7, math.nan, math.inf)
        ),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((4, 1), np.uint8)}, "3,257 alone"),
        *(
            ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": y}, "no array of numbers")
            for y in ("abcd", {"a": 1}, np.array(["a", np.zeros(2)], object), csc_matrix(np.ones((4, 1))))
        ),
    ],
)
def test_wrong_svhn_files_are_named(
    tmp_path: Path, content: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svhn, "_content", loadmat)  # which takes no process each: these files crash nothing
    for name in svhn.FILES:
        savemat(tmp_path / name, content)
    with pytest.raises(DataError, match=words):
        datasets.load(SvhnData(source="svhn", path=tmp_path))


def test_broken_or_absent_svhn_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(50))
    (tmp_path / "test_32x32.mat").touch()
    with pytest.raises(DataError, match=r"train_32x32.mat cannot be read"):
        datasets.load(SvhnData(source="svhn", path=tmp_path))
    savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((4, 1), np.uint8)})
    damaged = bytearray((tmp_path / "train_32x32.mat").read_bytes())
    damaged[184] = 0  # no type of numbers: scipy reads of a null pointer
    (tmp_path / "train_32x32.mat").write_bytes(damaged)
    with pytest.raises(DataError, match=r"process that read .*train_32x32.mat as a MATLAB file died"):
        datasets.load(SvhnData(source="svhn", path=tmp_path))
    with pytest.raises(DataError, match=r"has no train_32x32.mat.*EQUIPOISE_TRAINING_DATA"):
        datasets.load(SvhnData(source="svhn", path=tmp_path / "none"))
    monkeypatch.setattr(svhn, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(DataError, match="could not be downloaded"):
        datasets.load(SvhnData(source="svhn"))
