"""MCE-VAE: multi clustered equivariant VAE (Bajaj, Roy and Zhang, arXiv:2107.01436), with losses that mean what it
says.

    observed x [N,C,S,S] --polar net--> q(tau|x): rotation; shift and scale from the ink's moments
    x, mode of tau --resample--> rectified picture --convolutions--> q(z_c|x), q(z|x)
    z_c, z --decoder--> canonical picture --spatial transformer (tau)--> p(x|z_c, z, tau)

The pose. A turn of the picture about the centroid of its ink is a shift of its polar map, so a net of circular
convolutions (training/models/polar.py) is equivariant by construction. The centroid turns and moves with the picture
exactly, and so does the ink's radius: the shift of SE2 and the scale of SIM2 are read off, not learned.

What is up. A training picture has one fixed, unknown turn in +-range; a known turn beta is put on top. Its upright
frame then lies within +-range of beta, and the loss is -log of the mass that q(tau|x) has there (the half-circle loss:
partial labels). The range is the only assumption. With supervision the turn is known, and the loss is cross-entropy.

The mixture. p(z_c) = 1/K sum_k N(s e_k, I); the responsibilities pi(x) of the components at the mean of q(z_c|x) are
the assignment (VaDE, Jiang et al. 2017, in closed form), so that with K clusters pi is the softmax of s z_c. Two
pictures of one thing, at different turns and one of them distorted, should share their cluster, and all clusters should
be used: the mutual information of the two assignments (Ji, Henriques and Vedaldi 2019, eq. 3). K = 1 is one Gaussian.

The objective, in nats an image, is
    -E log p(x|z_c, z, tau*) + KL(z) + KL(z_c)         closed forms; tau* the mode, through which no gradient goes
    + pose_weight * loss of tau + relative_weight * |difference of two views' rotations - known one| in degrees
    + invariance_weight * |means of z_c and z of one view - the other's|^2      (Eq. 8, on means)
    - assignment_weight * I(pi; pi')
With supervision the decoder explains the upright picture instead of the observed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contract.manifest import InputSpec
from training import mixture
from training.augment import distorted_grid, outliers
from training.latent import kl_per_dimension
from training.lie import compose, exponential, grid, inverse, resample
from training.models.base import Model
from training.models.mcevae_config import MCEVAEConfig
from training.models.mcevae_parts import Decoder, Encoder
from training.models.polar import AngleNet, PolarSampler
from training.models.rotation import bin_angles, deviation, find_modes, range_prior, wrapped
from training.turned import move, similarity, uniform

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["Canonical", "MCEVAE", "MCEVAEConfig", "Pose"]

CHUNK = 500  # images a forward pass where no gradient is kept
ACTIVE_NATS = 0.1  # a dimension of z counts as used above this mean KL
PROBE_DEGREES = 60.0  # validation pictures are turned by up to this, whatever the model's range
FLIP_DEGREES = 90.0
RING = 0.85  # the background is the mean of a picture between this share of the inscribed circle and the circle
LEAST = 1e-4  # of a probability in a logarithm
# Share of the training after which pictures without an orientation are shown. From the start they cost more than they
# gave: at the same number of steps the loss of tau was 0.50 instead of 0.43.
OUTLIERS_FROM = 0.7


class Pose(NamedTuple):
    """The transform of N pictures, canonical frame -> observed picture.

    coefficients [N,G] of the group's exponential (training/lie.py), their standard deviation [N,G], matrix [N,2,3] of
    the best mode; modes [N,M,2,3] with weights [N,M] that sum to 1, best first.
    """

    coefficients: Tensor
    coefficients_std: Tensor
    matrix: Tensor
    modes: Tensor
    weights: Tensor


class Canonical(NamedTuple):
    """A pose, the decoder's picture and the input resampled through the pose's matrix, both [N,C,S,S] in [0,1]."""

    pose: Pose
    canonical: Tensor
    rectified: Tensor


class _Seen(NamedTuple):
    """Pictures as the model sees them: ink = picture - background [N,C,S,S], background [N,C,1,1], the centroid [N,2]
    and the ink's radius relative to the training set's [N], mass: full pixels of ink [N], log q(tau) [N,B].
    """

    ink: Tensor
    background: Tensor
    centre: Tensor
    log_scale: Tensor
    mass: Tensor
    log_posterior: Tensor


class MCEVAE(Model):
    """The model of a whole configuration; square pictures only."""

    protocol = (
        "rotation_error_60, _median_60 (degrees) and _flips_60 (% over 90): angle found in an upright picture and in "
        "it turned by U(+-60), their difference against the turn",
        "reconstruction and kl in nats an image of pictures turned and moved as in training",
        "clustering: % right of the best matching of clusters and classes",
    )

    turns: Tensor
    prior: Tensor
    mask: Tensor
    ring: Tensor
    positions: Tensor
    means: Tensor
    reference_radius: Tensor
    std_factor: Tensor
    std_knee: Tensor
    frame_std: Tensor

    def __init__(self, config: MCEVAEConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.input = input
        self.num_classes = num_classes
        side = input.height
        self.window = side if config.window is None else config.window
        if self.window > side or (side - self.window) % 2:
            raise ValueError(f"model.window {self.window} must be at most {side} and differ from it by an even number")
        pose = config.pose
        self.sampler = PolarSampler(side, pose.reach, pose.radii, pose.angles)
        self.angle_net = AngleNet(input.channels * pose.radii, pose.width, pose.kernel, pose.dilations)
        self.cluster_dim = config.cluster_dim or max(config.clusters, 2)
        self.encoder = Encoder(input.channels, self.window, config.encoder, (self.cluster_dim, config.z_dim))
        self.decoder = Decoder(self.cluster_dim + config.z_dim, input.channels, self.window, config.decoder)
        if config.likelihood == "gaussian":
            self.log_sigma = nn.Parameter(torch.full((), -1.0))
        self._constants(side, pose.angles // 2)
        self.turns = torch.zeros(0)

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
            "positions": torch.stack(torch.meshgrid(centres, centres, indexing="xy"), 2),
            "means": means,
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("reference_radius", torch.tensor(0.4))
        self.register_buffer("std_factor", torch.ones(()))
        self.register_buffer("std_knee", torch.ones(()))
        self.register_buffer("frame_std", torch.zeros(3))  # of x, y and log_scale

    # --- one step of training -------------------------------------------------------------------------------------

    def prepare(self, train: LabelledImages) -> None:
        """Draw the one turn of every training picture, and measure the ink's mean radius.

        Raises:
            ValueError: no picture has any ink.
        """
        source = torch.Generator().manual_seed(self.config.turn_seed)
        self.turns = uniform(len(train), math.radians(self.config.rotation_degrees), source)
        moments = [self._moments(self._ink(images)[0]) for images, _ in _chunks(train, self.prior.device)]
        radius, mass = (torch.cat([found[index] for found in moments]) for index in (1, 2))
        if not bool((mass > 0).any()):
            raise ValueError("no picture has ink that differs from its background")
        self.reference_radius.copy_(radius[mass > 0].mean())

    def batch(self, data: LabelledImages, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Two views of every picture, each under its own transform.

        Returns:
            views [2,B,C,S,S]; beta [2,B], the known part of the rotation (all of it with supervision); distortion
            [B,w,w,2], a distorted grid of the canonical window; outliers [O,C,S,S]; with supervision upright
            [B,C,S,S].
        """
        config = self.config
        images = data.images[indices].float() / 255
        count = len(images)
        background = self._background(images)
        views, betas = [], []
        for _ in range(2):
            if config.supervised:
                beta = uniform(count, math.radians(config.rotation_degrees), generator)
                rotation = beta
            else:
                beta = uniform(count, math.pi, generator)
                rotation = self.turns[indices] + beta
            scale = torch.exp(uniform(count, config.scale, generator))
            scale = scale * (1 + uniform(count, config.nuisance_scale, generator))
            shift = 2 * uniform(count, config.shift + config.nuisance_shift, generator, columns=2)
            matrix = similarity(rotation, shift, scale)
            # Each view has its own interpolation: the pixels of one kernel would tell the turn.
            half = torch.rand(count, generator=generator) < 0.5
            moved = torch.empty_like(images)
            for part, mode in ((half, "bilinear"), (~half, "bicubic")):
                moved[part] = move(images[part], matrix[part], background[part], mode)  # type: ignore[arg-type]
            views.append(moved)
            betas.append(beta)
        batch = {
            "views": torch.stack(views),
            "beta": torch.stack(betas),
            "distortion": distorted_grid(count, self.window, self.window, config.distortion, generator),
        }
        if config.supervised:
            batch["upright"] = images
        chosen = round(config.outlier_share * count)
        if chosen:
            batch["outliers"] = outliers(views[0][:chosen], generator)
        return batch

    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The objective of the module's docstring, mean over the batch, with its terms.

        Returns:
            the scalars loss, reconstruction, kl, pose, relative (degrees), invariance, and where used assignment
            (nats) and outlier (nats above the uniform posterior's).
        """
        config = self.config
        first, second = batch["views"]
        count = len(first)
        strange = [batch["outliers"]] if "outliers" in batch and progress >= OUTLIERS_FROM else []
        pictures = [first, second, *strange]
        seen = self._see(torch.cat(pictures))
        both = 2 * count
        terms, rotation = self._pose_terms(seen.log_posterior, batch["beta"].flatten(), both)
        with _exact(first):
            matrix = self._matrix(rotation.detach(), seen.centre[:both], seen.log_scale[:both])
            rectified = self._windowed(seen.ink[:both], matrix)
            where = self._in_window(matrix[count:], batch["distortion"])
            distorted = F.grid_sample(seen.ink[count:both], where, align_corners=False)
        cluster, z = self.encoder(torch.cat([rectified, distorted]))
        (cluster_mean, cluster_log_variance), (z_mean, z_log_variance) = cluster, z
        pi = mixture.responsibilities(cluster_mean, self.means)
        latent = torch.cat(
            [
                _draw(cluster_mean[:count], cluster_log_variance[:count], generator),
                _draw(z_mean[:count], z_log_variance[:count], generator),
            ],
            1,
        )
        decoded = torch.sigmoid(self.decoder(latent).float())
        with _exact(first):
            if config.supervised:
                target, explained = self._canonical_target(batch["upright"]), decoded
            else:
                target, explained = first, self._observed(decoded, matrix[:count], seen.background[:count])
            terms["reconstruction"] = self._nats(target, explained).mean()
        kl_cluster = mixture.mixture_kl(cluster_mean[:count], cluster_log_variance[:count], pi[:count], self.means)
        kl_z = kl_per_dimension(z_mean[:count], z_log_variance[:count]).sum(1)
        terms["kl"] = (kl_cluster + kl_z).mean()
        terms["invariance"] = sum(
            ((mean[:count] - mean[count:both].detach()) ** 2 + (mean[:count].detach() - mean[count:both]) ** 2).sum(1)
            for mean in (cluster_mean, z_mean)
        ).mean()
        loss = (
            terms["reconstruction"]
            + terms["kl"]
            + config.pose_weight * terms["pose"]
            + config.relative_weight * terms["relative"]
            + config.invariance_weight * terms["invariance"]
        )
        if strange:
            loss = loss + config.outlier_weight * terms["outlier"]
        if config.clusters > 1:
            terms["assignment"] = -mixture.mutual_information(pi[:count], pi[both:])
            loss = loss + config.assignment_weight * terms["assignment"]
        return {"loss": loss, **terms}

    def _pose_terms(self, log_posterior: Tensor, beta: Tensor, both: int) -> tuple[dict[str, Tensor], Tensor]:
        """The loss of the posterior [2B+O,B'], the relative one, and the rotation [2B] that is taken."""
        config = self.config
        known = log_posterior[:both]
        angles = bin_angles(known.shape[1]).to(known)
        difference = wrapped(angles - beta[:, None])
        terms: dict[str, Tensor] = {}
        spread = math.radians(config.frame_spread_degrees)
        if config.supervised:
            # Cross-entropy with a target as wide as a bin: the angle itself lies between two.
            near = torch.softmax(torch.cos(difference) / (2 * math.pi / len(angles)) ** 2, 1)
            terms["pose"] = -(near * known).sum(1).mean()
            prior = self.prior.expand_as(known)
        else:
            prior = range_prior(difference, math.radians(config.rotation_degrees), spread)
            terms["pose"] = -torch.logsumexp(known + torch.log(prior.clamp_min(1e-30)), 1).mean()
        rotation = find_modes(torch.softmax(known + torch.log(prior.clamp_min(1e-30)), 1), 1)[0][:, 0]
        one, other = rotation.chunk(2)
        gap = wrapped(one - other - (beta[: both // 2] - beta[both // 2 :])) * (180 / math.pi)
        # A difference beyond 45 degrees is another mode: pulling the two together would move neither.
        terms["relative"] = (F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none") * (gap.abs() < 45)).mean()
        if len(log_posterior) > both:
            terms["outlier"] = -log_posterior[both:].mean() - math.log(len(angles))
        return terms, rotation

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

    def _moments(self, ink: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centroid [N,2] and root mean square radius [N] in normalised units, mass [N] in full pixels."""
        weight = ink.abs().mean(1)
        if self.config.background == "border":
            weight = weight**2  # what is left of a background that is not flat should not count
        mass = weight.sum((1, 2))
        share = weight / mass.clamp_min(1e-6)[:, None, None]
        centre = (share[..., None] * self.positions).sum((1, 2))
        squares = ((self.positions - centre[:, None, None]) ** 2).sum(3)
        return centre, torch.sqrt((share * squares).sum((1, 2)).clamp_min(1e-12)), mass

    def _see(self, images: Tensor) -> _Seen:
        with _exact(images):
            ink, background = self._ink(images)
            centre, radius, mass = self._moments(ink)
            log_scale = torch.log((radius / self.reference_radius).clamp(0.05, 20.0))
            if self.config.pose.centre == "frame":
                centre = 0 * centre
            stretch = torch.exp(log_scale) if self.config.group == "SIM2" else None
            polar = self.sampler(ink, centre, stretch)
        logits = self.angle_net(polar).float()
        return _Seen(ink, background, centre, log_scale, mass, torch.log_softmax(logits, 1))

    def _coefficients(self, rotation: Tensor, centre: Tensor, log_scale: Tensor) -> Tensor:
        """The group's coefficients [N,G] of the transform that turns by `rotation` and takes the middle to `centre`."""
        if self.config.group == "SO2":
            return rotation[:, None]
        rest = [log_scale] if self.config.group == "SIM2" else []
        none = 0 * rotation  # not zeros_like, which exports as a subgraph of shapes
        one = none + 1
        # The shift of an exponential is V (x, y), V a complex factor: what it makes of (1, 0) tells it.
        along, across = exponential(self.config.group, torch.stack([rotation, one, none, *rest], 1))[:, :, 2].unbind(1)
        square = along**2 + across**2
        x, y = centre.unbind(1)
        return torch.stack([rotation, (along * x + across * y) / square, (along * y - across * x) / square, *rest], 1)

    def _matrix(self, rotation: Tensor, centre: Tensor, log_scale: Tensor) -> Tensor:
        return exponential(self.config.group, self._coefficients(rotation, centre, log_scale))

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

    def _canonical_target(self, upright: Tensor) -> Tensor:
        """The window of an upright picture, moved and scaled into the canonical frame but not turned."""
        ink, background = self._ink(upright)
        centre, radius, _ = self._moments(ink)
        log_scale = torch.log(radius / self.reference_radius)
        matrix = self._matrix(torch.zeros_like(radius), centre, log_scale)
        return (self._windowed(ink, matrix) + background).clamp(0.0, 1.0)

    def _nats(self, target: Tensor, mean: Tensor) -> Tensor:
        """-log p(x|z_c, z, tau) [N] from the mean picture."""
        if self.config.likelihood == "bernoulli":
            mean = mean.clamp(LEAST, 1 - LEAST)
            return F.binary_cross_entropy(mean, target.clamp(0.0, 1.0), reduction="none").flatten(1).sum(1)
        log_sigma = self.log_sigma.clamp(-4, 2)
        nats = 0.5 * ((target - mean) * torch.exp(-log_sigma)) ** 2 + log_sigma + 0.9189385
        return nats.flatten(1).sum(1)

    # --- what is served -------------------------------------------------------------------------------------------

    def pose(self, images: Tensor) -> Pose:
        """[N,C,S,S] -> the transform of each picture, with its uncertainty; after `calibrate`."""
        return self._pose(self._see(images))

    def _pose(self, seen: _Seen) -> Pose:
        posterior = torch.softmax(seen.log_posterior + torch.log(self.prior.clamp_min(1e-30)), 1)
        angles, weights = find_modes(posterior, self.config.modes)
        best = angles[:, 0]
        coefficients = self._coefficients(best, seen.centre, seen.log_scale)
        flat = angles.reshape(-1)
        spread = torch.zeros(self.config.modes, 1).to(seen.centre)
        centres = (seen.centre[:, None] + spread).reshape(-1, 2)
        scales = (seen.log_scale[:, None] + spread[:, 0]).reshape(-1)
        modes = self._matrix(flat, centres, scales).reshape(-1, self.config.modes, 2, 3)
        std = self._calibrated(deviation(posterior, best))
        if self.config.group == "SO2":
            stds = std[:, None]
        else:
            # Without ink there is no centroid: half the frame is as good as any other.
            lost = torch.exp(-seen.mass)[:, None]
            stds = torch.cat([std[:, None], self.frame_std[: coefficients.shape[1] - 1] + lost], 1)
        return Pose(coefficients, stds, modes[:, 0], modes, weights)

    def _calibrated(self, std: Tensor) -> Tensor:
        """The factor fitted to concentrated posteriors fades out towards the flat one, which says what it means."""
        flat = self._flat_deviation()
        share = ((std - self.std_knee) / (flat - self.std_knee).clamp_min(1e-3)).clamp(0.0, 1.0)
        return std * self.std_factor ** (1 - share)

    def _flat_deviation(self) -> Tensor:
        """Of the posterior that knows nothing but the range: [1]"""
        return deviation((self.prior / self.prior.sum())[None], torch.zeros(1).to(self.prior))

    def canonicalize(self, images: Tensor) -> Canonical:
        """[N,C,S,S] -> pose, canonical picture and rectified picture."""
        seen = self._see(images)
        pose = self._pose(seen)
        rectified = resample(seen.ink, pose.matrix)
        cluster, z = self.encoder(self._cropped(rectified))
        canonical = self._decoded(cluster[0], z[0], seen.background)
        return Canonical(pose, canonical.clamp(0.0, 1.0), (rectified + seen.background).clamp(0.0, 1.0))

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

    def clusters(self, images: Tensor) -> Tensor:
        """Probabilities of the clusters: [N,K]"""
        return mixture.responsibilities(self.embed(images), self.means)

    # --- over a data set ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(
        self, train: LabelledImages, validation: LabelledImages, train_limit: int | None = 10_000
    ) -> dict[str, float]:
        """Figures of the validation set in evaluation mode; the config's `metrics` names them, `protocol` tells how."""
        was_training = self.training
        self.eval()
        errors, nats, kl, assigned = [], 0.0, torch.zeros(self.config.z_dim), []
        kl_cluster = 0.0
        source = torch.Generator().manual_seed(0)
        for images, _ in _chunks(validation, self.prior.device):
            errors.append(self._turn_errors(images, math.radians(PROBE_DEGREES), source)[0])
            observed = self._as_trained(images, source)
            seen = self._see(observed)
            matrix = self._pose(seen).matrix
            (cluster, cluster_lv), (z, z_lv) = self.encoder(self._windowed(seen.ink, matrix))
            decoded = torch.sigmoid(self.decoder(torch.cat([cluster, z], 1)))
            if self.config.supervised:
                nats += float(self._nats(self._canonical_target(images), decoded).sum())
            else:
                nats += float(self._nats(observed, self._observed(decoded, matrix, seen.background)).sum())
            pi = mixture.responsibilities(cluster, self.means)
            kl_cluster += float(mixture.mixture_kl(cluster, cluster_lv, pi, self.means).sum())
            kl += kl_per_dimension(z, z_lv).sum(0).cpu()
            assigned.append(pi.argmax(1).cpu())
        self.train(was_training)
        error, count = torch.cat(errors).abs().cpu(), len(validation.labels)
        kl /= count
        return {
            "rotation_error_60": float(error.mean()),
            "rotation_median_60": float(error.median()),
            "rotation_flips_60": 100 * float((error > FLIP_DEGREES).float().mean()),
            "reconstruction": nats / count,
            "kl": kl_cluster / count + float(kl.sum()),
            "clustering": 100 * mixture.matched_accuracy(torch.cat(assigned), validation.labels),
            "active_dims": float((kl > ACTIVE_NATS).sum()),
        }

    def _as_trained(self, images: Tensor, source: torch.Generator) -> Tensor:
        """Pictures turned, moved and scaled over the training range."""
        config, count = self.config, len(images)
        rotation = uniform(count, math.radians(config.rotation_degrees), source)
        shift = 2 * uniform(count, config.shift, source, columns=2)
        matrix = similarity(rotation, shift, torch.exp(uniform(count, config.scale, source)))
        return move(images, matrix.to(images), self._background(images))

    def _turn_errors(self, images: Tensor, limit: float, source: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Turn pictures by U(+-limit): the error of the angle between both (degrees) and both standard deviations
        (degrees) as uncalibrated as the model is, and the error of the middle [N,2] in normalised units.
        """
        rotation = uniform(len(images), limit, source).to(images)
        known = similarity(rotation, torch.zeros(len(images), 2).to(images))
        before = self.pose(images)
        after = self.pose(move(images, known, self._background(images)))
        gap = wrapped(after.coefficients[:, 0] - before.coefficients[:, 0] - rotation)
        stds = torch.stack([before.coefficients_std[:, 0], after.coefficients_std[:, 0]], 1)
        middle = (after.matrix - compose(known, before.matrix))[:, :, 2]
        return gap * (180 / math.pi), stds * (180 / math.pi), middle

    @torch.no_grad()
    def calibrate(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Fit the factor of the rotation's standard deviation, and the deviation of shift and scale, to pairs of views.

        One factor: 68.3 % of the pairs, flips apart, lie within one standard deviation of their difference.
        """
        self.eval()
        self.std_factor.fill_(1.0)
        source = torch.Generator().manual_seed(1)
        limit = math.radians(min(self.config.rotation_degrees, PROBE_DEGREES))
        found = [self._turn_errors(images, limit, source) for images, _ in _chunks(validation, self.prior.device)]
        error, stds, middle = (torch.cat(parts) for parts in zip(*found, strict=True))
        same = error.abs() < FLIP_DEGREES / 2
        ratio = error.abs()[same] / stds[same].norm(dim=1).clamp_min(1e-6)
        self.std_factor.copy_(ratio.quantile(0.683).clamp(1e-3, 10))
        # Over the whole circle more than a few digits have two modes, and a deviation above the flat posterior's.
        usual = torch.deg2rad(stds.flatten()[: 2**20].quantile(0.95))
        self.std_knee.copy_(torch.minimum(usual, self._flat_deviation()[0] / 2))
        self.frame_std[:2] = middle.std(0) / math.sqrt(2)
        self.frame_std[2] = 0.01


def _draw(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean + torch.exp(0.5 * log_variance) * noise


def _exact(images: Tensor) -> torch.autocast:
    """Coordinates need all their digits: no reduced precision in here."""
    return torch.autocast(images.device.type, enabled=False)


def _chunks(data: LabelledImages, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images [N,C,H,W] in [0,1] and labels [N], `CHUNK` at a time."""
    for start in range(0, len(data.labels), CHUNK):
        stop = start + CHUNK
        yield data.images[start:stop].to(device).float() / 255, data.labels[start:stop].to(device)
