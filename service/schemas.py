"""The API's contract: what goes in and what comes out, with examples. OpenAPI is made from it.

Inference answers are written without these models, for speed; a contract test holds real answers to them.
"""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from contract.geometry import Group
from contract.manifest import InputSpec, Preprocessing


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


# A digit of scikit-learn's as an 8x8 PNG, so that the documentation's examples work when pasted.
EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAARklEQVR42gXBYRVAMBgAwHt7/vsiaGCaLIJGIqyCBp4EI4E1III7lLYFaG99i0"
    "Gelh55T+LqbpI4GUm+WeQP01PqAdZW8QOg+BHx1aT2vAAAAABJRU5ErkJggg=="
)


class EncodedImage(_Schema):
    data: str = Field(
        description="The bytes of a PNG, JPEG, WebP, TIFF, BMP or GIF file as base64.", examples=[EXAMPLE_PNG]
    )


class ImagesRequest(_Schema):
    images: list[EncodedImage] = Field(min_length=1, description="Answered in this order.")


class RecombineRequest(_Schema):
    content: EncodedImage = Field(description="What is shown: the class comes from here.")
    style: EncodedImage = Field(description="How it is shown: everything but the class comes from here.")


class InputDescription(_Schema):
    """What was received and what was done to it before the model saw it."""

    format: Literal["PNG", "JPEG", "WebP", "TIFF", "BMP", "GIF"]
    width: int = Field(description="Pixels, of the picture as it is seen.")
    height: int
    orientation_applied: bool = Field(description="Whether an EXIF orientation turned or mirrored the picture.")
    frames: int = Field(description="Pictures in the file; the first one is judged.")
    polarity: Literal["light", "dark", "none"] = Field(
        description="Brightness of the ink as it was found or stated; none where nothing was looked for."
    )
    box: tuple[int, int, int, int] = Field(
        description="What fills the model's frame: left, top, right, bottom, in pixels of the picture as it is seen."
    )
    has_content: bool = Field(
        description="False where ink was looked for and none stands out from the paper: the answer is that to a blank, "
        "and a transform is the one that changes nothing."
    )


class _Answer(_Schema):
    model: str = Field(examples=["equivae-digits"])
    version: int = Field(examples=[1])


class _ImageAnswer(_Answer):
    input: InputDescription


class EmbedAnswer(_ImageAnswer):
    embedding: list[float] = Field(description="The representation that does not change with the nuisance.")


class Novelty(_Schema):
    score: float = Field(
        ge=0,
        le=1,
        description="Share of good pictures of that class, in general validation ones, that lie nearer to it.",
    )
    is_novel: bool = Field(description="score > 0.99")


class ClassifyAnswer(_ImageAnswer):
    label: str = Field(examples=["7"])
    probability: float = Field(ge=0, le=1)
    probabilities: dict[str, float]
    distances: dict[str, float] = Field(description="Squared distance to each class in the embedding.")
    novelty: Novelty


class PictureAnswer(_Schema):
    media_type: Literal["image/png"] = "image/png"
    width: int
    height: int
    data: str = Field(description="The file as base64.")


Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]
_THIRTY = ((0.8660254, 0.5, 0.0), (-0.5, 0.8660254, 0.0))


class Pair(_Schema):
    x: float
    y: float


class Parts(_Schema):
    """What a matrix does: its linear part is rotation . shear . scale."""

    rotation_degrees: float = Field(
        description="Of the picture as it was sent, relative to upright; positive counter-clockwise as seen.",
        examples=[30.0],
    )
    translation: Pair = Field(description="Fractions of the width of the model's frame, y down.")
    scale: Pair = Field(description="1: as large as upright pictures are.")
    shear_degrees: float = Field(examples=[0.0])


class Mode(Parts):
    weight: float = Field(gt=0, description="Share of the posterior; under 0.0001 a mode is left out.")
    matrix: Matrix


class Uncertainty(_Schema):
    """Standard deviations over the whole posterior; only what the model's group has."""

    rotation_degrees: float = Field(
        description="Root mean square deviation from the best mode's, the short way round; 103.9 where every angle is "
        "as likely as any other.",
        examples=[2.5],
    )
    translation: Pair | None = Field(default=None, description="Fractions of the width of the model's frame.")
    scale: Pair | None = Field(default=None, description="Relative: of the natural logarithm.")
    shear_degrees: float | None = None


class Transform(Parts):
    """How the content of a picture lies: the best mode, and what else it may be."""

    group: Group = Field(description="The transforms that the model knows.")
    matrix: Matrix = Field(
        description="From the canonical frame to the picture in the model's frame, both normalised: x right, y down, "
        "-1 and 1 at the edges.",
        examples=[_THIRTY],
    )
    uncertainty: Uncertainty
    modes: list[Mode] = Field(description="As many as this picture has, best first.")
    frame: Matrix = Field(
        description="From the model's frame, normalised, to pixels of the picture as it is seen (0, 0 is the centre of "
        "the first one): frame times matrix takes the canonical frame to the picture.",
        examples=[((300.0, 0.0, 599.5), (0.0, 300.0, 449.5))],
    )


class TransformAnswer(_ImageAnswer, Transform):
    pass


class UprightAnswer(_Schema):
    """The picture that was sent, upright, at its own resolution and in its own kind."""

    media_type: Literal["image/png", "image/jpeg"]
    width: int
    height: int
    data: str = Field(description="The file as base64.")
    matrix: Matrix = Field(
        description="From pixels of this picture to pixels of the sent one as it is seen; centres are integers."
    )


class CanonicalizeAnswer(_ImageAnswer):
    transform: Transform
    canonical: PictureAnswer = Field(description="The content as the model understands it, upright, at its own size.")
    upright: UprightAnswer


class Variant(_Schema):
    """The picture that was sent as it may plausibly lie, at its own resolution and in its own kind."""

    media_type: Literal["image/png", "image/jpeg"]
    width: int = Field(examples=[1200])
    height: int = Field(examples=[900])
    data: str = Field(description="The file as base64.", examples=[EXAMPLE_PNG])
    matrix: Matrix = Field(
        description="From pixels of this picture to pixels of the sent one as it is seen; centres are integers.",
        examples=[((0.966, 0.259, -96.0), (-0.259, 0.966, 171.0))],
    )


class AugmentAnswer(_ImageAnswer):
    seed: int = Field(ge=0, description="Of the noise: with it the same variants are drawn again.", examples=[7])
    variants: list[Variant] = Field(min_length=1, description="Drawn independently of each other.")


class RecombineInputs(_Schema):
    content: InputDescription
    style: InputDescription


class RecombineAnswer(_Answer):
    input: RecombineInputs
    image: PictureAnswer


class Problem(BaseModel):
    """RFC 9457; further members depend on the type."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:equipoise:problem:corrupt-image"])
    title: str = Field(examples=["The picture is truncated or damaged"])
    status: int = Field(examples=[400])
    detail: str
    instance: str | None = Field(default=None, examples=["urn:request:4f1c9a-1"])


class ProtocolError(_Schema):
    """Below /v2 an error is what the inference protocol says."""

    error: str


class ProblemInPlace(_Schema):
    """Stands for one bad picture of a batch."""

    problem: Problem


Answer = TypeVar("Answer", bound=BaseModel)


class Batch(_Schema, Generic[Answer]):
    results: list[Answer | ProblemInPlace]


class ModelDescription(_Schema):
    name: str
    version: int
    kind: str
    capabilities: list[str]
    input: InputSpec
    preprocessing: Preprocessing
    labels: list[str]
    metrics: dict[str, Any] = Field(description="As its maker measured them, with their protocol.")
    data: dict[str, Any]
    licence: str
    created: str = Field(description="ISO 8601, UTC.")


class RefusedModel(_Schema):
    model: str
    version: int | None = Field(description="null: the folder above the versions, or one in it that is none.")
    reason: str


class ModelsAnswer(_Schema):
    models: list[ModelDescription] = Field(description="What serves, one version a model.")
    refused: list[RefusedModel] = Field(description="Model folders that do not serve, with the reason.")
    defaults: dict[str, str | None] = Field(
        description="The model that answers where a request names none; null where the request has to."
    )


class Started(_Schema):
    status: Literal["started"] = "started"


class Alive(_Schema):
    status: Literal["alive"] = "alive"


class Ready(_Schema):
    status: Literal["ready"] = "ready"
    models: list[str] = Field(description="name/version of each model that serves.")
    devices: list[str] = Field(description="Where graphs run.", examples=[["cuda:0"]])
    fallback: str | None = Field(
        default=None, description="Why graphs run on the CPU although the device was left to the service to find."
    )
    strays: list[str] = Field(
        default=[], description="Nodes on the CPU beside a GPU, as model/version.graph: node (operator)."
    )
