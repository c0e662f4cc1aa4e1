"""The model folder: what is written can be verified, and every tampering is refused with its reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract.manifest import (
    GraphSpec,
    InputSpec,
    Manifest,
    ManifestError,
    ModelCard,
    Preprocessing,
    TensorSpec,
    read_manifest,
    verify,
    versions,
    write_model_folder,
)

CONTENTS = {"embed.onnx": b"graph", "golden.npz": b"cases"}


def card(**changes: object) -> ModelCard:
    fields: dict[str, object] = {
        "name": "equivae-test",
        "kind": "equivae",
        "input": InputSpec(channels=1, height=8, width=8),
        "preprocessing": Preprocessing(polarity="light", fit="box"),
        "labels": ("0", "1"),
        "graphs": {
            "embed": GraphSpec(
                file="embed.onnx",
                inputs=(TensorSpec(name="image", shape=("N", 1, 8, 8)),),
                outputs=(TensorSpec(name="embedding", shape=("N", 16)),),
            )
        },
        "opset": 18,
        "parity": {"embed": 1e-6},
        "training": {"seed": 1},
        "data": {"name": "digits"},
        "metrics": {"error": 1.0},
        "licence": "Apache-2.0",
    }
    return ModelCard.model_validate(fields | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path, card(), CONTENTS)


def edit(folder: Path, change: dict[str, object]) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_what_is_written_verifies(folder: Path) -> None:
    manifest = verify(folder)
    assert (manifest.name, manifest.version, set(manifest.files)) == ("equivae-test", 1, set(CONTENTS))
    assert manifest.graphs == card().graphs


def test_versions_count_up_and_ignore_other_names(folder: Path, tmp_path: Path) -> None:
    for name in ("0", "01", "x", ".tmp-abc", "-3", "9" * 10):
        (folder.parent / name).mkdir()
    assert write_model_folder(tmp_path, card(), CONTENTS).name == "2"
    (folder.parent / "10").mkdir()
    assert versions(folder.parent) == [1, 2, 10]
    assert write_model_folder(tmp_path, card(), CONTENTS).name == "11"


def test_a_folder_is_readable_by_other_users(folder: Path) -> None:
    assert folder.stat().st_mode & 0o055 == 0o055


def test_nothing_is_left_after_a_failed_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"golden.npz is used but not listed"):
        write_model_folder(tmp_path, card(), {"embed.onnx": b"graph"})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_versions_before_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"golden.npz is used but not listed"):
        write_model_folder(tmp_path, card(), {"embed.onnx": b"graph"})
    assert list((tmp_path / "equivae-test").iterdir()) == [folder]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from tests.contract.test_manifest import card, CONTENTS; from contract.manifest import write_model_folder;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "write_model_folder(Path(sys.argv[1]), card(), CONTENTS | {'embed.onnx': bytes(5000)})"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(root)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 2}, "schema_version is 2, this program reads 1"),
        ({"opset": 20}, "opset"),
        ({"surprise": 1}, "surprise"),
        ({"kind": "other"}, "kind"),
        ({"version": 7}, "the manifest is of equivae-test/7"),
        ({"name": "../../etc"}, "name"),
        ({"labels": ["a", "a"]}, "labels repeat"),
        ({"files": {}}, "not listed in files"),
        ({"files": {"../secret": {"sha256": "0" * 64, "size": 1}}}, "files"),
        ({"input": {"channels": 1, "height": 8, "width": 9}}, "square"),
        ({"graphs": {}}, "graphs"),
        ({"graphs": {"fly": {"file": "embed.onnx", "inputs": [], "outputs": []}}}, "graphs"),
    ],
)
def test_a_wrong_field_is_refused_by_name(folder: Path, change: dict[str, object], reason: str) -> None:
    edit(folder, change)
    with pytest.raises(ManifestError, match=reason):
        verify(folder)


PICTURE = (3, 16, 16)
POSE = {"coefficients": (6,), "coefficients_std": (6,), "matrix": (2, 3), "modes": (4, 2, 3), "weights": (4,)}
LATENT = {"embedding": (5,), "distances": (2,), "probabilities": (2,), "novelty": ()}


def graph(inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> GraphSpec:
    def specs(tensors: dict[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, shape=("N", *shape)) for name, shape in tensors.items())

    return GraphSpec(file="embed.onnx", inputs=specs(inputs), outputs=specs(outputs))


def card_of(**graphs: GraphSpec) -> ModelCard:
    return card(graphs=graphs, parity={}, group="AFF6", input=InputSpec(channels=3, height=16, width=16))


def test_the_graphs_of_every_capability_as_documented() -> None:
    image = {"image": PICTURE}
    card_of(
        embed=graph(image, {"embedding": (5,)}),
        classify=graph(image, LATENT),
        transform=graph(image, POSE),
        canonicalize=graph(image, POSE | {"canonical": PICTURE, "rectified": PICTURE}),
        recombine=graph({"content": PICTURE, "style": PICTURE}, image),
        augment=graph(image | {"noise": (7, 6)}, {"matrices": (7, 2, 3)}),
    )


@pytest.mark.parametrize(
    ("capability", "inputs", "outputs", "reason"),
    [
        (
            "embed",
            {"image": (3, 8, 8)},
            {"embedding": (5,)},
            r"image has shape \['N', 3, 8, 8\], not \['N', 3, 16, 16\]",
        ),
        ("embed", {"image": (1, 16, 16)}, {"embedding": (5,)}, "image has shape"),
        ("embed", {"picture": PICTURE}, {"embedding": (5,)}, r"inputs are \['picture'\], not \['image'\]"),
        ("embed", {"image": PICTURE}, {"embedding": (5, 1)}, r"embedding has shape \['N', 5, 1\], not \['N', 'D'\]"),
        ("classify", {"image": PICTURE}, {"embedding": (5,)}, "classify: outputs are"),
        (
            "classify",
            {"image": PICTURE},
            LATENT | {"distances": (3,)},
            r"distances has shape \['N', 3\], not \['N', 2\]",
        ),
        ("classify", {"image": PICTURE}, LATENT | {"probabilities": (1,)}, "probabilities has shape"),
        ("classify", {"image": PICTURE}, LATENT | {"novelty": (1,)}, "novelty has shape"),
        ("transform", {"image": PICTURE}, POSE | {"weights": (3,)}, "weights has shape"),
        ("transform", {"image": PICTURE}, POSE | {"coefficients": (5,)}, r"shape \['N', 5\], not \['N', 6\]"),
        ("transform", {"image": PICTURE}, POSE | {"modes": (4, 3, 3)}, "modes has shape"),
        ("canonicalize", {"image": PICTURE}, POSE, "canonicalize: outputs are"),
        ("recombine", {"content": PICTURE, "style": (3, 8, 8)}, {"image": PICTURE}, "style has shape"),
        ("recombine", {"content": PICTURE, "style": PICTURE}, {"image": (1, 16, 16)}, "image has shape"),
        ("augment", {"image": PICTURE, "noise": (7, 6)}, {"matrices": (8, 2, 3)}, "matrices has shape"),
    ],
)
def test_a_graph_that_does_not_fit_its_model(
    capability: str, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        card_of(**{capability: graph(inputs, outputs)})


def test_a_model_that_estimates_a_pose_needs_a_group() -> None:
    graphs = {"transform": graph({"image": (1, 8, 8)}, POSE)}
    with pytest.raises(ValueError, match="needs a group"):
        card(graphs=graphs, parity={})
    with pytest.raises(ValueError, match=r"coefficients has shape \['N', 6\], not \['N', 3\]"):
        card(graphs=graphs, parity={}, group="SE2")


def test_two_graphs_of_one_model_agree_on_the_size_of_its_embedding() -> None:
    image = {"image": PICTURE}
    with pytest.raises(ValueError, match=r"classify: outputs: embedding has shape \['N', 5\], not \['N', 4\]"):
        card_of(embed=graph(image, {"embedding": (4,)}), classify=graph(image, LATENT))


@pytest.mark.parametrize("shape", [(1, 8), ("N", 0), ("N", "N"), ("M", 8), ()])
def test_a_wrong_tensor_shape_is_refused(shape: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):
        TensorSpec.model_validate({"name": "image", "shape": shape})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000, "\xff", '{"schema_version": NaN}'])
def test_a_manifest_that_is_not_one_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ManifestError):
        read_manifest(folder)


def test_half_of_a_surrogate_pair_is_no_text(folder: Path) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text()) | {"metrics": {"validation": {"note": "?"}}}
    path.write_text(json.dumps(content))
    assert read_manifest(folder).metrics["validation"] == {"note": "?"}
    path.write_text(json.dumps(content).replace("?", r"\ud800"))
    with pytest.raises(ManifestError, match="is not JSON"):
        read_manifest(folder)


def test_a_huge_manifest_is_not_read_whole(folder: Path) -> None:
    with (folder / "manifest.json").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ManifestError, match="larger than"):
        read_manifest(folder)


def test_changed_bytes_are_refused(folder: Path) -> None:
    (folder / "embed.onnx").write_bytes(b"grapH")
    with pytest.raises(ManifestError, match=r"embed.onnx does not match its SHA-256"):
        verify(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    (folder / "golden.npz").write_bytes(b"cas")
    with pytest.raises(ManifestError, match=r"golden.npz has 3 bytes, the manifest says 5"):
        verify(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "embed.onnx").unlink()
    with pytest.raises(ManifestError, match=r"embed.onnx is missing"):
        verify(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(CONTENTS["embed.onnx"])
    (folder / "embed.onnx").unlink()
    (folder / "embed.onnx").symlink_to(outside)
    with pytest.raises(ManifestError, match="not a plain file"):
        verify(folder)


def test_an_unlisted_file_is_refused(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"x")
    with pytest.raises(ManifestError, match=r"not listed in the manifest: weights.bin"):
        verify(folder)


@pytest.mark.parametrize("name", ["embed.onnx", "manifest.json"])
def test_a_fifo_in_place_of_a_file_does_not_hang(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ManifestError, match="not a plain file"):
        verify(folder)


def test_the_schema_survives_a_round_trip(folder: Path) -> None:
    manifest = verify(folder)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_after_the_last_version_nothing_is_written(tmp_path: Path) -> None:
    model = tmp_path / "equivae-test"
    (model / "999999999").mkdir(parents=True)
    with pytest.raises(OSError, match="version 999999999 is the last"):
        write_model_folder(tmp_path, card(), CONTENTS)
    assert [entry.name for entry in model.iterdir()] == ["999999999"]
