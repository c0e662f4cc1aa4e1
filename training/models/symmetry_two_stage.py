"""The symmetry-transformation model of groups up to affine, by the later paper's two stages (Allingham et al., "A
generative model of symmetry transformations", NeurIPS 2024, Algorithm 1).

    x [N,C,S,S] --centroid of the ink, polar net, and for AFF5 convolutions on the upright picture--> A(x)
    x, A(x) --resample--> prototype x^ --dense, circular and linear spline flow--> p(eta|x^)

Why two stages: of the ELBO that training/models/symmetry.py has, its authors found (appendix A) that it "worked well
for a single transformation but quickly broke down" for affine ones, where prototypes became rings: an encoder made
invariant by averaging cannot tell the members of so large an orbit.

First stage, self-supervised: of two random transforms of one picture, R1 x and R2 x, the way back through one prototype
should lead to x itself: mse(x, T x) with T = R2^-1 A(R2 x) A(R1 x)^-1 R1, composed as matrices and resampled once, over
`ssl_samples` transforms in a ring. Of the rotation the expectation over both posteriors is taken, exactly, from the
distance of x to itself at every angle: what looks the same after half a turn costs nothing, and a flip has a gradient.
The polar net is equivariant by construction and so a hundredth of the paper's 4.4 million parameters.

Second stage, maximum likelihood with the first frozen: -log p(eta_x | x^') over random re-canonicalisations x^' of x,
and `consistency` times the mean difference of their log densities.

What is up. The prototype's frame is arbitrary after the first stage; the flow knows how the data lie about it. Without
unequal scales, where matrices and coefficients compose, the highest mode of p(rotation|x^) is taken for upright.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contract.manifest import InputSpec
from training.flow import PoseFlow
from training.lie import DIMENSIONS, compose, exponential, inverse, resample
from training.models.base import Model
from training.models.polar import AngleNet
from training.models.pose import Canonical, Pose, without_decoder
from training.models.symmetry_config import TwoStageConfig
from training.models.symmetry_parts import CHUNK, Correlator, fit_smoothing, variants
from training.moments import moments
from training.networks import ConvBody, dense, exactly, he_initialise
from training.rotation import bin_angles, calibrated, deviation, find_modes, wrapped
from training.turned import PROBE_DEGREES, error_figures, move, relative_error, require_upright, similarity, uniform

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["SymmetryTwoStage"]

MOST_LOG_SCALE = 0.7  # of either axis


class Found(NamedTuple):
    """Coefficients [N,G], and the matrix [N,2,3] that is their exponential."""

    coefficients: Tensor
    matrix: Tensor


class SymmetryTwoStage(Model):
    """The model of a whole configuration; square pictures of light ink on black."""

    protocol = (
        "relative_error_60, _median_60 (degrees) and _flips_60 (% over 90): angle found in a picture and in it turned "
        "by U(+-60), their difference against the turn: nothing is said of the frame",
        "canonical_mse: prototypes of a picture and of it under a random transform",
        "flow: -log p(eta|x^) in nats of pictures transformed as in training; flow_consistency: mean difference of two "
        "re-canonicalisations",
    )

    angles: Tensor
    smoothing: Tensor
    std_factor: Tensor
    rest_std: Tensor

    def __init__(self, config: TwoStageConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.input = input
        side, channels, encoder, flow = input.height, input.channels, config.encoder, config.flow
        self.correlator = Correlator(side, encoder.radii, encoder.angles, channels)
        self.angle_net = AngleNet(channels * encoder.radii, encoder.width, encoder.kernel, encoder.dilations)
        if config.group == "AFF5":
            filters = config.scale_filters
            self.scale_body = ConvBody(channels, side, filters, [2] * len(filters), 3, norm=True)
            self.scale_head = nn.Linear(self.scale_body.out_features, 2)
            nn.init.zeros_(self.scale_head.weight)
            nn.init.zeros_(self.scale_head.bias)
        self.features = dense(channels * side**2, *flow.features)
        he_initialise(self.features)
        self.prior = PoseFlow(DIMENSIONS[config.group], flow.features[-1], flow.hidden, flow.bins, flow.transforms)
        self.register_buffer("angles", bin_angles(encoder.angles // 2), persistent=False)
        self.register_buffer("smoothing", torch.ones(()))
        self.register_buffer("std_factor", torch.ones(()))
        self.register_buffer("rest_std", torch.zeros(DIMENSIONS[config.group] - 1))
        self.poses = torch.zeros(0, 2, 3)

    # --- one step of training -------------------------------------------------------------------------------------

    def prepare(self, train: LabelledImages) -> None:
        """Draw the one transform of every training picture; shift and scale of the ink standardise the flow.

        Raises:
            ValueError: the pictures are not upright.
        """
        require_upright(train, f"model.kind: {self.config.kind}")
        config = self.config
        source = torch.Generator().manual_seed(config.turn_seed)
        self.poses = self._random(len(train), config.rotation_degrees, config.shift, config.scale, source)
        if config.group == "SO2":
            return
        chosen = torch.randperm(len(train), generator=source)[: 4 * CHUNK]
        seen = move(train.images[chosen].float() / 255, self.poses[chosen])
        coefficients = torch.zeros(len(seen), DIMENSIONS[config.group])
        coefficients[:, 1:3] = moments(seen.mean(1)).centre
        if config.group == "AFF5":
            coefficients[:, 3:] = 0.15 * torch.randn(len(seen), 2, generator=source)
        self.prior.standardise(coefficients)

    def batch(self, data: LabelledImages, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Pictures as they are seen [B,C,S,S], and the random transforms of each [B,K,2,3]."""
        config, count = self.config, len(indices)
        views = move(data.images[indices].float() / 255, self.poses[indices], mode="bicubic")
        number = max(config.ssl_samples, config.recanonicalised)
        random = self._random(count * number, 180, config.ssl_shift, config.ssl_scale, generator)
        return {"views": views, "random": random.reshape(count, number, 2, 3)}

    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Of the first stage mse and invertibility, in the second flow and consistency; means over the batch."""
        if progress < self.config.first_stage:
            return self._self_supervised(batch["views"], batch["random"], progress)
        return self._likelihood(batch["views"], batch["random"])

    def _self_supervised(self, views: Tensor, random: Tensor, progress: float) -> dict[str, Tensor]:
        config = self.config
        count, number = len(views), config.ssl_samples
        random = random[:, :number].transpose(0, 1).reshape(-1, 2, 3)  # transform after transform
        pictures = views.repeat(number, 1, 1, 1)
        with exactly(views):
            seen = move(self._blurred(pictures, progress), random)
        logits, centre = self._log_posterior(seen)
        rotation = find_modes(torch.softmax(logits, 1), 1)[0][:, 0]
        found = self._transform(seen, rotation, centre).matrix
        others = [value.roll(count, 0) for value in (random, found, logits)]  # the next transform of the same pictures
        with exactly(views):
            turn = wrapped(_rotation(random) - _rotation(others[0]))
            terms = {"turn": self._expected(views, logits, others[2], turn)}
            error = compose(compose(inverse(random), found), compose(inverse(others[1]), others[0]))
            if config.ssl_space == "coefficients":
                terms["mse"] = (error - torch.eye(2, 3).to(error)).pow(2).sum((1, 2)).mean()
                terms["turn"] = 0 * terms["turn"]
            else:
                terms["mse"] = F.mse_loss(resample(pictures, error), pictures)
            there = resample(seen, found)
            terms["invertibility"] = F.mse_loss(resample(there, inverse(found)), seen)
        loss = terms["mse"] + terms["turn"] + config.invertibility * terms["invertibility"]
        return {"loss": 100 * loss, **terms}

    def _expected(self, views: Tensor, one: Tensor, other: Tensor, turn: Tensor) -> Tensor:
        """E mse(x, T x) over both posteriors of the rotation [K*B,A/2], T = R2^-1 q2 q1^-1 R1, `turn` [K*B] R1 - R2."""
        polar = self.correlator.polar(views)
        distance = self.correlator(polar, polar)  # of x to x turned by every bin
        pairs = len(one) // len(views)
        # q of the difference of both angles, at the net's bins, in the Fourier domain.
        spectra = [torch.fft.rfft(torch.softmax(logits, 1)) for logits in (one, other)]
        difference = torch.fft.irfft(spectra[0] * spectra[1].conj(), n=one.shape[1])
        # |T| is that difference less the known one: between bins the distance is a straight line.
        places = wrapped(self.angles[None] - turn[:, None]) % (2 * math.pi) * (distance.shape[1] / (2 * math.pi))
        low = places.floor()
        share, low = places - low, low.long() % distance.shape[1]
        repeated = distance.repeat(pairs, 1)
        at = repeated.gather(1, low) * (1 - share) + repeated.gather(1, (low + 1) % distance.shape[1]) * share
        return (difference * at).sum(1).mean() / self.correlator.pixels

    def _likelihood(self, views: Tensor, random: Tensor) -> dict[str, Tensor]:
        config = self.config
        count, number = len(views), config.recanonicalised
        was_training = self.training
        self.eval()
        with torch.no_grad(), exactly(views):
            eta, prototypes = self._recanonicalised(views, random[:, :number])
        self.train(was_training)
        with exactly(views):
            density = self._log_density(prototypes, eta).reshape(number, count)
        gaps = (density[:, None] - density).abs().mean()
        terms = {"flow": -density.mean(), "flow_consistency": gaps}
        return {"loss": terms["flow"] + config.consistency * gaps, **terms}

    def _recanonicalised(self, views: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
        """Transforms R [B,K,2,3] -> coefficients of the pose of x about the prototype of R x [K*B,G], those prototypes.

        The prototype of R x is x resampled with B = R^-1 A(R x), and B is also how x lies about it.
        """
        number = random.shape[1]
        random = random.transpose(0, 1).reshape(-1, 2, 3)
        pictures = views.repeat(number, 1, 1, 1)
        seen = move(pictures, random)
        back = compose(inverse(random), self._found(seen).matrix)
        prototypes = resample(pictures, back)
        rotation, centre = _rotation(back), back[:, :, 2]
        scales = self._found(pictures).coefficients[:, 3:] if self.config.group == "AFF5" else None
        return self._resolved(rotation, centre, scales).coefficients, prototypes

    # --- the parts ------------------------------------------------------------------------------------------------

    def _random(self, count: int, degrees: float, shift: float, scale: float, source: torch.Generator) -> Tensor:
        """Random transforms of the group: [count,2,3]"""
        group = self.config.group
        columns = [uniform(count, math.radians(degrees), source)[:, None]]
        if group != "SO2":
            columns.append(2 * uniform(count, shift, source, columns=2))
        if group == "AFF5":
            columns.append(uniform(count, scale, source, columns=2))
        return exponential(group, torch.cat(columns, 1))

    def _blurred(self, pictures: Tensor, progress: float) -> Tensor:
        """Wide at first, so that far misses have a gradient: the deviation falls to 0 over `blurred` of the steps."""
        config = self.config
        share = 1 - progress / config.blurred if config.blurred else 0.0
        if share <= 0 or config.blur == 0:
            return pictures
        taps = torch.exp(-0.5 * (torch.arange(-2, 3).to(pictures) / (config.blur * share)) ** 2)
        taps = (taps / taps.sum()).expand(pictures.shape[1], 1, 5)
        pictures = F.conv2d(pictures, taps[:, :, :, None], padding=(2, 0), groups=len(taps))
        return F.conv2d(pictures, taps[:, :, None], padding=(0, 2), groups=len(taps))

    def _log_posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the rotation [N,A/2], and the centre [N,2] about which it turns."""
        with exactly(pictures):
            # The centroid of the ink turns, moves and scales with the picture.
            centre = 0 * pictures[:, 0, 0, :2] if self.config.group == "SO2" else moments(pictures.mean(1)).centre
            polar = self.correlator.polar(pictures, centre)
        return self.angle_net(polar).float(), centre

    def _found(self, pictures: Tensor) -> Found:
        """A(x) of [N,C,S,S]"""
        logits, centre = self._log_posterior(pictures)
        rotation = find_modes(torch.softmax(logits, 1), 1)[0][:, 0]
        return self._transform(pictures, rotation, centre)

    def _transform(self, pictures: Tensor, rotation: Tensor, centre: Tensor) -> Found:
        scales = None
        if self.config.group == "AFF5":
            with exactly(pictures):
                upright = resample(pictures, similarity(rotation, centre))
            scales = MOST_LOG_SCALE * torch.tanh(self.scale_head(self.scale_body(upright)).float())
        with exactly(pictures):
            return self._resolved(rotation, centre, scales)

    def _resolved(self, rotation: Tensor, centre: Tensor, scales: Tensor | None) -> Found:
        """Of that rotation and those scales the transform that takes the middle to `centre`."""
        group = self.config.group
        if group == "SO2":
            return Found(rotation[:, None], exponential(group, rotation[:, None]))
        rest = [] if scales is None else [*scales.unbind(1)]
        none = 0 * rotation  # not zeros_like, which exports as a subgraph of shapes
        one = none + 1
        # The shift of an exponential is V (x, y), V a matrix: what it makes of (1, 0) and (0, 1) tells it.
        both = torch.stack([torch.stack([rotation, *unit, *rest], 1) for unit in ((one, none), (none, one))], 1)
        matrices = exponential(group, both.flatten(0, 1)).reshape(-1, 2, 2, 3)
        a, c, b, d = matrices[:, :, :, 2].flatten(1).unbind(1)
        x, y = centre.unbind(1)
        determinant = a * d - b * c
        # Near half a turn of nothing but rotation V stays invertible: |V|^2 = (2 sin(t/2) / t)^2 > 0.4.
        coefficients = [rotation, (d * x - b * y) / determinant, (a * y - c * x) / determinant, *rest]
        return Found(torch.stack(coefficients, 1), torch.cat([matrices[:, 0, :, :2], centre[:, :, None]], 2))

    def _log_density(self, prototype: Tensor, eta: Tensor) -> Tensor:
        return self.prior.log_prob(self.features(prototype.flatten(1)), eta)

    def _rotation_density(self, prototype: Tensor) -> Tensor:
        """log p(rotation|x^) at the bins, normalised over them: [N,C,S,S] -> [N,A]"""
        context = self.features(prototype.flatten(1))
        places = bin_angles(self.config.encoder.angles).to(context)[:, None, None] + 0 * context[:, :1]
        return torch.log_softmax(self.prior.rotation(context).log_prob(wrapped(places)).T, 1)

    # --- what is served -------------------------------------------------------------------------------------------

    def pose(self, images: Tensor) -> Pose:
        """[N,C,S,S] -> the transform of each picture, with its modes; after `calibrate`."""
        return self._looked_at(images)[0]

    def _looked_at(self, images: Tensor) -> tuple[Pose, Tensor, Found]:
        """The pose; the prototype as the flow knows it, and the transform about it."""
        config = self.config
        found = self._found(images)
        eta = found.coefficients
        prototype = resample(images, found.matrix)
        density = self._rotation_density(prototype)
        polar = self.correlator.polar(prototype)
        # Log-likelihood that x^ turned by each bin's angle gives the same picture; below, the flow's log density of the
        # pose that implies.
        likeness = -0.5 * self.correlator(polar, polar) / (config.sigma**2 * self.smoothing)
        bins = bin_angles(config.encoder.angles).to(eta)
        near = self._density_about(density, bins, eta[:, 0])
        posterior = torch.softmax(likeness + near, 1)
        angles, weights = find_modes(posterior, config.modes)
        upright = 0 * eta[:, 0] if config.group == "AFF5" else find_modes(torch.exp(density), 1)[0][:, 0]
        rotations = wrapped(eta[:, :1] + angles - upright[:, None])
        std = calibrated(deviation(posterior, angles[:, 0]), self.std_factor)
        flat = rotations.reshape(-1)
        spread = 0 * rotations[:, :, None]
        centres = (found.matrix[:, None, :, 2] + spread).reshape(-1, 2)
        scales = (eta[:, None, 3:] + spread).reshape(-1, 2) if config.group == "AFF5" else None
        coefficients, matrices = self._resolved(flat, centres, scales)
        modes = matrices.reshape(-1, config.modes, 2, 3)
        best = coefficients.reshape(-1, config.modes, coefficients.shape[1])[:, 0]
        stds = torch.cat([std[:, None], 0 * eta[:, 1:] + self.rest_std], 1)
        return Pose(best, stds, modes[:, 0], modes, weights), prototype, found

    def _density_about(self, density: Tensor, bins: Tensor, rotation: Tensor) -> Tensor:
        """log p at rotation + every bin, between bins a straight line: [N,A], [A], [N] -> [N,A]"""
        size = density.shape[1]
        places = (bins + rotation[:, None] + 4 * math.pi) * (size / (2 * math.pi))
        low = torch.floor(places)
        share, low = places - low, torch.remainder(low, size).long()
        return density.gather(1, low) * (1 - share) + density.gather(1, torch.remainder(low + 1, size)) * share

    def canonicalize(self, images: Tensor) -> Canonical:
        """[N,C,S,S] -> pose and rectified picture, which is the canonical one too: there is no decoder."""
        return without_decoder(images, self.pose(images))

    def augment(self, images: Tensor, noise: Tensor) -> Tensor:
        """Plausible variants: images [N,C,S,S], standard normal noise [N,S,G] -> matrices [N,S,2,3].

        See `training.models.symmetry_parts.variants`.
        """
        found = self._found(images).matrix
        return self._variants(found, resample(images, found), noise)

    def _variants(self, found: Tensor, prototype: Tensor, noise: Tensor) -> Tensor:
        context = self.features(prototype.flatten(1))
        drawn = self.prior.transform(context, noise.transpose(0, 1)).transpose(0, 1)
        return variants(found, drawn, self.config.group)

    def everything(self, images: Tensor, noise: Tensor) -> tuple[Canonical, Tensor]:
        """What `canonicalize` and `augment` give."""
        pose, prototype, found = self._looked_at(images)
        return without_decoder(images, pose), self._variants(found.matrix, prototype, noise)

    # --- over a data set ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, train: LabelledImages, validation: LabelledImages) -> dict[str, float]:
        """Figures of the validation set in evaluation mode; the config's `metrics` names them, `protocol` tells how."""
        config = self.config
        was_training = self.training
        self.eval()
        errors, sums, count = [], dict.fromkeys(("canonical_mse", "flow", "flow_consistency"), 0.0), len(validation)
        source = torch.Generator().manual_seed(0)
        for images, _ in validation.chunks(CHUNK, self.angles.device):
            errors.append(relative_error(self._plain, images, math.radians(PROBE_DEGREES), source).degrees)
            known = self._random(len(images), config.rotation_degrees, config.shift, config.scale, source).to(images)
            random = self._random(2 * len(images), 180, config.ssl_shift, config.ssl_scale, source).to(images)
            eta, prototypes = self._recanonicalised(move(images, known), random.reshape(-1, 2, 2, 3))
            density = self._log_density(prototypes, eta).reshape(2, -1)
            one, other = prototypes.chunk(2)
            sums["canonical_mse"] += float((one - other).pow(2).mean()) * len(images)
            sums["flow"] -= float(density.mean()) * len(images)
            sums["flow_consistency"] += float((density[0] - density[1]).abs().mean()) * len(images)
        self.train(was_training)
        return {
            **error_figures(torch.cat(errors), "relative", "_60"),
            **{name: value / count for name, value in sums.items()},
        }

    def _plain(self, images: Tensor) -> Pose:
        """The pose in the first stage's own frame."""
        eta, matrix = self._found(images)
        return Pose(eta, 0 * eta + 1, matrix, matrix[:, None], 0 * eta[:, :1] + 1)

    @torch.no_grad()
    def calibrate(self, train: LabelledImages, validation: LabelledImages) -> None:
        """See `fit_smoothing`; the deviation of shift and scale is that between two views that should agree on them."""
        self.eval()
        fit_smoothing(self, validation, math.radians(PROBE_DEGREES))
        if self.config.group == "SO2":
            return
        gaps = []
        source = torch.Generator().manual_seed(2)
        for images, _ in validation.chunks(CHUNK, self.angles.device):
            turn = uniform(len(images), math.pi, source).to(images)
            known = exponential("SO2", turn[:, None])
            before, after = self._found(images), self._found(move(images, known))
            middle = (after.matrix - compose(known, before.matrix))[:, :, 2]
            gaps.append(torch.cat([middle, after.coefficients[:, 3:] - before.coefficients[:, 3:]], 1))
        self.rest_std.copy_(torch.cat(gaps).std(0) / math.sqrt(2))


def _rotation(matrix: Tensor) -> Tensor:
    """The rotation of a matrix, counter-clockwise: that of its nearest rotation: [N,2,3] -> [N] in [-pi,pi]"""
    return torch.atan2(matrix[:, 0, 1] - matrix[:, 1, 0], matrix[:, 0, 0] + matrix[:, 1, 1])
