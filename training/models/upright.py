"""Upright: the rotation of pictures whose right way up is known in training; an MCE-VAE's pose without its decoder.

    picture x [N,C,S,S] --extractor--> q(tau|x), one probability a bin of the circle
    x, modes of q --resample--> rectified picture

The extractor is exchangeable. Two are equivariant by construction: `lifted` (training/models/lifted.py) reads
letters, `polar` (training/models/polar.py) shapes. `convolutional` is not, and sees what the frame tells of the
angle. The loss is cross-entropy with a posterior that is `target_degrees` wide about the true angle; pictures without
an orientation are taught the uniform one. There is no canonical picture to decode, so the rectified one is served in
its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from contract.manifest import InputSpec
from training.datasets.rotnet import as_rotnet_draws
from training.lie import exponential
from training.models.base import Model
from training.models.lifted import DRAWS, Lifted
from training.models.polar import AngleNet, PolarSampler
from training.models.pose import Canonical, Pose, without_decoder
from training.models.upright_config import ConvolutionalConfig, PolarConfig, UprightConfig
from training.networks import ConvBody, exactly, he_initialise
from training.outliers import outliers
from training.rotation import bin_angles, calibrated, coverage_factor, deviation, find_modes, wrapped
from training.turned import FLIP_DEGREES, error_figures, move, move_by_two, require_upright, similarity, uniform

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["Upright"]

CHUNK = 500  # images a forward pass where no gradient is kept


class Polar(nn.Module):
    """Log posterior of the rotation: [N,C,S,S] -> log q [N,B], origin [N]; bin j stands for origin + 2 pi j / B."""

    def __init__(self, config: PolarConfig, channels: int, side: int) -> None:
        super().__init__()
        self.sampler = PolarSampler(side, 1.0, config.radii, config.angles)
        self.net = AngleNet(channels * config.radii, config.width, config.kernel, config.dilations)

    def forward(
        self, images: Tensor, turns: Tensor | None = None, draws: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        middle = torch.zeros(1, 2).to(images).expand(images.shape[0], 2)
        with exactly(images):
            polar = self.sampler(images, middle)
        return torch.log_softmax(self.net(polar).float(), 1), middle[:, 0]


class Convolutional(nn.Module):
    """Log posterior of the rotation: [N,C,S,S] -> log q [N,B], origin 0 [N]; bin j stands for 2 pi j / B."""

    def __init__(self, config: ConvolutionalConfig, channels: int, side: int) -> None:
        super().__init__()
        self.body = ConvBody(channels, side, config.filters, config.strides, config.kernel, norm=True)
        self.head = nn.Linear(self.body.out_features, config.bins)
        he_initialise(self)
        nn.init.zeros_(self.head.weight)

    def forward(
        self, images: Tensor, turns: Tensor | None = None, draws: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits = self.head(self.body(images)).float()
        return torch.log_softmax(logits, 1), 0 * logits[:, 0]  # of zeros an exported graph has a fixed number


EXTRACTORS: dict[str, Callable[..., nn.Module]] = {"lifted": Lifted, "polar": Polar, "convolutional": Convolutional}


class Upright(Model):
    """The model of a whole configuration; square pictures only."""

    protocol = (
        "rotation_error (mean), _median (degrees) and _flips (% over 90): the angle found against the known one, "
        "pictures turned by any angle",
    )

    std_factor: Tensor

    def __init__(self, config: UprightConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.input = input
        if config.rotnet_share and input.channels > 1:
            raise ValueError("model.rotnet_share is for grey pictures: RotNet draws no others")
        self.extractor = EXTRACTORS[config.extractor.kind](config.extractor, input.channels, input.height)
        self.register_buffer("std_factor", torch.ones(()))

    def prepare(self, train: LabelledImages) -> None:
        """Nothing to take from the training set.

        Raises:
            ValueError: RotNet is to draw pictures that are not upright.
        """
        if self.config.rotnet_share:
            require_upright(train, "model.rotnet_share")

    # --- one step of training -------------------------------------------------------------------------------------

    def batch(self, data: LabelledImages, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Pictures turned by known angles.

        Pictures of known turn (`data.turns`) are turned on by quarters or, resampled, by any angle, in the shares of
        the configuration; others count as upright and are all resampled, or drawn by RotNet's generator.

        Returns:
            views [B,C,S,S] and their turns [B] in radians; where they are asked for outliers [O,C,S,S]; draws
            [B+O,DRAWS] in [-1,1], from which the extractor makes its distortions.
        """
        config, count = self.config, len(indices)
        images = data.images[indices].float() / 255
        turns = torch.zeros(count) if data.turns is None else data.turns[indices]
        quarters = torch.randint(4, (count,), generator=generator)
        resampled = torch.rand(count, generator=generator) >= (0.0 if data.turns is None else config.quarters)
        rotation = torch.where(resampled, uniform(count, math.pi, generator), quarters * (math.pi / 2))
        scale = 1 + uniform(count, config.nuisance_scale, generator)
        matrix = similarity(rotation, 2 * uniform(count, config.nuisance_shift, generator, columns=2), scale)
        bicubic = torch.rand(count, generator=generator) < 0.5
        views = torch.empty_like(images)
        for quarter in range(4):
            chosen = ~resampled & (quarters == quarter)
            views[chosen] = torch.rot90(images[chosen], quarter, (2, 3))
        views[resampled] = move_by_two(images[resampled], matrix[resampled], bicubic[resampled])
        turns = turns + rotation
        if config.rotnet_share:
            drawn = torch.rand(count, generator=generator) < config.rotnet_share
            degrees = torch.rad2deg(turns[drawn]).round()
            views[drawn], turns[drawn] = as_rotnet_draws(data.images[indices[drawn]], degrees), torch.deg2rad(degrees)
        batch = {"views": views, "turns": turns}
        others = round(config.outlier_share * count)
        if others:
            batch["outliers"] = outliers(views[:others], generator)
        return {**batch, "draws": uniform(count + others, 1.0, generator, columns=DRAWS)}

    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Cross-entropy of the rotation, in nats an image.

        Returns:
            the scalars loss, pose, and outlier where there are any (nats above the uniform posterior's).
        """
        views, turns = batch["views"], batch["turns"]
        if "outliers" in batch:
            views = torch.cat([views, batch["outliers"]])
        unknown = turns.new_zeros(len(views) - len(turns))
        log_posterior, origin = self.extractor(views, torch.cat([turns, unknown]), batch["draws"])
        known, others = log_posterior[: len(turns)], log_posterior[len(turns) :]
        difference = wrapped(bin_angles(known.shape[1]).to(known) + (origin[: len(turns)] - turns)[:, None])
        width = math.radians(self.config.target_degrees)
        terms = {"pose": -(torch.softmax(torch.cos(difference) / width**2, 1) * known).sum(1).mean()}
        loss = terms["pose"]
        if len(others):
            terms["outlier"] = -others.mean() - math.log(others.shape[1])
            loss = loss + self.config.outlier_share * terms["outlier"]
        return {"loss": loss, **terms}

    # --- what is served -------------------------------------------------------------------------------------------

    def pose(self, images: Tensor) -> Pose:
        """[N,C,S,S] -> the rotation of each picture, with its uncertainty; after `calibrate`."""
        log_posterior, origin = self.extractor(images)
        posterior = torch.exp(log_posterior)
        modes, weights = find_modes(posterior, self.config.modes)
        angles = wrapped(modes + origin[:, None])
        std = calibrated(deviation(posterior, modes[:, 0]), self.std_factor)
        matrices = exponential("SO2", angles.reshape(-1, 1)).reshape(-1, self.config.modes, 2, 3)
        return Pose(angles[:, :1], std[:, None], matrices[:, 0], matrices, weights)

    def canonicalize(self, images: Tensor) -> Canonical:
        """[N,C,S,S] -> pose and rectified picture, which is the canonical one too."""
        return without_decoder(images, self.pose(images))

    # --- over a data set ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, train: LabelledImages, validation: LabelledImages) -> dict[str, float]:
        """Figures of the validation set in evaluation mode; the config's `metrics` names them, `protocol` tells how."""
        was_training = self.training
        self.eval()
        errors, _ = self._errors(validation)
        self.train(was_training)
        return error_figures(errors, "rotation")

    def _errors(self, data: LabelledImages) -> tuple[Tensor, Tensor]:
        """Error and standard deviation of the angle, degrees [N] each. Pictures of unknown turn are turned first."""
        source = torch.Generator().manual_seed(0)
        errors, stds = [], []
        for images, turns in _chunks(data, self.std_factor.device):
            if turns is None:
                turns = uniform(len(images), math.pi, source).to(images)
                images = move(images, similarity(turns))
            pose = self.pose(images)
            errors.append(wrapped(pose.coefficients[:, 0] - turns))
            stds.append(pose.coefficients_std[:, 0])
        return torch.rad2deg(torch.cat(errors)).cpu(), torch.rad2deg(torch.cat(stds)).cpu()

    @torch.no_grad()
    def calibrate(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Fit the factor of the standard deviation: 68.3 % of the errors, flips apart, lie within one."""
        self.eval()
        self.std_factor.fill_(1.0)
        error, std = self._errors(validation)
        same = error.abs() < FLIP_DEGREES / 2
        if same.any():
            self.std_factor.copy_(coverage_factor(error.abs()[same], std[same]))


def _chunks(data: LabelledImages, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images [N,C,H,W] in [0,1] and, where they are known, their turns [N], `CHUNK` at a time."""
    for start in range(0, len(data.labels), CHUNK):
        rows = slice(start, start + CHUNK)
        turns = None if data.turns is None else data.turns[rows].to(device)
        yield data.images[rows].to(device).float() / 255, turns
