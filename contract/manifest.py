"""The model folder `<store>/<model>/<version>/`: its schema, how it is written, how it is verified.

A folder holds `manifest.json`, one ONNX graph a capability and `golden.npz`. It is written aside under a name that
starts with a dot and then renamed, so that a reader never sees half a folder; `verify` holds every file to the size
and the SHA-256 that the manifest states.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from contract.geometry import COEFFICIENTS, Group

SCHEMA_VERSION: Final = 1
OPSET = 18
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_LABEL_LENGTH = 200
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

Capability = Literal["embed", "classify", "transform", "canonicalize", "recombine", "augment"]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_LENGTH)]

Axes = tuple[str | int, ...]
_PICTURE: Axes = ("N", "C", "H", "W")
_POSE: dict[str, Axes] = {
    "coefficients": ("N", "G"),
    "coefficients_std": ("N", "G"),
    "matrix": ("N", 2, 3),
    "modes": ("N", "M", 2, 3),
    "weights": ("N", "M"),
}
# What the graph of a capability takes and gives. A letter is one size throughout a model: C, H and W of its input, K of
# its labels, G of its group, D, M and S its own affair.
#
# A pose:
# coefficients: in the order and units of geometry.COEFFICIENTS.
# coefficients_std: standard deviations over the whole posterior, in the same units. For the rotation: the root mean
#     square of the angle to the best mode, taken the short way round (pi / sqrt 3 if every angle is equally likely).
# matrix: the best mode's; geometry.py has its convention.
# modes: best first, with weights that add up to 1.
#
# Variants: noise is standard normal; each of matrices maps the variant's frame to the observed one, so that sampling
# the observed picture with it gives the variant.
INTERFACES: Final[dict[Capability, tuple[dict[str, Axes], dict[str, Axes]]]] = {
    "embed": ({"image": _PICTURE}, {"embedding": ("N", "D")}),
    "classify": (
        {"image": _PICTURE},
        {"embedding": ("N", "D"), "distances": ("N", "K"), "probabilities": ("N", "K"), "novelty": ("N",)},
    ),
    "transform": ({"image": _PICTURE}, _POSE),
    "canonicalize": ({"image": _PICTURE}, {**_POSE, "canonical": _PICTURE, "rectified": _PICTURE}),
    "recombine": ({"content": _PICTURE, "style": _PICTURE}, {"image": _PICTURE}),
    "augment": ({"image": _PICTURE, "noise": ("N", "S", "G")}, {"matrices": ("N", "S", 2, 3)}),
}


class ManifestError(Exception):
    """A model folder that cannot be trusted; the message says which fact failed, in one line."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Record):
    """The picture that a model takes: float32 [N, channels, height, width], values in [0, 1]."""

    channels: Literal[1, 3]
    height: int = Field(ge=4, le=1024)
    width: int = Field(ge=4, le=1024)

    @model_validator(mode="after")
    def _square(self) -> Self:
        if self.height != self.width:
            raise ValueError(f"height {self.height} and width {self.width} differ: only square inputs are supported")
        return self


class Preprocessing(_Record):
    """How the training pictures were framed, so that a picture of any other size can be brought to the same frame.

    polarity: brightness of the ink in the training pictures ("none": the picture has no ink and paper).
    fit: "mass" scales the content's longer side to `1 - 2 * margin` of the frame and centres it by its centre of mass;
        "box" centres the content's box instead; "circle", for models that estimate a pose, centres the centre of mass
        of the ink and scales the circle about it that holds 99 % of the ink: however the content is turned, it is the
        same circle, while the size of an upright box would tell the angle; "image" takes the whole picture and looks
        for no content.
    margin: share of the frame's side that stays empty on either side of the content's longer side, or of the circle.
    own_size: whether a picture that has the model's own size already is one of its frames, as MNIST's pictures are
        ("unchanged"), or is framed like any other, as those of a folder were ("framed").
    """

    polarity: Literal["light", "dark", "none"]
    fit: Literal["mass", "box", "circle", "image"]
    margin: float = Field(default=0.0, ge=0.0, lt=0.5)
    own_size: Literal["unchanged", "framed"] = "unchanged"


class TensorSpec(_Record):
    """A float32 tensor of a graph; the first axis is always the batch axis "N", other axes are positive integers."""

    name: str = Field(min_length=1, max_length=64)
    shape: tuple[int | Literal["N"], ...] = Field(min_length=1, max_length=5)

    @model_validator(mode="after")
    def _batch_first(self) -> Self:
        if self.shape[0] != "N" or any(not isinstance(size, int) or size < 1 for size in self.shape[1:]):
            raise ValueError(f"{self.name}: shape {self.shape} is not ('N', positive integers ...)")
        return self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of the tensor for one picture: without the batch axis."""
        return tuple(int(size) for size in self.shape[1:])


class GraphSpec(_Record):
    file: FileName
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)


class FileSpec(_Record):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class ModelCard(_Record):
    """Everything that a model's maker says of it; `Manifest` adds what the writing of the folder decides.

    group: of a model that estimates a pose, the transforms that it knows.
    parity: largest absolute difference between torch and ONNX Runtime, a capability, over the batch sizes tried.
    training, data, metrics: free-form JSON for people; metrics name their split, seed and sample count.
    """

    name: ModelName
    kind: Literal["equivae", "mcevae", "symmetry"]
    input: InputSpec
    preprocessing: Preprocessing
    labels: tuple[Label, ...] = ()
    group: Group | None = None
    graphs: dict[Capability, GraphSpec] = Field(min_length=1)
    opset: int = Field(ge=OPSET, le=OPSET)
    parity: dict[Capability, float]
    training: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    licence: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels repeat")
        if "classify" in self.graphs and len(self.labels) < 2:
            raise ValueError("a model that classifies needs at least two labels")
        if {"transform", "canonicalize"} & set(self.graphs) and self.group is None:
            raise ValueError("a model that estimates a pose needs a group")
        picture = self.input
        sizes: dict[str, int | str] = {
            "N": "N",
            "C": picture.channels,
            "H": picture.height,
            "W": picture.width,
            "K": len(self.labels),
        }
        if self.group is not None:
            sizes["G"] = len(COEFFICIENTS[self.group])
        for capability, graph in self.graphs.items():
            inputs, outputs = INTERFACES[capability]
            _match(f"{capability}: inputs", graph.inputs, inputs, sizes)
            _match(f"{capability}: outputs", graph.outputs, outputs, sizes)
        return self


def _match(what: str, tensors: Sequence[TensorSpec], wanted: Mapping[str, Axes], sizes: dict[str, int | str]) -> None:
    """Hold tensors to names and axes; a letter without a size in `sizes` gets the one that it is first met with."""
    names = [tensor.name for tensor in tensors]
    if names != list(wanted):
        raise ValueError(f"{what} are {names}, not {list(wanted)}")
    for tensor, axes in zip(tensors, wanted.values(), strict=True):
        fits = len(tensor.shape) == len(axes) and all(
            size == (axis if isinstance(axis, int) else sizes.setdefault(axis, size))
            for size, axis in zip(tensor.shape, axes, strict=True)
        )
        if not fits:
            known = [sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in axes]
            raise ValueError(f"{what}: {tensor.name} has shape {list(tensor.shape)}, not {known}")


class Manifest(ModelCard):
    schema_version: Literal[1] = SCHEMA_VERSION
    version: int = Field(ge=1)
    created: datetime
    files: dict[FileName, FileSpec]

    @model_validator(mode="after")
    def _files_listed(self) -> Self:
        for needed in [GOLDEN_FILE, *(graph.file for graph in self.graphs.values())]:
            if needed not in self.files:
                raise ValueError(f"{needed} is used but not listed in files")
        return self


def is_version(name: str) -> bool:
    """Whether a folder of this name is a version: a whole number from 1, of at most nine digits."""
    return _VERSION.fullmatch(name) is not None


def versions(model_folder: Path) -> list[int]:
    """The version numbers below a model's folder, ascending; other names are ignored."""
    return sorted(int(entry.name) for entry in model_folder.iterdir() if is_version(entry.name))


def write_model_folder(store: Path, card: ModelCard, contents: Mapping[str, bytes]) -> Path:
    """Write `contents` (file name -> bytes) and their manifest as the next version of `card.name`; return its folder.

    Nothing is left behind on an error.

    Raises:
        OSError: the store cannot be written (no space left, no permission), or no version number is left.
        pydantic.ValidationError: `contents` lacks a file that the card names.
    """
    model_folder = store / card.name
    is_first = not model_folder.exists()
    model_folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=model_folder))
    try:
        for name, data in contents.items():
            _write_durably(aside / name, data)
        aside.chmod(0o755)  # mkdtemp makes a folder that only its owner can enter; the service runs as someone else
        while True:
            version = max(versions(model_folder), default=0) + 1
            if not _VERSION.fullmatch(str(version)):
                raise OSError(errno.EOVERFLOW, f"version {version - 1} is the last that a model can have")
            manifest = Manifest(
                **card.model_dump(),
                version=version,
                created=datetime.now(UTC).replace(microsecond=0),
                files={
                    name: FileSpec(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
                    for name, data in contents.items()
                },
            )
            _write_durably(aside / MANIFEST_FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
            try:
                aside.rename(model_folder / str(version))
            except OSError:
                if not (model_folder / str(version)).exists():
                    raise
                continue  # another writer took this number between the look and the rename
            return model_folder / str(version)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if is_first:  # a model's folder without a version is one that the service refuses
            with suppress(OSError):  # meanwhile another writer has begun in it
                model_folder.rmdir()
        raise


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json` alone.

    Raises:
        ManifestError: absent, too large, not JSON, another schema version, or a field that the schema refuses.
    """
    path = folder / MANIFEST_FILE
    try:
        if path.exists() and not path.is_file():  # to open a pipe is to wait for its writer
            raise ManifestError(f"{MANIFEST_FILE} is not a plain file")
        with path.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ManifestError(f"{MANIFEST_FILE} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{MANIFEST_FILE} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        document = from_json(raw)  # json.loads takes half of a surrogate pair for text, which nothing can write again
    except ValueError as error:
        raise ManifestError(f"{MANIFEST_FILE} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ManifestError(f"{MANIFEST_FILE} is not a JSON object")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ManifestError(
            f"schema_version is {document.get('schema_version')!r}, this program reads {SCHEMA_VERSION}"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ManifestError(f"{MANIFEST_FILE}: {where}: {first['msg']}") from error


def verify(folder: Path) -> Manifest:
    """Check a whole model folder, see `read_verified`."""
    return read_verified(folder)[0]


def read_verified(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """A whole model folder: the manifest, its name and version checked against the path, and every other file by its
    name, read once: what has been checked by size and SHA-256 is what the caller gets, whoever writes there meanwhile.

    Raises:
        ManifestError: the first fact that fails; also a file that the manifest does not list, or one that is a link.
        OSError: the folder cannot be listed.
    """
    manifest = read_manifest(folder)
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        raise ManifestError(
            f"the manifest is of {manifest.name}/{manifest.version}, the folder is {folder.parent.name}/{folder.name}"
        )
    unlisted = {entry.name for entry in folder.iterdir()} - set(manifest.files) - {MANIFEST_FILE}
    if unlisted:
        raise ManifestError(f"not listed in the manifest: {', '.join(sorted(unlisted))}")
    return manifest, {name: _read_checked(folder / name, expected) for name, expected in manifest.files.items()}


def _read_checked(path: Path, expected: FileSpec) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise ManifestError(f"{path.name} is missing or not a plain file")
    try:
        if path.stat().st_size != expected.size:
            raise ManifestError(f"{path.name} has {path.stat().st_size} bytes, the manifest says {expected.size}")
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path.name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise ManifestError(f"{path.name} does not match its SHA-256")
    return data
