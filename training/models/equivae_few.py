"""EquiVAE with few labels (Feige, ICML 2019, Section 3.3): most images come without their class.

    x --q--> q(y|x) [N,K]                             a net of its own, which sees f_inv(x) without a gradient (App. B)
    L_unlab = sum_y q(y|x) [E_q log p(x|r_y,v) - KL_v(y)] - KL[q(y|x) || p(y)]         every y, no sampling (Eq. 6)
    L = mean of L_lab + log q(y|x) over labelled, mean of L_unlab over unlabelled images      (Eq. 7)

r_y are means over labelled images alone. What the paper leaves open, and what is done here:

1. Eq. 7 sums over all images and gives no ratio of labelled to unlabelled ones within a step: each step takes a batch
   of both, and each half counts by its mean.
2. p(y) is uniform: labels are class-balanced here, and the frequencies of the unlabelled images are not known.
3. The complements of an unlabelled x are m labelled images of every class, drawn once a step for all of them
   (`complements: encoded`), or all labelled images of the batch (`in_batch`).
4. The dropout rate is not stated: 0.5.
5. Every class of an unlabelled image costs one pass of the decoder. `decoded` takes the term of Eq. 6, a mean over
   unlabelled images, over that many of the batch: the same expectation at a fraction of the cost.
6. The classes of an image differ by tens of nats in Eq. 6, so that q(y|x) takes the one that an untrained decoder
   happens to draw best, which then learns to draw it so: what is wrong at first stays wrong. `labels_first` keeps the
   gradient of Eq. 6 from q(y|x) for that share of the training: the decoder learns of classes that the labels tell,
   then both go on with Eq. 7.

`consistency_weight` adds FixMatch (Sohn et al. 2020, Eqs. 3 and 4): where the mean of q(y|x) and of the classifier by
distance is sure of an augmented unlabelled image, a more strongly augmented copy must get the same class from both;
where there are outliers it must lie nearer to it than they do, as a labelled image must.
`align` first divides that mean by its own average over the last steps, so that no class takes more than its share
(distribution alignment: ReMixMatch, Berthelot et al. 2020, Section 3.1, with the uniform prior).
Consistency is what a recipe with augmentation and a distance term gets where it says nothing of unlabelled images
(`Config.for_data`).
Such a model is EquiVAE + consistency; there q of Eq. 6 sees the weakly augmented copy, as f_inv does. `encoder: null`
leaves q its dense layers on f_inv(x): a step costs half, and f_inv learns of unlabelled images by distances alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contract.manifest import InputSpec
from training.augment import augment
from training.complements import draw_complements
from training.distances import batch_means, squared_distances
from training.latent import kl_per_dimension, sample
from training.models.equivae import CHUNK, EquiVAE
from training.models.equivae_config import EquiVAEConfig, FewLabelsConfig
from training.models.equivae_parts import body_of, body_width
from training.networks import he_initialise

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["FewLabelEquiVAE"]

SHARES_STEPS = 50  # over which the class shares of the guesses are averaged


class Classifier(nn.Module):
    """Logits of q(y|x): convolutions on x (where there are any) beside f_inv(x), then dense layers with dropout.

    The gradient stops at f_inv(x).

    Shape: [N,C,H,W], [N,D] -> [N,K]
    """

    def __init__(self, config: EquiVAEConfig, few: FewLabelsConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.body = None if few.encoder is None else body_of(few.encoder, input)
        width = config.r_dim + (0 if few.encoder is None else body_width(few.encoder))
        layers: list[nn.Module] = []
        for hidden in few.widths:
            layers += [nn.Dropout(few.dropout), nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, images: Tensor, r: Tensor) -> Tensor:
        known = r.detach() if self.body is None else torch.cat([self.body(images), r.detach()], 1)
        logits: Tensor = self.layers(known)
        return logits.float()


class FewLabelEquiVAE(EquiVAE):
    """EquiVAE whose training set has `unlabelled` images; what is served is the same."""

    shares: Tensor  # running mean of the guessed class probabilities [K]

    def __init__(self, config: EquiVAEConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__(config, input, num_classes)
        assert config.few_labels is not None
        self.few = config.few_labels
        self.classifier = Classifier(config, self.few, input, num_classes)
        he_initialise(self.classifier)
        self.register_buffer("shares", torch.full((num_classes,), 1 / num_classes))

    def prepare(self, train: LabelledImages) -> None:
        """As the base class; the pixels' mean and deviation are taken of the unlabelled images, the greater part.

        Raises:
            ValueError: there are fewer than two unlabelled images, or a class has fewer than two.
        """
        count = 0 if train.unlabelled is None else len(train.unlabelled)
        if train.unlabelled is None or count < 2:  # one alone has no deviation
            raise ValueError(
                f"model.few_labels needs two unlabelled images at least, not {count}: set data.labels, or put them "
                "into a folder unlabelled"
            )
        super().prepare(train)
        self._standardise_by(train.unlabelled)

    # --- one step of training -------------------------------------------------------------------------------------

    def batch(self, data: LabelledImages, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The base class's labelled batch, and beside it

        Returns:
            unlabelled [U,C,H,W]; for `encoded` of_classes [K,m,C,H,W], labelled images of every class; for consistency
            weak and strong [U,C,H,W].
        """
        batch = super().batch(data, indices, generator)
        assert data.unlabelled is not None
        count = min(self.few.unlabelled_batch, len(data.unlabelled))
        chosen = torch.randperm(len(data.unlabelled), generator=generator)[:count]
        unlabelled = data.unlabelled[chosen].float() / 255
        batch["unlabelled"] = unlabelled
        if self.config.complements == "encoded":
            # One image a class is passed over as if it were x: another one each step.
            skipped = [int(torch.randint(len(members), (1,), generator=generator)) for members in data.by_class]
            anchors = torch.stack([members[k] for members, k in zip(data.by_class, skipped, strict=True)])
            drawn = draw_complements(data.grouped, anchors, self.config.max_complements, generator)
            batch["of_classes"] = data.images[drawn].float() / 255
        if self.few.consistency_weight:
            assert self.config.augment is not None and self.few.strong is not None
            batch["weak"] = augment(unlabelled, self.config.augment, generator)
            batch["strong"] = augment(unlabelled, self.few.strong, generator)
        return batch

    def _hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """As the base class; the strongly augmented copies, where there are any, are the last rows."""
        if "strong" in batch:
            batch = batch | {"encoded": torch.cat([batch["encoded"], batch["strong"]])}
        return super()._hidden(batch)

    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """-L of Eq. 7, plus the terms that are asked for; nats an image.

        Returns:
            the base class's terms, classifier (-log q(y|x), labelled), unlabelled (-L_unlab), and with consistency
            consistency and sure, the share of unlabelled images that are above the threshold.
        """
        labels = batch["labels"]
        count = len(labels)
        hidden = self._hidden(batch)
        hidden, of_copies = hidden.tensor_split([len(hidden) - len(batch.get("strong", ()))])
        terms = self._terms(batch, hidden, generator, progress)
        if "encoded" in batch:
            logits = self.classifier(batch["encoded"][:count], self.head(hidden[:count]))
        else:
            logits = self.logits(batch["images"])
        terms["classifier"] = F.cross_entropy(logits, labels)
        r = self._class_representations(batch, hidden)
        seen = batch.get("weak", batch["unlabelled"])
        with torch.no_grad():
            embeddings = self.invariant(seen).float()
        logits = self.classifier(seen, embeddings)
        decoded = batch["unlabelled"][: self.few.decoded]
        of_decoded = logits[: len(decoded)]
        if progress < self.few.labels_first:
            of_decoded = of_decoded.detach()
        terms["unlabelled"] = self._unlabelled_term(decoded, of_decoded, r, generator)
        loss = terms.pop("loss") + terms["classifier"] + self.few.unlabelled_weight * terms["unlabelled"]
        if "strong" in batch:
            means = batch_means(self.head(hidden[:count]).float(), labels, self.num_classes)
            by_distance = torch.softmax(-squared_distances(embeddings, means.detach()), 1)
            guess = (torch.softmax(logits.detach(), 1) + by_distance) / 2
            if self.few.align:
                guess = self._aligned(guess)
            sure, target = guess.max(1)
            counts = (sure >= self.few.threshold).float()
            copies = self.head(of_copies).float()
            wrong = F.cross_entropy(self.classifier(batch["strong"], copies), target, reduction="none")
            far = F.cross_entropy(self._logits(squared_distances(copies, means)), target, reduction="none")
            terms |= {"consistency": ((wrong + far) * counts).mean(), "sure": counts.mean()}
            loss = loss + self.few.consistency_weight * terms["consistency"]
        return {"loss": loss, **terms}

    def _aligned(self, guess: Tensor) -> Tensor:
        """Guesses [U,K] whose mean over the last steps is uniform, the class shares that the prior expects."""
        self.shares.lerp_(guess.mean(0), 1 / SHARES_STEPS)
        aligned = guess / self.shares
        return aligned / aligned.sum(1, keepdim=True)

    def _class_representations(self, batch: dict[str, Tensor], hidden: Tensor) -> Tensor:
        """r_y of every class [K,D], of labelled images (Eq. 2)."""
        if "of_classes" in batch:
            images = batch["of_classes"]
            return self.head(self.body(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1))
        labels = batch["labels"]
        return self.head(batch_means(hidden[: len(labels)], labels, self.num_classes))

    def _unlabelled_term(self, images: Tensor, logits: Tensor, r: Tensor, generator: torch.Generator | None) -> Tensor:
        """Mean of -L_unlab over images [U,C,H,W] given the logits of q(y|x) [U,K] and r_y [K,D] (Eq. 6)."""
        count, classes = len(images), self.num_classes
        log_q = torch.log_softmax(logits, 1)
        features = self.posterior.body(images).repeat_interleave(classes, 0)  # [U*K,hidden], y runs fastest
        of_y = r.repeat(count, 1)
        mean, log_variance = (value.float() for value in self.posterior.given(features, of_y))
        v = sample(mean, log_variance, generator)
        nats = self.reconstruction(images.repeat_interleave(classes, 0), of_y, v)
        nats = (nats + kl_per_dimension(mean, log_variance).sum(1)).view(count, classes)
        q = log_q.exp()
        return (q * (nats + log_q + math.log(classes))).sum(1).mean()

    # --- the parts ------------------------------------------------------------------------------------------------

    def logits(self, images: Tensor) -> Tensor:
        """Of q(y|x): [N,C,H,W] -> [N,K]"""
        with torch.no_grad():
            r = self.invariant(images)
        logits: Tensor = self.classifier(images, r)
        return logits

    @torch.no_grad()
    def validate(self, train: LabelledImages, validation: LabelledImages) -> dict[str, float]:
        """As the base class, and classifier_error (%), of argmax q(y|x)."""
        figures = super().validate(train, validation)
        was_training = self.training
        self.eval()
        device = self.pixel_mean.device
        wrong = sum(float((self.logits(x).argmax(1) != y).sum()) for x, y in validation.chunks(CHUNK, device))
        self.train(was_training)
        return figures | {"classifier_error": 100 * wrong / len(validation)}
