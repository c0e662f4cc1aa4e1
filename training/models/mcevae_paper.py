"""MCE-VAE (Bajaj, Roy and Zhang, arXiv:2107.01436) as its reference code trains it: recipe `paper`.

    x --convolutions--> features [N,784]
    features --three pairs of heads--> q(z_c|x) [N,n_C], q(z|x) [N,3], q(tau|x) [N,G]     diagonal Gaussians
    z, z_c --gated dense decoder--> canonical image;  resampled with tau --> mean of p(x|z_c, z, tau)
    loss = CE(x, mean) + KL_z + KL_tau + KL_zc + invariance                                nats an image

Which code: yorkiva/MCE-VAE, branch `main` (`MCEVAE.py`, `train_mnist.py`, `data/gen_mnist.py`), with `--loss_type bce`
and its other defaults; on 28 x 28 pixels 3,208,420 parameters for SO(2), 3,208,552 for SE(2). Branch
`update_clustering`, which learns components and their responsibilities (`--classifier vade`), is not this. Where paper
and code differ, the code is followed:

1. z_c. The paper has a mixture: one coordinate active, the others N(0,1) (Eqs. 10 to 14). The code draws all n_C
   coordinates at once and pulls each towards N(1,1) with weight 1 / n_C: 0.5 ((z_c - 1)^2 - 1 - log sigma^2) / n_C.
   That is kept (the code's own expression is this minus n_C / 2). There is no assignment to a cluster in it, so the
   clusters here are those of k-means, k = n_C, on the means of z_c of the training set, found after training.
   `content_prior: gaussian` is the paper's comparison with a single Gaussian: z_c of N(0,I), its KL at weight 1.
2. The KL terms take the drawn sample, not its expectation: 0.5 (z^2 - 1 - log sigma^2), and likewise for tau.
3. Invariance (Eq. 8): CE(x~*, x~) + |z* - z|^2 + |z_c* - z_c|^2, the starred quantities from x under a random M and
   without gradient. Samples are compared, the starred ones too, so the term cannot reach 0; nor can CE(p, p). The
   passes for the starred quantities are made in training mode and move batch norm's running statistics. The code
   takes 25 M a step; `transforms` says how many are taken here.
4. Ranges. Data: +-90 degrees and +-25 % of the width, once an image and never again (training/models/fixed_pose.py). M:
   +-180 degrees and +-0.25 in normalised units, which is +-12.5 % of the width (the text: +-90 degrees, +-25 %).
5. Supervised: CE(upright x, x~) takes the place of the invariance. Eq. 8's "BCE" is a log-likelihood; its sign is as
   here.
6. ELU in the convolutions (paper: ReLU); one ReLU layer for tau (paper: a "similar structure" to two sigmoid layers).
7. The prior of tau is N(0,I) in radians and normalised units (unstated in the paper).

Where this differs from the code:

- SE(2)'s exponential. The code adds 1e-20 to the angle and divides by it: at 0 the gradient is NaN wherever there is a
  shift, and 1 - cos rounds to 0 below 2e-4 rad. The closed forms of training/lie.py hold at 0 too; elsewhere they are
  equal.
- tau holds lie.py's coefficients of `matrix`, canonical -> observed. The code's M is the inverse: its angle is the same
  number, its two shifts have the other sign.
- The images come in a new random order every epoch; the code's loader never shuffles.
- The code keeps the epoch of least reconstruction error on the training set. Which one is kept here is `fit.keep`'s
  business, and that goes by the validation set.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from contract.manifest import InputSpec
from training.latent import kl_per_dimension, sample
from training.lie import DIMENSIONS, exponential, inverse, resample
from training.models.fixed_pose import FixedPoseModel, cross_entropy, one_mode
from training.models.mcevae_paper_config import MCEVAEPaperConfig
from training.models.pose import Canonical, Pose

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["MCEVAEPaper"]

HIDDEN, TAU_HIDDEN, DECODER_HIDDEN = 512, 32, 300
LEAST_CANONICAL = 1 / 512  # the decoder's pixels are clamped to [1/512, 511/512]
INVARIANCE_SHIFT = 0.25  # of the random M, normalised units


class GatedDense(nn.Module):
    """A dense layer times the sigmoid of another: [N,inputs] -> [N,outputs]"""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.value = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * torch.sigmoid(self.gate(x))


class Gaussian(nn.Module):
    """Mean and log variance [N,outputs] of a latent, each by its own network on the features."""

    def __init__(self, mean: nn.Sequential, log_variance: nn.Sequential) -> None:
        super().__init__()
        self.mean, self.log_variance = mean, log_variance

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(features), self.log_variance(features)


def _encoder(channels: int) -> nn.Sequential:
    """[N,C,S,S] -> [N,16,S/4,S/4]"""

    def block(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ELU()]

    blocks = [*block(channels, 32, 5, 1, 2), *block(32, 32, 4, 2, 1), *block(32, 64, 3, 2, 1)]
    return nn.Sequential(*blocks, nn.Conv2d(64, 16, 5, 1, 2), nn.Flatten())


def _latent_head(features: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, outputs)
    )


def _pose_head(features: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(TAU_HIDDEN, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(features, TAU_HIDDEN), nn.ReLU(), last)


class MCEVAEPaper(FixedPoseModel):
    """Images are float32 [N,C,S,S] in [0,1] at every public method, S a multiple of 4."""

    def __init__(self, config: MCEVAEPaperConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.config, self.input = config, input
        self.side = input.height
        features = 16 * (self.side // 4) ** 2
        self.encoder = _encoder(input.channels)
        self.content, self.style, self.pose_heads = (
            Gaussian(head(features, outputs), head(features, outputs))
            for head, outputs in (
                (_latent_head, config.clusters),
                (_latent_head, config.style_dim),
                (_pose_head, DIMENSIONS[config.group]),
            )
        )
        self.decoder = nn.Sequential(
            GatedDense(config.style_dim + config.clusters, DECODER_HIDDEN),
            GatedDense(DECODER_HIDDEN, DECODER_HIDDEN),
            nn.Linear(DECODER_HIDDEN, input.channels * self.side**2),
            nn.Sigmoid(),
            nn.Unflatten(1, (input.channels, self.side, self.side)),
        )
        self.register_buffer("centroids", torch.zeros(config.clusters, config.clusters))

    def prepare(self, train: LabelledImages) -> None:
        """As every model of fixed poses.

        Raises:
            ValueError: also where the images cannot be halved twice.
        """
        if self.side % 4:
            raise ValueError(f"images of {self.side} x {self.side} pixels: recipe paper needs a multiple of 4")
        super().prepare(train)

    # --- one step of training -------------------------------------------------------------------------------------

    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The mean of the objective over the batch, in nats an image.

        Args:
            generator: of every draw, on the batch's device.
            progress: not used: the objective is the same from the first step to the last.
        Returns:
            the scalars loss, reconstruction, invariance (supervised: canonical), kl (of z and tau), kl_content.
        """
        x = batch["observed"]
        features = self.encoder(x)
        style, style_log_variance = _draw(self.style(features), generator)
        content, content_log_variance = _draw(self.content(features), generator)
        tau, tau_log_variance = _draw(self.pose_heads(features), generator)
        canonical = self.decode(content, style)
        observed = resample(canonical, inverse(exponential(self.config.group, tau)))
        terms = {"reconstruction": cross_entropy(x, observed).mean()}
        if self.config.supervised:
            terms["canonical"] = cross_entropy(batch["upright"], canonical).mean()
        else:
            terms["invariance"] = self._invariance(x, content, style, canonical, generator).mean()
        kl = standard_kl(style, style_log_variance) + standard_kl(tau, tau_log_variance)
        kl_content = content_kl if self.config.content_prior == "mixture" else standard_kl
        terms |= {"kl": kl.mean(), "kl_content": kl_content(content, content_log_variance).mean()}
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def _invariance(
        self, x: Tensor, content: Tensor, style: Tensor, canonical: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Eq. 8, the mean over `transforms` random M: [N]"""
        total = torch.zeros(len(x), device=x.device)
        for _ in range(self.config.transforms):
            with torch.no_grad():
                features = self.encoder(resample(x, self._random_transform(x, generator)))
                other_content, _ = _draw(self.content(features), generator)
                other_style, _ = _draw(self.style(features), generator)
                target = self.decode(other_content, other_style)
            total = total + ((other_style - style) ** 2).sum(1) + ((other_content - content) ** 2).sum(1)
            total = total + cross_entropy(target, canonical)
        return total / self.config.transforms

    def _random_transform(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """M of every image: [N,2,3]"""
        group = self.config.group
        limits = torch.tensor([math.pi, INVARIANCE_SHIFT, INVARIANCE_SHIFT][: DIMENSIONS[group]], device=x.device)
        uniform = torch.rand((len(x), len(limits)), generator=generator, device=x.device)
        return exponential(group, (2 * uniform - 1) * limits)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """z_c [N,n_C], z [N,3] -> canonical image [N,C,S,S] in [1/512, 511/512]"""
        return self.decoder(torch.cat([style, content], 1)).clamp(LEAST_CANONICAL, 1 - LEAST_CANONICAL)

    # --- what is served: posteriors at their means ------------------------------------------------------

    def pose(self, images: Tensor) -> Pose:
        """[N,C,S,S] -> the transform of each image; its posterior has one mode."""
        return self._pose(self.encoder(images))

    def _pose(self, features: Tensor) -> Pose:
        mean, log_variance = self.pose_heads(features)
        return one_mode(self.config.group, mean, torch.exp(0.5 * log_variance))

    def canonicalize(self, images: Tensor) -> Canonical:
        """[N,C,S,S] -> pose, the decoder's image, the input resampled through the pose, and z_c."""
        features = self.encoder(images)
        pose = self._pose(features)
        content = self.content.mean(features)
        canonical = self.decode(content, self.style.mean(features))
        return Canonical(pose, canonical, resample(images, pose.matrix), content)

    def embed(self, images: Tensor) -> Tensor:
        """z_c: [N,C,S,S] -> [N,n_C]"""
        return self.latents(images)[0]

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """z_c [N,n_C] and z [N,3]."""
        features = self.encoder(images)
        return self.content.mean(features), self.style.mean(features)

    def rebuild(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The KL is of z, tau and z_c together."""
        features = self.encoder(images)
        style, content, tau = self.style(features), self.content(features), self.pose_heads(features)
        kl = kl_per_dimension(*style).sum(1) + kl_per_dimension(*tau).sum(1)
        if self.config.content_prior == "mixture":
            kl = kl + kl_per_dimension(content[0] - 1, content[1]).mean(1)
        else:
            kl = kl + kl_per_dimension(*content).sum(1)
        canonical = self.decode(content[0], style[0])
        return resample(canonical, inverse(exponential(self.config.group, tau[0]))), kl


# --- terms of the objective, [N] -------------------------------------------------------------------------------------


def _draw(posterior: tuple[Tensor, Tensor], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A sample [N,D] of N(mean, exp(log variance)), and the log variance."""
    mean, log_variance = posterior
    return sample(mean, log_variance, generator), log_variance


def standard_kl(sample: Tensor, log_variance: Tensor) -> Tensor:
    """KL to N(0,I) as the code estimates it from one sample: [N,D] -> [N]; single values may be negative."""
    return 0.5 * (sample**2 - 1 - log_variance).sum(1)


def content_kl(sample: Tensor, log_variance: Tensor) -> Tensor:
    """The code's "mixture" term on z_c: the mean over the coordinates of the KL to N(1,1), from one sample."""
    return 0.5 * ((sample - 1) ** 2 - 1 - log_variance).mean(1)
