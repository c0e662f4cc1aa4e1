"""What a configuration file says of an EquiVAE under `model:`; training/models/equivae.py says what it means."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from training.augment_config import AugmentConfig
from training.models.config_checks import ModelSection, Size, check_kernel, check_strides

__all__ = [
    "ConvBodyConfig",
    "DenseBodyConfig",
    "DenseDecoderConfig",
    "EquiVAEConfig",
    "FewLabelsConfig",
    "LayeredDecoderConfig",
    "TransposedDecoderConfig",
]


class ConvBodyConfig(ModelSection):
    """Convolutions, then one dense layer of `hidden` units; the defaults are App. B's."""

    kind: Literal["convolution"] = "convolution"
    filters: tuple[Size, ...] = (8, 16, 32, 64, 64)
    strides: tuple[Size, ...] = (1, 2, 2, 2, 2)
    kernel: Size = 5
    norm: bool = False
    pool: Literal["flatten", "depthwise"] = "flatten"
    unpadded: int = Field(default=0, ge=0, description="how many of the last convolutions have no padding")
    hidden: Size = 128

    @model_validator(mode="after")
    def _consistent(self) -> ConvBodyConfig:
        check_kernel(self.kernel)
        check_strides(self.filters, self.strides)
        if self.unpadded > len(self.filters):
            raise ValueError(f"unpadded is {self.unpadded}, of {len(self.filters)} convolutions")
        return self


class DenseBodyConfig(ModelSection):
    """Dense layers on the pixels."""

    kind: Literal["dense"]
    widths: tuple[Size, ...] = Field(min_length=1)


class TransposedDecoderConfig(ModelSection):
    """App. B's decoder; the last filter count is the image's channels and is not listed."""

    kind: Literal["transposed"] = "transposed"
    filters: tuple[Size, ...] = (64, 32, 16, 8)
    hidden: Size = 64
    units: Size = 128


class DenseDecoderConfig(ModelSection):
    kind: Literal["dense"]
    widths: tuple[Size, ...]


class LayeredDecoderConfig(ModelSection):
    """Strokes of one colour over a ground; `widths` are of their opacity, `ground_widths` of ground and colour each."""

    kind: Literal["layered"]
    widths: tuple[Size, ...]
    ground_widths: tuple[Size, ...]


class FewLabelsConfig(ModelSection):
    """Training with unlabelled images (training/models/equivae_few.py); the defaults are the paper's, d = 8 apart."""

    encoder: ConvBodyConfig | None = Field(default=ConvBodyConfig(), description="of q(y|x); null: on f_inv(x) alone")
    widths: tuple[Size, ...] = (128, 64)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    unlabelled_batch: int = Field(default=32, ge=1, description="unlabelled images a step")
    decoded: int | None = Field(
        default=None, ge=1, description="how many of them enter Eq. 6 (one decoder pass per class each); null: all"
    )
    unlabelled_weight: float = Field(default=1.0, ge=0, description="1 is Eq. 7")
    labels_first: float = Field(
        default=0.0, ge=0, le=1, description="share of the training in which q(y|x) learns of labels alone"
    )
    consistency_weight: float = Field(default=0.0, ge=0, description="nats; 0 is the paper's objective")
    threshold: float = Field(default=0.95, ge=0, le=1, description="probability from which q(y|x) counts as sure")
    align: bool = Field(default=False, description="hold the class shares of the guesses to the prior")
    strong: AugmentConfig | None = Field(default=None, description="of the copies that must agree")

    @classmethod
    def by_consistency(cls, augment: AugmentConfig) -> FewLabelsConfig:
        """Unlabelled images teach f_inv, by which the model answers, through consistency alone.

        By Eq. 6 it learns nothing of them; and under a Gaussian likelihood, where classes differ by hundreds of nats,
        q(y|x) learns whatever class decodes best. So q(y|x) learns of labels and of consistency.
        """
        return cls(
            encoder=None,
            dropout=0.1,
            unlabelled_batch=100,
            decoded=16,
            labels_first=1,
            consistency_weight=20,
            threshold=0.9,
            strong=augment.stronger(),
        )


class EquiVAEConfig(ModelSection):
    """The model and its objective; the defaults are the paper's for MNIST."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `validate` measures."""
        of_all = ("error", "reconstruction", "kl", "elbo", "active_dims")
        return of_all if self.few_labels is None else (*of_all, "classifier_error")

    group: ClassVar[None] = None

    kind: Literal["equivae"]
    r_dim: int = Field(16, ge=1, description="dimensions of the invariant r")
    v_dim: int = Field(16, ge=1, description="dimensions of the equivariant v")
    complements: Literal["encoded", "in_batch", "own"] = Field(
        "encoded", description="of whom r is the mean: other members of the class, those in the batch, or x itself"
    )
    max_complements: int = Field(7, ge=1, description="m is drawn from 1 to this")
    likelihood: Literal["bernoulli", "gaussian"] = Field("bernoulli", description="of a pixel; gaussian for colour")
    encoder: ConvBodyConfig = Field(ConvBodyConfig(), description="f_inv")
    encoder_head: int = Field(64, ge=1, description="units of f_inv's layer after the mean")
    posterior: Annotated[
        ConvBodyConfig | DenseBodyConfig, Field(discriminator="kind", description="what q(v|r,x) sees of x")
    ] = ConvBodyConfig()
    posterior_hidden: int = Field(64, ge=1, description="units of its layer on that and r")
    decoder: Annotated[
        TransposedDecoderConfig | DenseDecoderConfig | LayeredDecoderConfig, Field(discriminator="kind")
    ] = TransposedDecoderConfig()
    distance_weight: float = Field(0.0, ge=0, description="nats; 0 is the paper's objective")
    reject_distance: float | None = Field(None, gt=0, description="squared distance of the class of outliers")
    outlier_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="outliers a batch, as a share of its images; made up, half of them the data's own where it has any",
    )
    outliers_as_content: float = Field(
        0.0, ge=0, le=1, description="share of the outliers that come as the content of a page does"
    )
    class_mean_weight: float = Field(0.0, ge=0, description="nats a unit of squared class mean of mu(v)")
    swap_weight: float = Field(0.0, ge=0, description="nats; needs distance_weight")
    swap_share: float = Field(0.2, gt=0, le=1, description="pictures made for the swap term, as a share of the batch")
    augment: AugmentConfig | None = Field(None, description="random changes of the training images; null: none")
    few_labels: FewLabelsConfig | None = Field(None, description="set where some training images have no label")

    @model_validator(mode="after")
    def _consistent(self) -> EquiVAEConfig:
        extras = ("augment", "distance_weight", "outlier_share", "class_mean_weight")
        if self.complements == "encoded" and any(getattr(self, name) for name in extras):
            raise ValueError(f"{', '.join(extras)} need complements: in_batch")
        if self.swap_weight and not self.distance_weight:
            raise ValueError("swap_weight needs distance_weight: it uses that classifier")
        if bool(self.outlier_share) != (self.reject_distance is not None):
            raise ValueError("outlier_share and reject_distance go together")
        if self.outliers_as_content and not self.outlier_share:
            raise ValueError("outliers_as_content needs outlier_share")
        if self.outlier_share and not self.distance_weight:
            raise ValueError("outlier_share needs distance_weight: outliers enter no other term of the loss")
        few = self.few_labels
        if few is not None and few.consistency_weight and (few.strong is None or self.augment is None):
            raise ValueError("few_labels.consistency_weight needs strong and, for the weak copies, augment")
        return self
