"""MCE-VAE: multi clustered equivariant VAE (Bajaj, Roy and Zhang, arXiv:2107.01436), with losses that mean what it
says.

    observed x [N,C,S,S] --net of the pose--> q(tau|x): rotation; shift and scale from the ink's moments
    x, mode of tau --resample--> rectified picture --convolutions--> q(z_c|x), q(z|x)
    z_c, z --decoder--> canonical picture --spatial transformer (tau)--> p(x|z_c, z, tau)

The pose. A turn of the picture about the centroid of its ink is a shift of its polar map, so a net of circular
convolutions (training/models/polar.py) is equivariant by construction. So is a net that reads the picture along its
main axis, both ways up (training/models/lifted.py): it sees strokes whole, and tells up from down. The centroid turns
and moves with the picture exactly, and so does the ink's radius: the shift of SE2 and the scale of SIM2 are read off,
not learned.

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
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from contract.manifest import InputSpec
from training import mixture
from training.augment import distorted_grid
from training.distances import ENOUGH, ClassMeans, prototypes_of
from training.latent import ACTIVE_NATS, gaussian_nats, kl_per_dimension, sample
from training.models.lifted import DRAWS
from training.models.mcevae_config import MCEVAEConfig
from training.models.mcevae_inference import Inference, Seen
from training.networks import exactly
from training.outliers import outliers
from training.rotation import bin_angles, coverage_factor, find_modes, range_prior, wrapped
from training.turned import (
    FLIP_DEGREES,
    PROBE_DEGREES,
    RelativeError,
    error_figures,
    move,
    move_by_two,
    relative_error,
    require_upright,
    similarity,
    uniform,
)

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["MCEVAE"]

CHUNK = 500  # images a forward pass where no gradient is kept
LEAST = 1e-4  # of a probability in a logarithm


class MCEVAE(Inference):
    """The objective, and the figures of a data set."""

    protocol = (
        "rotation_error, _median (degrees) and _flips (% over 90), of a supervised model: angle found against the true "
        "one, pictures turned and moved as in training",
        "rotation_error_60, _median_60 (degrees) and _flips_60 (% over 90): angle found in an upright picture and in "
        "it turned by U(+-60), their difference against the turn",
        "reconstruction and kl in nats an image of pictures turned and moved as in training",
        "clustering: % right of the best matching of clusters and classes",
    )

    turns: Tensor

    def __init__(self, config: MCEVAEConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__(config, input, num_classes)
        self.turns = torch.zeros(0)

    # --- one step of training -------------------------------------------------------------------------------------

    def prepare(self, train: LabelledImages) -> None:
        """Draw the one turn of every training picture, and measure the ink's mean radius.

        Raises:
            ValueError: the pictures are not upright, or none has any ink.
        """
        require_upright(train, f"model.kind: {self.config.kind}")
        source = torch.Generator().manual_seed(self.config.turn_seed)
        self.turns = uniform(len(train), math.radians(self.config.rotation_degrees), source)
        found = [self._moments(self._ink(images)[0]) for images, _ in train.chunks(CHUNK, self.prior.device)]
        radius, mass = torch.cat([part.radius for part in found]), torch.cat([part.mass for part in found])
        if not bool((mass > 0).any()):
            raise ValueError("no picture has ink that differs from its background")
        self.reference_radius.copy_(radius[mass > 0].mean())

    def batch(self, data: LabelledImages, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Two views of every picture, each under its own transform.

        Returns:
            views [2,B,C,S,S]; beta [2,B], the known part of the rotation (all of it with supervision); distortion
            [B,w,w,2], a distorted grid of the canonical window; outliers [O,C,S,S]; draws [2B+O,DRAWS], from which a
            lifted net makes its distortions; with supervision upright [B,C,S,S].
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
            bicubic = torch.rand(count, generator=generator) >= 0.5
            moved = move_by_two(images, matrix, bicubic, background)
            if config.binary_share:
                chosen = torch.rand((count, 1, 1, 1), generator=generator) < config.binary_share
                grey = 0.1 + 0.5 * torch.rand((count, 1, 1, 1), generator=generator)
                moved = torch.where(chosen, (moved > grey).to(moved), moved)
            views.append(moved)
            betas.append(beta)
        batch = {
            "views": torch.stack(views),
            "beta": torch.stack(betas),
            "distortion": distorted_grid(count, self.window, self.window, config.distortion, generator),
        }
        if config.supervised:
            batch["upright"] = images
        others = round(config.outlier_share * count)
        if others:
            batch["outliers"] = outliers(views[0][:others], generator, config.outliers_as_content)
        if config.pose.kind == "lifted":
            batch["draws"] = uniform(2 * count + others, 1.0, generator, columns=DRAWS)
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
        strange = [batch["outliers"]] if "outliers" in batch and progress >= config.outliers_from else []
        pictures = [first, second, *strange]
        both = 2 * count
        terms, rotation, seen = self._pose_terms(torch.cat(pictures), batch["beta"].flatten(), batch.get("draws"))
        with exactly(first):
            matrix = self._matrix(rotation.detach(), seen.centre[:both], seen.log_scale[:both])
            rectified = self._windowed(seen.ink[:both], matrix)
            where = self._in_window(matrix[count:], batch["distortion"])
            distorted = F.grid_sample(seen.ink[count:both], where, align_corners=False)
        cluster, z = self.encoder(torch.cat([rectified, distorted]))
        (cluster_mean, cluster_log_variance), (z_mean, z_log_variance) = cluster, z
        pi = mixture.responsibilities(cluster_mean, self.means)
        latent = torch.cat(
            [
                sample(cluster_mean[:count], cluster_log_variance[:count], generator),
                sample(z_mean[:count], z_log_variance[:count], generator),
            ],
            1,
        )
        decoded = torch.sigmoid(self.decoder(latent).float())
        with exactly(first):
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

    def _pose_terms(
        self, pictures: Tensor, beta: Tensor, draws: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor, Seen]:
        """The loss of the posterior of the rotation, the relative one, and the rotation [2B] that is taken.

        Args:
            pictures: [2B+O,C,S,S], two views of each and those without orientation. beta: [2B].
        """
        config, both, count = self.config, len(beta), len(pictures)
        turns = torch.cat([beta, beta.new_zeros(count - both)])
        seen = self._see(pictures, turns, None if draws is None else draws[:count])
        known, origin = seen.log_posterior[:both], seen.origin[:both, None]
        angles = bin_angles(known.shape[1]).to(known)
        difference = wrapped(angles + origin - beta[:, None])
        terms: dict[str, Tensor] = {}
        spread = math.radians(config.frame_spread_degrees)
        if config.supervised:
            # Cross-entropy with a target as wide as a bin: the angle itself lies between two.
            near = torch.softmax(torch.cos(difference) / (2 * math.pi / len(angles)) ** 2, 1)
            terms["pose"] = -(near * known).sum(1).mean()
            prior = torch.ones_like(known)
        else:
            prior = range_prior(difference, math.radians(config.rotation_degrees), spread)
            terms["pose"] = -torch.logsumexp(known + torch.log(prior.clamp_min(1e-30)), 1).mean()
        ranked = torch.softmax(known + torch.log(prior.clamp_min(1e-30)), 1)
        rotation = wrapped(find_modes(known.exp(), 1, ranked)[0] + origin)[:, 0]
        one, other = rotation.chunk(2)
        gap = wrapped(one - other - (beta[: both // 2] - beta[both // 2 :])) * (180 / math.pi)
        # A difference beyond 45 degrees is another mode: pulling the two together would move neither.
        terms["relative"] = (F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none") * (gap.abs() < 45)).mean()
        if count > both:
            terms["outlier"] = -seen.log_posterior[both:].mean() - math.log(len(angles))
        return terms, rotation, seen

    def _canonical_target(self, upright: Tensor) -> Tensor:
        """The window of an upright picture, moved and scaled into the canonical frame but not turned."""
        ink, background = self._ink(upright)
        found = self._moments(ink)
        log_scale = torch.log(found.radius / self.reference_radius)
        matrix = self._matrix(torch.zeros_like(log_scale), found.centre, log_scale)
        return (self._windowed(ink, matrix) + background).clamp(0.0, 1.0)

    def _nats(self, target: Tensor, mean: Tensor) -> Tensor:
        """-log p(x|z_c, z, tau) [N] from the mean picture."""
        if self.config.likelihood == "bernoulli":
            mean = mean.clamp(LEAST, 1 - LEAST)
            return F.binary_cross_entropy(mean, target.clamp(0.0, 1.0), reduction="none").flatten(1).sum(1)
        return gaussian_nats(target, mean, self.log_sigma)

    # --- over a data set ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, train: LabelledImages, validation: LabelledImages) -> dict[str, float]:
        """Figures of the validation set in evaluation mode; the config's `metrics` names them, `protocol` tells how."""
        was_training = self.training
        self.eval()
        relative, absolute, nats, kl, assigned = [], [], 0.0, torch.zeros(self.config.z_dim), []
        kl_cluster = 0.0
        source = torch.Generator().manual_seed(0)
        for images, _ in validation.chunks(CHUNK, self.prior.device):
            relative.append(self._turn_errors(images, math.radians(PROBE_DEGREES), source).degrees)
            observed, rotation = self._as_trained(images, source)
            seen = self._see(observed)
            pose = self._pose(seen)
            matrix = pose.matrix
            absolute.append(torch.rad2deg(wrapped(pose.coefficients[:, 0] - rotation.to(matrix))))
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
        count = len(validation)
        kl /= count
        return {
            **(error_figures(torch.cat(absolute), "rotation") if self.config.supervised else {}),
            **error_figures(torch.cat(relative), "rotation", "_60"),
            "reconstruction": nats / count,
            "kl": kl_cluster / count + float(kl.sum()),
            "clustering": 100 * mixture.matched_accuracy(torch.cat(assigned), validation.labels),
            "active_dims": float((kl > ACTIVE_NATS).sum()),
        }

    def _as_trained(self, images: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures turned, moved and scaled over the training range, and their rotation [N] in radians."""
        config, count = self.config, len(images)
        rotation = uniform(count, math.radians(config.rotation_degrees), source)
        shift = 2 * uniform(count, config.shift, source, columns=2)
        matrix = similarity(rotation, shift, torch.exp(uniform(count, config.scale, source)))
        return move(images, matrix.to(images), self._background(images)), rotation

    def _turn_errors(self, images: Tensor, limit: float, source: torch.Generator) -> RelativeError:
        """With the deviations as uncalibrated as the model is."""
        return relative_error(self.pose, images, limit, source, self._background(images))

    def _errors(self, images: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of pictures turned over the training range: error of the angle [N] and its deviation [N,1], degrees."""
        rotation = uniform(len(images), math.radians(self.config.rotation_degrees), source).to(images)
        known = similarity(rotation)
        pose = self.pose(move(images, known, self._background(images), "bicubic"))
        error = wrapped(pose.coefficients[:, 0] - rotation)
        return torch.rad2deg(error), torch.rad2deg(pose.coefficients_std[:, :1])

    def _scale_errors(self, images: Tensor, source: torch.Generator) -> Tensor:
        """Of pictures turned and scaled over the training range: log of the scale found over the known one [N]."""
        config, count = self.config, len(images)
        known = uniform(count, config.scale, source).to(images)
        matrix = similarity(uniform(count, math.radians(config.rotation_degrees), source).to(images), None, known.exp())
        moved = move(images, matrix, self._background(images), "bicubic")
        before, after = (self._moments(self._ink(seen)[0]).radius for seen in (images, moved))
        return torch.log(after / before) - known

    @torch.no_grad()
    def calibrate(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Fit the factor of the rotation's standard deviation, the deviations of shift and scale, and of data with
        classes what `classify` holds.

        One factor: 68.3 % of the errors, flips apart, lie within one standard deviation. They are those against the
        known rotation where training knew it too, else those between two views of a picture.
        """
        self.eval()
        self.std_factor.fill_(1.0)
        source = torch.Generator().manual_seed(1)
        limit = math.radians(min(self.config.rotation_degrees, PROBE_DEGREES))
        found = [self._turn_errors(images, limit, source) for images, _ in validation.chunks(CHUNK, self.prior.device)]
        error, stds, middle = (torch.cat(parts) for parts in zip(*found, strict=True))
        if self.config.supervised:
            known = [self._errors(images, source) for images, _ in validation.chunks(CHUNK, self.prior.device)]
            error, stds = (torch.cat(parts) for parts in zip(*known, strict=True))
        same = error.abs() < FLIP_DEGREES / 2
        if same.any():
            self.std_factor.copy_(coverage_factor(error.abs()[same], stds[same].norm(dim=1)))
        # Over the whole circle more than a few digits have two modes, and a deviation above the flat posterior's.
        usual = torch.deg2rad(stds.flatten()[: 2**20].quantile(0.95))
        self.std_knee.copy_(torch.minimum(usual, self._flat_deviation()[0] / 2))
        self.frame_std[:2] = middle.std(0) / math.sqrt(2)
        if self.config.group == "SIM2":
            scales = [self._scale_errors(images, source) for images, _ in validation.chunks(CHUNK, self.prior.device)]
            self.frame_std[2] = torch.cat(scales).std() / math.sqrt(2)
        if self.classes is not None:
            self._fit_classes(self.classes, train, validation)

    def _fit_classes(self, classes: ClassMeans, train: LabelledImages, validation: LabelledImages) -> None:
        """Class means of z_c: labels take no part in the training, but tell what its embedding says of the classes."""
        source = torch.Generator().manual_seed(2)

        def shown(data: LabelledImages) -> Tensor:
            """Embeddings [N,D] of pictures in poses of the training range."""
            chunks = data.chunks(CHUNK, self.prior.device)
            return torch.cat([self.embed(self._as_trained(images, source)[0]) for images, _ in chunks])

        prototypes = prototypes_of(shown(train), train.labels, len(classes.prototypes))
        # A few validation pictures do not tell how far good ones may lie: those of the training in other poses do, too.
        known = [shown(train)] if len(validation) < ENOUGH else []
        classes.fit(prototypes, shown(validation), validation.labels, known)
