"""What a trained MCE-VAE finds in a picture: pose, latents, canonical picture (training/models/mcevae.py says how it is
trained).

    observed picture [N,C,S,S] -> ink about its centroid -> polar or lifted net -> q(tau) -> pose
    ink under the pose's mode -> rectified picture -> q(z_c), q(z) -> decoder -> canonical picture
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contract.manifest import InputSpec
from training import mixture
from training.distances import ClassMeans
from training.lie import exponential, grid, inverse, resample, shift_factor
from training.models.base import Model
from training.models.lifted import Lifted
from training.models.lifted_config import LiftedConfig
from training.models.mcevae_config import MCEVAEConfig
from training.models.mcevae_parts import Decoder, Encoder
from training.models.polar import AngleNet, PolarSampler
from training.models.pose import Canonical, Pose
from training.moments import Moments, moments
from training.networks import exactly
from training.rotation import bin_angles, deviation, find_modes, range_prior, wrapped
from training.turned import similarity

__all__ = ["Inference", "Seen"]

# Of two modes that fit a picture equally well the smaller turn is the likelier: concentration of a von Mises prior. Of
# validation digits turned by up to 60 degrees it took the flips from 0.42 to 0.16 %; above 3, those at 90 degrees rise.
TILT = 2.0
RING = 0.85  # the background is the mean of a picture between this share of the inscribed circle and the circle


class Seen(NamedTuple):
    """Pictures as the model sees them: ink = picture - background [N,C,S,S], background [N,C,1,1], the centroid [N,2]
    and the ink's radius relative to the training set's [N], mass: full pixels of ink [N]; log q(tau) [N,B], whose bin j
    stands for origin [N] + 2 pi j / B.
    """

    ink: Tensor
    background: Tensor
    centre: Tensor
    log_scale: Tensor
    mass: Tensor
    log_posterior: Tensor
    origin: Tensor


class Inference(Model):
    """The nets of a whole configuration and what is read from them; square pictures only."""

    prior: Tensor
    mask: Tensor
    ring: Tensor
    means: Tensor
    reference_radius: Tensor
    std_factor: Tensor
    std_knee: Tensor
    frame_std: Tensor

    def __init__(self, config: MCEVAEConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.input = input
        side = input.height
        self.window = side if config.window is None else config.window
        if self.window > side or (side - self.window) % 2:
            raise ValueError(f"model.window {self.window} must be at most {side} and differ from it by an even number")
        pose = config.pose
        if isinstance(pose, LiftedConfig):
            self.lifted = Lifted(pose, input.channels, side)
            bins = pose.bins
        else:
            self.sampler = PolarSampler(side, pose.reach, pose.radii, pose.angles)
            self.angle_net = AngleNet(input.channels * pose.radii, pose.width, pose.kernel, pose.dilations)
            bins = pose.angles // 2
        self.cluster_dim = config.cluster_dim or max(config.clusters, 2)
        self.encoder = Encoder(input.channels, self.window, config.encoder, (self.cluster_dim, config.z_dim))
        self.decoder = Decoder(self.cluster_dim + config.z_dim, input.channels, self.window, config.decoder)
        if config.likelihood == "gaussian":
            self.log_sigma = nn.Parameter(torch.full((), -1.0))
        self.classes = ClassMeans(num_classes, self.cluster_dim) if num_classes > 1 else None
        self._constants(side, bins)

    def _constants(self, side: int, bins: int) -> None:
        config = self.config
        centres = (2 * torch.arange(side) + 1) / side - 1
        radius = torch.hypot(centres[:, None], centres)
        means = torch.zeros(config.clusters, self.cluster_dim)
        if config.clusters > 1:
            means[:, : config.clusters] = config.separation * torch.eye(config.clusters)
        ring = ((radius < 1) & (radius > RING)).float()
        inside = torch.ones_like(radius) if config.pose.centre == "ink" else (radius < 1).float()
        limit, spread = math.radians(config.rotation_degrees), math.radians(config.frame_spread_degrees)
        constants = {
            "prior": range_prior(bin_angles(bins), limit, spread),
            "mask": inside,
            "ring": ring / ring.sum(),
            "means": means,
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("reference_radius", torch.tensor(0.4))
        self.register_buffer("std_factor", torch.ones(()))
        self.register_buffer("std_knee", torch.ones(()))
        self.register_buffer("frame_std", torch.zeros(3))  # of x, y and log_scale

    # --- the parts ------------------------------------------------------------------------------------------------

    def _background(self, images: Tensor) -> Tensor:
        """[N,C,1,1]: 0, or the mean over the outer ring, which no turn changes."""
        if self.config.background == "zero":
            return 0 * images[:, :, :1, :1]
        return (images * self.ring).sum((2, 3), keepdim=True)

    def _ink(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What differs from the background, within the circle where the frame's corners are none of it."""
        background = self._background(images)
        return (images - background) * self.mask, background

    def _moments(self, ink: Tensor) -> Moments:
        weight = ink.abs().mean(1)
        if self.config.background == "border":
            weight = weight**2  # what is left of a background that is not flat should not count
        return moments(weight)

    def _see(self, images: Tensor, turns: Tensor | None = None, draws: Tensor | None = None) -> Seen:
        """With `turns` and `draws`, of training, a lifted net distorts what it sees (training/models/lifted.py)."""
        with exactly(images):
            ink, background = self._ink(images)
            found = self._moments(ink)
            log_scale = torch.log((found.radius / self.reference_radius).clamp(0.05, 20.0))
            centre = 0 * found.centre if self.config.pose.centre == "frame" else found.centre
        if isinstance(self.config.pose, LiftedConfig):
            log_posterior, origin = self.lifted(ink, turns, draws, found)
        else:
            with exactly(images):
                stretch = torch.exp(log_scale) if self.config.group == "SIM2" else None
                polar = self.sampler(ink, centre, stretch)
            log_posterior, origin = torch.log_softmax(self.angle_net(polar).float(), 1), 0 * log_scale
        return Seen(ink, background, centre, log_scale, found.mass, log_posterior, origin)

    def _coefficients(self, rotation: Tensor, centre: Tensor, log_scale: Tensor) -> Tensor:
        """The group's coefficients [N,G] of the transform that turns by `rotation` and takes the middle to `centre`."""
        if self.config.group == "SO2":
            return rotation[:, None]
        rest = [log_scale] if self.config.group == "SIM2" else []
        along, across = shift_factor(rotation, *rest)
        square = along**2 + across**2
        x, y = centre.unbind(1)
        return torch.stack([rotation, (along * x - across * y) / square, (along * y + across * x) / square, *rest], 1)

    def _matrix(self, rotation: Tensor, centre: Tensor, log_scale: Tensor) -> Tensor:
        """The exponential of `_coefficients` [N,2,3], whose shift is known and need not be computed from them."""
        if self.config.group == "SO2":
            return exponential("SO2", rotation[:, None])
        return similarity(rotation, centre, torch.exp(log_scale) if self.config.group == "SIM2" else 1.0)

    def _zoom(self, matrix: Tensor) -> Tensor:
        """From coordinates of the canonical window instead of the whole frame: [N,2,3]"""
        share = self.window / self.input.height
        return matrix * torch.tensor([share, share, 1.0]).to(matrix)

    def _windowed(self, ink: Tensor, matrix: Tensor) -> Tensor:
        """The canonical window of observed ink [N,C,w,w]."""
        return F.grid_sample(ink, grid(self._zoom(matrix), self.window), align_corners=False)

    def _in_window(self, matrix: Tensor, where: Tensor) -> Tensor:
        """Points [N,w,w,2] of the canonical window as points of the observed picture."""
        matrix = self._zoom(matrix)
        points = where.flatten(1, 2) @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]
        return points.reshape(where.shape)

    def _observed(self, decoded: Tensor, matrix: Tensor, background: Tensor) -> Tensor:
        """The spatial transformer: the canonical window [N,C,w,w] as it is seen under the matrix [N,C,S,S]."""
        back = inverse(self._zoom(matrix))
        side = self.input.height
        seen = F.grid_sample(decoded - background, grid(back, side), align_corners=False)
        return seen * self.mask + background

    # --- what is served -------------------------------------------------------------------------------------------

    def pose(self, images: Tensor) -> Pose:
        """[N,C,S,S] -> the transform of each picture, with its uncertainty; after `calibrate`."""
        return self._pose(self._see(images))

    def _pose(self, seen: Seen) -> Pose:
        posterior, ranked = self._under_prior(seen)
        modes, weights = find_modes(seen.log_posterior.exp(), self.config.modes, ranked)
        std = self._calibrated(deviation(posterior, modes[:, 0]))
        angles = wrapped(modes + seen.origin[:, None])
        best = angles[:, 0]
        coefficients = self._coefficients(best, seen.centre, seen.log_scale)
        flat = angles.reshape(-1)
        spread = torch.zeros(self.config.modes, 1).to(seen.centre)
        centres = (seen.centre[:, None] + spread).reshape(-1, 2)
        scales = (seen.log_scale[:, None] + spread[:, 0]).reshape(-1)
        matrices = self._matrix(flat, centres, scales).reshape(-1, self.config.modes, 2, 3)
        if self.config.group == "SO2":
            stds = std[:, None]
        else:
            # Without ink there is no centroid: half the frame is as good as any other.
            lost = torch.exp(-seen.mass)[:, None]
            stds = torch.cat([std[:, None], self.frame_std[: coefficients.shape[1] - 1] + lost], 1)
        return Pose(coefficients, stds, matrices[:, 0], matrices, weights)

    def _under_prior(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Posterior within the training range [N,B]; and the same times a prior for small turns, used only to rank
        modes.
        """
        limit, spread = math.radians(self.config.rotation_degrees), math.radians(self.config.frame_spread_degrees)
        posterior = seen.log_posterior.exp()
        if limit >= math.pi:
            return posterior, posterior
        angles = bin_angles(posterior.shape[1]).to(posterior) + seen.origin[:, None]
        prior = range_prior(angles, limit, spread)
        posterior = torch.softmax(seen.log_posterior + torch.log(prior.clamp_min(1e-30)), 1)
        return posterior, posterior * torch.exp(TILT * (torch.cos(angles) - 1))

    def _calibrated(self, std: Tensor) -> Tensor:
        """The factor fitted to concentrated posteriors fades out towards the flat one, which says what it means."""
        flat = self._flat_deviation()
        share = ((std - self.std_knee) / (flat - self.std_knee).clamp_min(1e-3)).clamp(0.0, 1.0)
        return std * self.std_factor ** (1 - share)

    def _flat_deviation(self) -> Tensor:
        """Of the posterior that knows nothing but the range: [1]"""
        return deviation((self.prior / self.prior.sum())[None], torch.zeros(1).to(self.prior))

    def canonicalize(self, images: Tensor) -> Canonical:
        """[N,C,S,S] -> pose, canonical picture, rectified picture and the mean of z_c."""
        seen = self._see(images)
        pose = self._pose(seen)
        rectified = resample(seen.ink, pose.matrix)
        cluster, z = self.encoder(self._cropped(rectified))
        canonical = self._decoded(cluster[0], z[0], seen.background)
        rectified = (rectified + seen.background).clamp(0.0, 1.0)
        return Canonical(pose, canonical.clamp(0.0, 1.0), rectified, cluster[0])

    def _cropped(self, rectified: Tensor) -> Tensor:
        margin = (self.input.height - self.window) // 2
        return rectified[:, :, margin : margin + self.window, margin : margin + self.window]

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """z_c [N,D], z [N,Z] -> canonical picture [N,C,S,S] in [0,1], on black outside the window."""
        return self._decoded(content, style, torch.zeros(1, 1, 1, 1).to(content))

    def _decoded(self, content: Tensor, style: Tensor, background: Tensor) -> Tensor:
        decoded = torch.sigmoid(self.decoder(torch.cat([content, style], 1)))
        margin = (self.input.height - self.window) // 2
        return F.pad(decoded - background, (margin, margin, margin, margin)) + background

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means of z_c [N,D] and z [N,Z] of pictures in any pose."""
        seen = self._see(images)
        cluster, z = self.encoder(self._windowed(seen.ink, self._pose(seen).matrix))
        return cluster[0], z[0]

    def embed(self, images: Tensor) -> Tensor:
        """The invariant embedding, the mean of z_c: [N,D]"""
        return self.latents(images)[0]

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Invariant embedding [N,D], and of it squared distances to the class means [N,K], probabilities [N,K] and
        novelty [N] in [0,1]; of a model whose data has classes, after `calibrate`.
        """
        assert self.classes is not None
        embedding = self.embed(images)
        return embedding, *self.classes(embedding)

    def clusters(self, images: Tensor) -> Tensor:
        """Probabilities of the clusters: [N,K]"""
        return mixture.responsibilities(self.embed(images), self.means)
