"""EquiVAE: invariant-equivariant representation learning for multi-class data (Feige, ICML 2019), supervised.

    complements of x in its class --f_inv--> mean --> r_y [N,D]     what the class shares (Eq. 2)
    x, r_y --q--> mu, log variance --> v ~ q(v|r_y,x) [N,V]         what is x's own (Eq. 3)
    r_y, v --decoder--> p(x|r_y,v)
    L = E_q log p(x|r_y,v) - KL[q(v|r_y,x) || N(0,I)]               per image; log p(y) is a constant (Eq. 4)
    p(y|x) ~ exp(-||f_inv(x) - r_y||^2), r_y over the training set  the classifier, no parameters of its own

What the paper leaves open, and what is done here:

1. Eq. 2 averages the outputs f_inv(x); App. B averages the 128 hidden units and then applies the two last layers.
   Training follows App. B. With one image the two agree, so f_inv(x) is the same net with m = 1; the class's r_y for
   the classifier is the mean of f_inv(x) over the training class.
2. The variance of the Gaussian likelihood is not stated: one learned log sigma for all pixels, clamped to [-4, 2].
   It starts at -1: from 0 the KL outweighs the reconstruction at first, and v collapses on small images. The
   "per-pixel standardised" images take the training set's mean and deviation at every pixel and channel.
3. The widths after the concatenations, the decoder's first map and the padding are not stated: r has a dense layer
   of 64 units in q as in the decoder, mu and log variance one hidden layer of 64 each; 128 units as printed make a
   map of 32 x 2 x 2; "same" padding (28 -> 28, 14, 7, 4, 2), mirrored by the decoder through output padding.
   32 x 32 ends at 2 x 2 too. Weights are He's (not stated): PyTorch's default left v collapsed.
4. Labelled and unlabelled terms are summed without a ratio: here is the supervised half, the other and its answer are
   in training/models/equivae_few.py.
5. Error bars over seeds are std / sqrt(n - 1), which is the standard error when std is the population's (ddof = 0).
6. A class needs two images at least, or x has no complement: fewer is an error that names the class.

`complements: encoded` is the paper: m ~ U{1..max_complements} once a step, m others of the class drawn from the
whole training set for every x and encoded apart from it. `complements: in_batch` encodes every image of a
class-balanced batch once and mixes the hidden units as R = W H, W [B,B] row-stochastic with m entries in random
other members of the class, m drawn for each row: Eq. 2 at a fifth of the cost. There the encoder sees augmented
images; what q sees and the decoder explains are the images as they are.

`complements: own` is the paper's negative experiment: r is f_inv of x itself, so that it can say all there is of x, and
v is left with nothing (its KL falls to 0).

`distance_weight` > 0 adds cross-entropy of the classifier (r_y: means in the batch, x left out): such a model is
EquiVAE + distance term. Beside it `reject_distance` adds one more class at that constant squared distance, right for
made-up images that are no class at all (`training.outliers`), so that nearness means something outside the data too.

Eq. 4 rewards v for saying again what r says wherever the decoder mixes the two badly. Two more terms answer that:
`class_mean_weight` on the squared length of the class means of mu(v), which a linear probe lives on, and `swap_weight`
on the cross-entropy of the class that f_inv sees in pictures decoded from r and v of different images. A recipe
that uses either is named so: EquiVAE + distance, class-mean and swap terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contract.manifest import InputSpec
from training.augment import augment
from training.complements import draw_complements, in_batch_weights
from training.distances import (
    ENOUGH,
    ClassMeans,
    batch_means,
    leave_one_out_distances,
    prototypes_of,
    squared_distances,
)
from training.latent import ACTIVE_NATS, class_mean_energy, gaussian_nats, kl_per_dimension, sample
from training.models.base import Model
from training.models.equivae_config import EquiVAEConfig
from training.models.equivae_parts import Posterior, body_of, decoder_of
from training.networks import dense, he_initialise
from training.outliers import outliers

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["EquiVAE"]

CHUNK = 500  # images a forward pass where no gradient is kept
KNOWN = 1000  # pictures taken to tell how far good ones may lie, where the validation set is too small for it
AUGMENTED = 50  # images changed at a time
SWAP_RISE = 0.1  # share of the training over which the swap term's weight rises: f_inv must judge well first


class EquiVAE(Model):
    """Images are float32 [N,C,H,W] in [0,1] at every public method; scaling for the likelihood is inside."""

    protocol = (
        "error (%) by distance to the class means of all training images",
        "reconstruction and kl in nats an image, v = mu",
    )

    pixel_mean: Tensor
    pixel_deviation: Tensor

    def __init__(self, config: EquiVAEConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.input = input
        self.num_classes = num_classes
        self.body = body_of(config.encoder, input)
        self.head = dense(config.encoder.hidden, config.encoder_head, config.r_dim, final_relu=False)
        self.posterior = Posterior(config, input)
        self.decoder = decoder_of(config, input)
        he_initialise(self)
        if config.likelihood == "gaussian":
            self.log_sigma = nn.Parameter(torch.full((), -1.0))
        shape = (input.channels, input.height, input.width)
        self.register_buffer("pixel_mean", torch.zeros(shape))
        self.register_buffer("pixel_deviation", torch.ones(shape))
        self.classes = ClassMeans(num_classes, config.r_dim)

    def prepare(self, train: LabelledImages) -> None:
        """Take what the model needs to know of the training set before the first step.

        Raises:
            ValueError: a class has fewer than two images.
        """
        counts = torch.bincount(train.labels, minlength=self.num_classes)
        for index, count in enumerate(counts.tolist()):
            if count < 2:
                raise ValueError(f"class {train.class_names[index]!r} has {count} images: x needs a complement")
        self._standardise_by(train.images)

    def _standardise_by(self, images: Tensor) -> None:
        """Take mean and deviation of every pixel, for the Gaussian likelihood, from images uint8 [N,C,H,W]."""
        if self.config.likelihood == "gaussian":
            total = squares = torch.zeros(images.shape[1:], dtype=torch.int64)
            for part in torch.split(images, CHUNK):  # the whole set in floating point would be many times as large
                total = total + part.sum(0)
                squares = squares + (part.int() ** 2).sum(0)
            mean = total.double() / len(images)
            variance = (squares - mean * total) / (len(images) - 1)
            self.pixel_mean.copy_(mean / 255)
            self.pixel_deviation.copy_((variance.clamp_min(0).sqrt() / 255).clamp_min(1e-2))

    # --- one step of training -------------------------------------------------------------------------------------

    def batch(self, data: LabelledImages, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Gather the images `indices` [B] with their complements; a function of the generator's state alone.

        Returns:
            images [B,C,H,W] and labels [B], and for `encoded` complements [B,m,C,H,W]; for `in_batch` encoded
            [B+O,C,H,W], what f_inv sees (augmented, the O outliers last), and weights [B,B].
        """
        images = data.images[indices].float() / 255
        labels = data.labels[indices]
        if self.config.complements == "encoded":
            chosen = draw_complements(data.grouped, indices, self.config.max_complements, generator)
            return {"images": images, "labels": labels, "complements": data.images[chosen].float() / 255}
        encoded = self._augmented(images, generator)
        if self.config.outlier_share:
            encoded = torch.cat([encoded, self._outliers(data, images, generator)])
        if self.config.complements == "own":
            weights = torch.eye(len(images))
        else:
            weights = in_batch_weights(labels, self.config.max_complements, generator)
        return {"images": images, "labels": labels, "encoded": encoded, "weights": weights}

    def _outliers(self, data: LabelledImages, images: Tensor, generator: torch.Generator) -> Tensor:
        """Of no class, for the images [N,C,H,W] of a batch: made up, half of them the data's own where it has any."""
        own = data.outliers
        count = max(1 if own is None else 2, round(self.config.outlier_share * len(images)))
        given = 0 if own is None else count // 2
        chosen = torch.randperm(len(images), generator=generator)[: count - given]
        made_up = outliers(images[chosen], generator, self.config.outliers_as_content)
        if own is None:
            return made_up
        drawn = own[torch.randint(len(own), (given,), generator=generator)].float() / 255
        return torch.cat([made_up, self._augmented(drawn, generator)])

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images if self.config.augment is None else augment(images, self.config.augment, generator)

    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Mean over the batch of -L (Eq. 4), plus the distance term where it is asked for; all in nats an image.

        Args:
            generator: of the draw v ~ q(v|r,x), on the batch's device.
            progress: share of the training done, in [0,1]; the swap term's weight rises over the first tenth.
        Returns:
            the scalars loss, reconstruction, kl, and where they are used distance, batch_error (%), class_mean, swap.
        """
        return self._terms(batch, self._hidden(batch), generator, progress)

    def _hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """What f_inv's body makes of the images that r comes from: [B,m,hidden] or, in the batch, [B+O,hidden]."""
        if self.config.complements != "encoded":
            return self.body(batch["encoded"])
        complements = batch["complements"]
        return self.body(complements.flatten(0, 1)).unflatten(0, complements.shape[:2])

    def _terms(
        self, batch: dict[str, Tensor], hidden: Tensor, generator: torch.Generator | None, progress: float
    ) -> dict[str, Tensor]:
        """`loss` of a batch whose `_hidden` has been run."""
        images, labels = batch["images"], batch["labels"]
        config = self.config
        terms: dict[str, Tensor] = {}
        class_means = None
        if config.complements == "encoded":
            r = self.head(hidden.mean(1))
        else:
            r = self.head(batch["weights"].to(hidden.dtype) @ hidden[: len(labels)])
            if config.distance_weight:
                embeddings = self.head(hidden).float()
                terms |= self._distance_terms(embeddings, labels)
                class_means = batch_means(embeddings[: len(labels)].detach(), labels, self.num_classes)
        mean, log_variance = self.posterior(r, images)
        mean, log_variance = mean.float(), log_variance.float()
        v = sample(mean, log_variance, generator)
        terms["reconstruction"] = self.reconstruction(images, r, v).mean()
        terms["kl"] = kl_per_dimension(mean, log_variance).sum(1).mean()
        loss = terms["reconstruction"] + terms["kl"]
        if class_means is not None:
            loss = loss + config.distance_weight * terms["distance"]
        if config.class_mean_weight:
            # As an estimate of a squared length the term can fall below zero, and in training it did; with its
            # gradient in r the KL grew. So r is fixed here, and there is no reward below zero.
            fixed, _ = self.posterior(r.detach(), images)
            terms["class_mean"] = class_mean_energy(fixed.float(), labels, self.num_classes)
            loss = loss + config.class_mean_weight * terms["class_mean"].clamp_min(0)
        if config.swap_weight and class_means is not None:
            terms["swap"] = self._swap_term(r.detach(), v, labels, class_means, generator)
            loss = loss + config.swap_weight * min(1.0, progress / SWAP_RISE) * terms["swap"]
        return {"loss": loss, **terms}

    def _distance_terms(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the distances to the batch's class means; rows past the labels are outliers."""
        distances = leave_one_out_distances(embeddings, labels, self.num_classes)
        error = 100 * (distances[: len(labels)].argmin(1) != labels).float().mean()
        targets = torch.full((len(embeddings),), self.num_classes, device=labels.device)
        targets[: len(labels)] = labels
        return {"distance": F.cross_entropy(self._logits(distances), targets), "batch_error": error}

    def _logits(self, distances: Tensor) -> Tensor:
        """-distances [N,K], with `reject_distance` as one more class where it is used."""
        if self.config.reject_distance is not None:
            distances = torch.cat([distances, torch.full_like(distances[:, :1], self.config.reject_distance)], 1)
        return -distances

    def _swap_term(
        self, r: Tensor, v: Tensor, labels: Tensor, class_means: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Cross-entropy of the class that f_inv sees in decode(r, v) with r and v of different images.

        Two thirds of the v are other images', one third the prior's. The gradient reaches the decoder and q; f_inv
        judges with fixed weights and running statistics.
        """
        count = max(2, round(self.config.swap_share * len(r)))
        contents = torch.randperm(len(r), generator=generator, device=r.device)[:count]
        styles = torch.randperm(len(r), generator=generator, device=r.device)[: count - count // 3]
        prior = torch.randn((count // 3, v.shape[1]), generator=generator, device=v.device)
        images = self.decode(r[contents], torch.cat([v[styles], prior]))
        embeddings = self._judge(images).float()
        return F.cross_entropy(self._logits(squared_distances(embeddings, class_means)), labels[contents])

    def _judge(self, images: Tensor) -> Tensor:
        """f_inv as in evaluation, differentiable in the images alone: [N,C,H,W] -> [N,D]"""
        network = nn.Sequential(self.body, self.head)
        network.eval().requires_grad_(False)
        try:
            embeddings: Tensor = network(images)
        finally:
            network.train(self.training).requires_grad_(True)
        return embeddings

    # --- the parts ------------------------------------------------------------------------------------------------

    def invariant(self, images: Tensor) -> Tensor:
        """f_inv with m = 1: [N,C,H,W] -> r [N,D]"""
        return self.head(self.body(images))

    def decode(self, r: Tensor, v: Tensor) -> Tensor:
        """The mean of p(x|r,v): [N,D], [N,V] -> images [N,C,H,W] in [0,1]"""
        output = self.decoder(r, v)
        if self.config.likelihood == "bernoulli":
            return torch.sigmoid(output)
        return (output * self.pixel_deviation + self.pixel_mean).clamp(0, 1)

    def reconstruction(self, images: Tensor, r: Tensor, v: Tensor) -> Tensor:
        """-log p(x|r,v) in nats [N]: of grey values under the Bernoulli, of standardised pixels under the Gaussian."""
        output = self.decoder(r, v).float()
        if self.config.likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(output, images, reduction="none").flatten(1).sum(1)
        target = (images - self.pixel_mean) / self.pixel_deviation
        return gaussian_nats(target, output, self.log_sigma)

    # --- what is served -------------------------------------------------------------------------------------------

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embedding [N,D], squared distances [N,K], probabilities [N,K] and novelty [N] in [0,1]; after `calibrate`.

        Novelty is the share of the known images of the nearest class, in general the validation set's, that lie nearer
        to it.
        """
        embeddings = self.invariant(images)
        return embeddings, *self.classes(embeddings)

    def recombine(self, content: Tensor, style: Tensor) -> Tensor:
        """The class of one picture in the style of another, decode(r(content), mu(r(style), style)) (Fig. 5b).

        One pass of f_inv over both: in a graph, two would share their weights, and a weight used twice keeps its batch
        norm as a node of its own.
        """
        both = torch.stack([content, style], 1).reshape(-1, *content.shape[1:])
        content_r, style_r = self.invariant(both).reshape(content.shape[0], 2, -1).unbind(1)
        style_v, _ = self.posterior(style_r, style)
        return self.decode(content_r, style_v)

    # --- over a data set ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, train: LabelledImages, validation: LabelledImages) -> dict[str, float]:
        """Figures of the validation set in evaluation mode; r_y are means over the training set.

        Returns:
            error (%) by distance; reconstruction, kl and elbo (nats an image, v = mu in the reconstruction, r the class
            mean or, for `complements: own`, the image's own);
            active_dims, the dimensions of v with a mean KL above 0.1 nat.
        """
        was_training = self.training
        self.eval()
        prototypes = self.class_means(train)
        wrong = nats = 0.0
        kl = torch.zeros(self.config.v_dim)
        for images, labels in validation.chunks(CHUNK, self.pixel_mean.device):
            own = self.invariant(images)
            wrong += float((squared_distances(own, prototypes).argmin(1) != labels).sum())
            r = own if self.config.complements == "own" else prototypes[labels]
            mean, log_variance = self.posterior(r, images)
            nats += float(self.reconstruction(images, r, mean).sum())
            kl += kl_per_dimension(mean, log_variance).sum(0).cpu()
        self.train(was_training)
        count = len(validation.labels)
        kl /= count
        total = float(kl.sum())
        return {
            "error": 100 * wrong / count,
            "reconstruction": nats / count,
            "kl": total,
            "elbo": -nats / count - total,
            "active_dims": float((kl > ACTIVE_NATS).sum()),
        }

    @torch.no_grad()
    def _embeddings(self, images: Tensor) -> Tensor:
        """f_inv of a data set's images, uint8 [N,C,H,W], in the mode that the model is in: [N,D]"""
        device = self.pixel_mean.device
        return torch.cat([self.invariant(part.to(device).float() / 255).float() for part in torch.split(images, CHUNK)])

    def class_means(self, data: LabelledImages) -> Tensor:
        """r_y [K,D], the mean of f_inv over each class's images.

        Raises:
            ValueError: a class has no image.
        """
        return prototypes_of(self._embeddings(data.images), data.labels, self.num_classes)

    @torch.no_grad()
    def calibrate(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Fix what `classify` holds.

        Prototypes of the training set; the temperature of least negative log-likelihood on the validation set; and
        quantiles of how far good pictures lie, those of the validation set where it is large: see `_of_known_classes`.
        """
        self.eval()
        known = [self._embeddings(images) for images in self._of_known_classes(train, validation)]
        self.classes.fit(self.class_means(train), self._embeddings(validation.images), validation.labels, known)

    def _of_known_classes(self, train: LabelledImages, validation: LabelledImages) -> Iterator[Tensor]:
        """Extra pictures for the distance quantiles if the validation set has fewer than ENOUGH: unlabelled ones, else
        strongly augmented training pictures. Too few make half of all good pictures look novel.

        Returns:
            uint8 [M,C,H,W], some at a time.
        """
        count, draw = len(validation), torch.Generator().manual_seed(0)
        if count < ENOUGH and train.unlabelled is not None:
            chosen = torch.randperm(len(train.unlabelled), generator=draw)[:KNOWN]
            count += len(chosen)
            yield from (train.unlabelled[rows] for rows in torch.split(chosen, CHUNK))
        if count < ENOUGH and self.config.augment is not None:
            stronger = self.config.augment.stronger()
            for rows in torch.split(torch.randint(len(train), (KNOWN,), generator=draw), AUGMENTED):
                copies = augment(train.images[rows].float() / 255, stronger, draw)
                yield (255 * copies).round().byte()
