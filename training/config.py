"""One training run: what its sections `name`, `recipe`, `data`, `model` and `fit` may hold, checked strictly."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from contract.manifest import Preprocessing
from training.models.equivae_config import EquiVAEConfig, FewLabelsConfig
from training.models.mcevae_config import MCEVAEConfig
from training.models.mcevae_paper_config import MCEVAEPaperConfig
from training.models.plain_vae_config import PlainVAEConfig
from training.models.symmetry_config import SymmetryConfig, TwoStageConfig
from training.models.upright_config import UprightConfig

ModelConfig = Annotated[
    EquiVAEConfig | MCEVAEConfig | MCEVAEPaperConfig | PlainVAEConfig | SymmetryConfig | TwoStageConfig | UprightConfig,
    Field(discriminator="kind"),
]

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

Precision = Literal["32-true", "bf16-mixed"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    exclude: tuple[str, ...] = Field(default=(), description="classes to leave out, by name")
    canvas: int | None = Field(
        default=None, ge=4, le=1024, description="side to which the pictures are padded with 0, pixels"
    )
    labels: int | None = Field(default=None, ge=4, description="training labels to keep, class-balanced; null: all")
    label_seed: Seed = Field(default=0, description="seed of which labels are kept")
    photograph_seed: Seed | None = Field(
        default=None, description="lay grey pictures in random colours over photographs, drawn by this seed; null: not"
    )


class DigitsData(Data):
    source: Literal["digits"]
    split_seed: Seed = Field(default=0, description="seed of the division into train, validation and test")


class MnistData(Data):
    source: Literal["mnist"]
    path: Path | None = Field(default=None, description=".npz file, or folder of it or of idx files; else downloaded")


class SvhnData(Data):
    source: Literal["svhn"]
    path: Path | None = Field(default=None, description="folder of train_32x32.mat and test_32x32.mat; else downloaded")


class FolderData(Data):
    source: Literal["folder"]
    path: Path = Field(description="folder of one folder a class, or of train/ and test/ with those inside")
    size: int = Field(ge=4, le=1024, description="height and width of the model's input, pixels")
    channels: Literal[1, 3] = Field(default=1, description="1: grey, 3: colour")
    preprocessing: Preprocessing = Field(
        default=Preprocessing(polarity="none", fit="image", margin=0.0),
        description="what a picture goes through first: how light ink and ground are to be, what fills the frame "
        "(the whole image, or its content by box, circle or centre of mass), and the free share on every side",
    )
    validation: float = Field(default=0.1, gt=0, lt=1, description="share of every class held out")
    split_seed: Seed = Field(default=0, description="seed of which these are")

    @field_validator("preprocessing")
    @classmethod
    def _every_size_is_framed(cls, preprocessing: Preprocessing) -> Preprocessing:
        """A folder may hold pictures of many sizes: those that happen to have the model's own are no exception."""
        if "own_size" in preprocessing.model_fields_set:
            return preprocessing
        return preprocessing.model_copy(update={"own_size": "framed"})


class TextData(Data):
    source: Literal["text"]
    path: Path = Field(default=Path("/usr/share/fonts"), description="folder of the fonts, in any depth")
    size: int = Field(default=96, ge=32, le=256, description="height and width of the model's input, pixels")
    train: int = Field(default=40_000, ge=8, description="crops drawn for training")
    validation: int = Field(default=2_000, ge=8, description="crops drawn for validation")
    test: int = Field(default=2_000, ge=8, description="crops drawn for the test, in fonts that training never sees")
    seed: Seed = Field(default=0, description="of everything that is drawn")
    made_up: Share = Field(default=0.5, description="share of made-up words in training; elsewhere 0.5")
    more: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="script -> factor by which training draws it more often than validation and test do"
    )


DataConfig = Annotated[DigitsData | MnistData | SvhnData | FolderData | TextData, Field(discriminator="source")]


class Optimiser(Section):
    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0, description="on weights of two or more dimensions only")
    betas: tuple[Decay, Decay] = (0.9, 0.999)

    @model_validator(mode="after")
    def _decay_belongs_to_adamw(self) -> Self:
        if self.kind == "adam" and self.weight_decay:
            raise ValueError("weight_decay needs kind: adamw (in adam it would be an L2 term of the loss)")
        return self


class Constant(Section):
    kind: Literal["constant"]


class Cosine(Section):
    kind: Literal["cosine"]
    warmup: Share = Field(default=0.05, description="share of the steps over which the rate rises linearly from 0")
    final: Share = Field(default=0.0, description="rate at the end, as a share of learning_rate")


class BatchDoubling(Section):
    kind: Literal["batch-doubling"]
    after_epochs: tuple[Annotated[int, Field(ge=1)], ...] = Field(description="the batch doubles after each of these")


Schedule = Annotated[Constant | Cosine | BatchDoubling, Field(discriminator="kind")]


class Fit(Section):
    seed: Seed = Field(default=1, description="weights, order, augmentation and noise all follow from it")
    epochs: int | None = Field(default=None, ge=1, description="passes over the training images")
    steps: int | None = Field(default=None, ge=1, description="optimiser steps, instead of epochs")
    batch: int = Field(
        default=32, ge=2, description="images a step over all devices, fewer of small sets and to divide evenly"
    )
    order: Literal["shuffled", "balanced"] = Field(default="shuffled", description="balanced: each class equally often")
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Constant(kind="constant")
    clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of the averaged weights a step; null: none")
    validate_epochs: float = Field(default=1.0, gt=0, description="epochs between two validations")
    patience: int | None = Field(default=None, ge=1, description="validations without a better one before stopping")
    keep: Literal["best", "last"] = Field(default="last", description="which weights become the model")
    select: str = Field(default="error", description="validation metric that best and patience go by")
    select_mode: Literal["min", "max"] = Field(default="min", description="which of its ends is better")
    initial: Path | None = Field(
        default=None,
        description="finished run of the same shape whose weights to begin with, on this data's statistics; {seed} is "
        "this run's seed",
    )
    checkpoint_steps: int = Field(default=500, ge=1, description="steps between two checkpoints")
    log_steps: int = Field(default=50, ge=1, description="steps over which the logged terms are averaged")
    accelerator: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    devices: int = Field(default=1, ge=1, description="processes, each with its GPU or its share of the cores (DDP)")
    precision: Precision = Field(default="32-true", description="reduced on GPUs and on CPUs with AVX512_BF16 alone")
    channels_last: bool = Field(default=False, description="memory layout of images and weights")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; null: torch's own choice")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, the other as null")
        return self

    @property
    def initial_run(self) -> Path | None:
        """`initial` of this seed."""
        return None if self.initial is None else Path(str(self.initial).replace("{seed}", str(self.seed)))


# The keys of `fit` that may differ between a run and its resumption: both are still of one recipe. Most of them change
# what is computed by rounding alone. Two change more. By `accelerator` the noise differs, since each kind of device has
# its own generator. By `devices` the draws, batch norm and the means of classes differ, since each device takes its own
# share of the batch. Where their number would change a balanced batch, the checkpoint is refused.
RUNTIME_KEYS = frozenset({"accelerator", "devices", "threads", "checkpoint_steps", "log_steps"})


class Config(Section):
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$", description="name of the served model")
    recipe: str = Field(min_length=1, description="what the model card calls it: paper, ours, ...")
    data: DataConfig
    model: ModelConfig
    fit: Fit

    @model_validator(mode="after")
    def _model_measures_what_is_selected(self) -> Self:
        known = self.model.metrics
        if self.fit.select not in known:
            message = f"{self.model.kind} measures {', '.join(map(repr, known))}, not {json.dumps(self.fit.select)}"
            raise PydanticCustomError("unknown_metric", "{message}", {"message": message, "at": ("fit", "select")})
        return self

    @property
    def depends_on_unlabelled(self) -> bool:
        """Whether `for_data` may add to the recipe."""
        return isinstance(self.model, EquiVAEConfig) and self.model.few_labels is None

    def for_data(self, *, unlabelled: bool) -> Self:
        """If there are unlabelled images and no `few_labels` section, add one: by consistency where the recipe has what
        that needs, augmentation and distances that are trained, or else as the paper has it.
        """
        model = self.model
        if not unlabelled or not isinstance(model, EquiVAEConfig) or not self.depends_on_unlabelled:
            return self
        if model.augment is None or not model.distance_weight:
            recipe, few = f"{self.recipe}, unlabelled pictures by Eqs. 6 and 7", FewLabelsConfig()
        else:
            recipe = f"{self.recipe}, consistency on unlabelled pictures"
            few = FewLabelsConfig.by_consistency(model.augment)
        return self.model_copy(update={"recipe": recipe, "model": model.model_copy(update={"few_labels": few})})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, defaults included: what is stored beside the weights."""
        return self.model_dump(mode="json")

    def portable(self) -> dict[str, Any]:
        """As `as_dict`, without where anything lies on this machine: what a model folder tells of its training."""
        return _without_places(self.as_dict())

    def identity(self) -> dict[str, Any]:
        """What the result is of: everything except where it runs, how often it logs and where the data lies."""
        return _deciding(self.as_dict())

    def digest(self) -> str:
        """SHA-256 of the identity without the seeds of `with_seed`: runs of one digest differ by these alone.

        Values at their defaults are left out, so that finished runs keep their digest when an option is added.
        """
        plain = _deciding(self.model_dump(mode="json", exclude_defaults=True))
        plain["fit"].pop("seed", None)
        plain["data"].pop("label_seed", None)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def with_seed(self, seed: int) -> "Config":
        """Another run of the same: with few labels, other images keep theirs."""
        drawn = {} if self.data.labels is None else {"label_seed": seed}
        fit, data = self.fit.model_copy(update={"seed": seed}), self.data.model_copy(update=drawn)
        return self.model_copy(update={"fit": fit, "data": data})


def _deciding(plain: dict[str, Any]) -> dict[str, Any]:
    plain["fit"] = {key: value for key, value in plain["fit"].items() if key not in RUNTIME_KEYS}
    return _without_places(plain)


def _without_places(plain: dict[str, Any]) -> dict[str, Any]:
    """No path of the data, and of the run whose weights come first its name alone."""
    plain["data"].pop("path", None)
    if plain["fit"].get("initial"):
        plain["fit"]["initial"] = Path(plain["fit"]["initial"]).name
    return plain


def restore_config(values: dict[str, Any]) -> Config:
    """The inverse of `Config.as_dict`, for values from a run's own files.

    Raises:
        ValueError: naming the first key that is wrong, or that another version had.
    """
    try:
        return Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"configuration, {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
