"""The symmetry-transformation model of rotations, by the ELBO of its first paper (Allingham, Antoran, Padhy, Nalisnick
and Hernandez-Lobato, "Learning generative models with invariance to symmetries", NeurIPS workshop 2022).

    x [N,C,S,S] --polar map, circular convolutions, mean and maximum over the angle--> q(z|x), invariant to rotation
    z --decoder--> prototype x^ --dense, circular spline flow--> p(eta|x^)
    x, x^ --correlation over the angle--> log p(x|x^, eta) at every bin of the circle

A prototype is drawn, x^ = decoder(z) with z ~ N(0, I), then a transform eta ~ p(eta|x^), then x ~ N(T_eta x^, sigma^2)
on the circle that the frame holds; T_eta is the exponential of training/lie.py. The objective is the poster's (7),

    E_q(z|x) [ E_q(eta|x) log p(x|x^, eta) - KL(q(eta|x) || p(eta|x^)) ] - KL(q(z|x) || p(z)),

with q(eta|x) the best that there is for a given x^, p(eta|x^) p(x|x^, eta) normalised over the bins: as flexible as a
density on a circle can be, and the bracket becomes the logarithm of a sum. Fully invariant encoder: one prototype an
orbit (the poster's second conjecture); a flow that sees the prototype: one mode for a '2' and two for an '8' (the first
and the third).

What is up. Any frame is as good as another to the ELBO, and a 6 may be a turned 9, so that a von Mises density about 0
stands for p(eta|x^) during the first steps, in which the flow only learns: the middle of what is seen of a prototype
becomes its upright. Whether it did is no part of `relative_error_60`, which the encoder makes small by construction.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from contract.manifest import InputSpec
from training.flow import PoseDensity, PoseFlow, WrappedNormal
from training.latent import ACTIVE_NATS, HALF_LOG_2_PI, kl_per_dimension, sample
from training.lie import exponential, resample
from training.models.base import Model
from training.models.mcevae_parts import Decoder
from training.models.pose import Canonical, Pose
from training.models.symmetry_config import SymmetryConfig
from training.models.symmetry_parts import CHUNK, Correlator, InvariantEncoder, fit_smoothing, variants
from training.networks import dense, exactly, he_initialise
from training.rotation import bin_angles, calibrated, deviation, find_modes
from training.turned import (
    PROBE_DEGREES,
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

__all__ = ["Symmetry"]


class Symmetry(Model):
    """The model of a whole configuration; square pictures of light ink on black."""

    protocol = (
        "relative_error_60, _median_60 (degrees) and _flips_60 (% over 90): angle found in a picture and in it turned "
        "by U(+-60), their difference against the turn: nothing is said of the frame",
        "elbo, reconstruction, kl_eta and kl_z in nats a picture turned as in training, one draw of z",
    )

    angles: Tensor
    mask: Tensor
    smoothing: Tensor
    std_factor: Tensor

    def __init__(self, config: SymmetryConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.input = input
        side, encoder, flow = input.height, config.encoder, config.flow
        self.correlator = Correlator(side, encoder.radii, encoder.angles, input.channels)
        self.encoder = InvariantEncoder(input.channels * encoder.radii, config.z_dim, encoder)
        self.decoder = Decoder(config.z_dim, input.channels, side, config.decoder)
        self.features = dense(input.channels * side**2, *flow.features)
        he_initialise(self.features)
        self.prior: nn.Module = (
            WrappedNormal(flow.features[-1], flow.hidden)
            if config.prior == "gaussian"
            else PoseFlow(
                1, 0 if config.prior == "shared" else flow.features[-1], flow.hidden, flow.bins, flow.transforms
            )
        )
        self.log_sigma = nn.Parameter(torch.full((), -1.0))
        centres = (2 * torch.arange(side) + 1) / side - 1
        self.register_buffer("angles", bin_angles(encoder.angles), persistent=False)
        self.register_buffer("mask", (torch.hypot(centres[:, None], centres) < 1).float(), persistent=False)
        self.register_buffer("smoothing", torch.ones(()))
        self.register_buffer("std_factor", torch.ones(()))
        self.turns = torch.zeros(0)

    # --- one step of training -------------------------------------------------------------------------------------

    def prepare(self, train: LabelledImages) -> None:
        """Draw the one turn of every training picture.

        Raises:
            ValueError: the pictures are not upright.
        """
        require_upright(train, f"model.kind: {self.config.kind}")
        source = torch.Generator().manual_seed(self.config.turn_seed)
        self.turns = uniform(len(train), math.radians(self.config.rotation_degrees), source)

    def batch(self, data: LabelledImages, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Pictures as they are seen, each under the turn that it has: views [B,C,S,S]"""
        images = data.images[indices].float() / 255
        bicubic = torch.rand(len(indices), generator=generator) < 0.5
        return {"views": move_by_two(images, similarity(self.turns[indices]), bicubic)}

    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """-ELBO in nats, mean over the batch.

        Returns:
            the scalars loss, elbo, reconstruction, kl_eta, kl_z and, until the flow stands for itself, flow.
        """
        config = self.config
        views = batch["views"]
        mean, log_variance = self.encoder(self._polar(views))
        prototype = self.prototype(sample(mean, log_variance, generator))
        with exactly(views):
            likelihood, prior = self.log_likelihood(views, prototype), self.log_prior(prototype)
        share = progress / config.anchored if config.anchored else 1.0
        anchored = share < 1
        temperature = config.temperature ** max(0.0, 1 - share)
        assumed = torch.log_softmax(config.anchor * torch.cos(self.angles), 0) if anchored else prior
        evidence = temperature * torch.logsumexp(likelihood / temperature + assumed, 1)
        posterior = torch.softmax((likelihood / temperature + assumed).detach(), 1)
        terms = self._terms(likelihood, assumed, posterior)
        kl_z = kl_per_dimension(mean, log_variance).sum(1).mean()
        warm = 1.0 if config.kl_warmup == 0 else min(1.0, progress / config.kl_warmup)
        loss = warm * kl_z - evidence.mean()
        if anchored:
            # Every angle at which the picture looks like its prototype, whatever the anchor thinks of it.
            alike = torch.softmax(likelihood.detach() / temperature, 1)
            terms["flow"] = -(alike * prior).sum(1).mean()
            loss = loss + terms["flow"]
        return {"loss": loss, "elbo": evidence.mean() - kl_z, **terms, "kl_z": kl_z}

    def _terms(self, likelihood: Tensor, prior: Tensor, posterior: Tensor) -> dict[str, Tensor]:
        entropy = -(posterior * torch.log(posterior.clamp_min(1e-30))).sum(1)
        return {
            "reconstruction": -(posterior * likelihood).sum(1).mean(),
            "kl_eta": (-entropy - (posterior * prior).sum(1)).mean(),
        }

    def _polar(self, pictures: Tensor) -> Tensor:
        with exactly(pictures):
            return self.correlator.polar(pictures)

    # --- the parts ------------------------------------------------------------------------------------------------

    def prototype(self, z: Tensor) -> Tensor:
        """x^: [N,Z] -> [N,C,S,S] in [0,1], black outside the circle"""
        return torch.sigmoid(self.decoder(z).float()) * self.mask

    def context(self, prototype: Tensor) -> Tensor:
        """What p(eta|x^) sees of the prototype: [N,C,S,S] -> [N,F]"""
        return self.features(prototype.flatten(1))

    def log_prior(self, prototype: Tensor) -> Tensor:
        """log p(eta|x^) of the bins, normalised over them: [N,C,S,S] -> [N,A]"""
        density: PoseDensity = self.prior  # type: ignore[assignment]
        context = self.context(prototype)
        places = self.angles[:, None, None] + 0 * context[:, :1]
        return torch.log_softmax(density.log_prob(context, places).T, 1)

    def log_likelihood(self, pictures: Tensor, prototype: Tensor) -> Tensor:
        """log p(x|x^, eta) of the bins in nats: [N,C,S,S] twice -> [N,A]"""
        squares = self.correlator(self.correlator.polar(pictures), self.correlator.polar(prototype))
        log_sigma = self.log_sigma.clamp(-4, 1)
        return -0.5 * squares * torch.exp(-2 * log_sigma) - self.correlator.pixels * (log_sigma + HALF_LOG_2_PI)

    def posterior(self, pictures: Tensor, prototype: Tensor) -> Tensor:
        """q(eta|x) of the bins, with the likelihood as much smoother as `calibrate` found: [N,A]"""
        likelihood = self.log_likelihood(pictures, prototype) / self.smoothing
        return torch.softmax(likelihood + self.log_prior(prototype), 1)

    # --- what is served -------------------------------------------------------------------------------------------

    def pose(self, images: Tensor) -> Pose:
        """[N,C,S,S] -> the rotation of each picture, with its modes; after `calibrate`."""
        return self.pose_about(images, self.prototype(self.embed(images)))

    def pose_about(self, images: Tensor, prototype: Tensor) -> Pose:
        """`pose` where the pictures' prototypes are known: [N,C,S,S] twice."""
        posterior = self.posterior(images, prototype)
        angles, weights = find_modes(posterior, self.config.modes)
        std = calibrated(deviation(posterior, angles[:, 0]), self.std_factor)
        modes = exponential("SO2", angles.reshape(-1, 1)).reshape(-1, self.config.modes, 2, 3)
        return Pose(angles[:, :1], std[:, None], modes[:, 0], modes, weights)

    def canonicalize(self, images: Tensor) -> Canonical:
        """[N,C,S,S] -> pose, prototype, the picture turned back, and the mean of q(z|x)."""
        z = self.embed(images)
        prototype = self.prototype(z)
        pose = self.pose_about(images, prototype)
        return Canonical(pose, prototype, resample(images, pose.matrix).clamp(0, 1), z)

    def augment(self, images: Tensor, noise: Tensor) -> Tensor:
        """Plausible variants: images [N,C,S,S], standard normal noise [N,S,G] -> matrices [N,S,2,3].

        See `training.models.symmetry_parts.variants`.
        """
        return self.everything(images, noise)[1]

    @property
    def draws_variants(self) -> bool:
        """Whether it has `augment` and `everything`: no flow, nothing to draw with."""
        return isinstance(self.prior, PoseFlow)

    def everything(self, images: Tensor, noise: Tensor) -> tuple[Canonical, Tensor]:
        """What `canonicalize` and `augment` give."""
        assert isinstance(self.prior, PoseFlow)
        canonical = self.canonicalize(images)
        drawn = self.prior.transform(self.context(canonical.canonical), noise.transpose(0, 1)).transpose(0, 1)
        return canonical, variants(canonical.pose.matrix, drawn, self.config.group)

    def embed(self, images: Tensor) -> Tensor:
        """The mean of q(z|x), which no rotation changes: [N,C,S,S] -> [N,Z]"""
        return self.encoder(self._polar(images))[0]

    # --- over a data set ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, train: LabelledImages, validation: LabelledImages) -> dict[str, float]:
        """Figures of the validation set in evaluation mode; the config's `metrics` names them, `protocol` tells how."""
        was_training = self.training
        self.eval()
        sums = dict.fromkeys(("elbo", "reconstruction", "kl_eta"), 0.0)
        kl = torch.zeros(self.config.z_dim)
        errors = []
        source = torch.Generator().manual_seed(0)
        for images, _ in validation.chunks(CHUNK, self.angles.device):
            errors.append(relative_error(self.pose, images, math.radians(PROBE_DEGREES), source).degrees)
            turns = uniform(len(images), math.radians(self.config.rotation_degrees), source).to(images)
            seen = move(images, similarity(turns), mode="bicubic")
            mean, log_variance = self.encoder(self._polar(seen))
            noise = torch.randn(mean.shape, generator=source).to(mean)
            prototype = self.prototype(mean + torch.exp(0.5 * log_variance) * noise)
            likelihood, prior = self.log_likelihood(seen, prototype), self.log_prior(prototype)
            terms = self._terms(likelihood, prior, torch.softmax(likelihood + prior, 1))
            kl += kl_per_dimension(mean, log_variance).sum(0).cpu()
            for name, value in terms.items():
                sums[name] += float(value) * len(images)
        self.train(was_training)
        count = len(validation)
        kl /= count
        reconstruction, kl_eta = sums["reconstruction"] / count, sums["kl_eta"] / count
        return {
            **error_figures(torch.cat(errors), "relative", "_60"),
            "elbo": -reconstruction - kl_eta - float(kl.sum()),
            "reconstruction": reconstruction,
            "kl_eta": kl_eta,
            "kl_z": float(kl.sum()),
            "active_dims": float((kl > ACTIVE_NATS).sum()),
        }

    @torch.no_grad()
    def calibrate(self, train: LabelledImages, validation: LabelledImages) -> None:
        """See `fit_smoothing`."""
        self.eval()
        fit_smoothing(self, validation, math.radians(PROBE_DEGREES))
