"""Labelled pictures in memory, and their division into training, validation and test."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contract.manifest import InputSpec, Preprocessing
from training.complements import Grouped
from training.errors import DataError


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 [N,C,H,W] in 0..255, labels int64 [N] that index `class_names`.

    turns: float32 [N], radians counter-clockwise as seen by which each image is known to be turned; None: not known.
    unlabelled: uint8 [M,C,H,W], more pictures of these classes, of which nobody says which.
    outliers: uint8 [O,C,H,W], pictures of none of these classes.
    files: where each image was read from, within the data's folder; None: not from a file of its own.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    turns: Tensor | None = None
    unlabelled: Tensor | None = None
    outliers: Tensor | None = None
    files: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 [N,C,H,W], not {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be int64 [{len(self.images)}], not {self.labels.dtype} {self.labels.shape}")
        if self.turns is not None and (self.turns.dtype != torch.float32 or self.turns.shape != self.labels.shape):
            raise ValueError(f"turns must be float32 [{len(self.images)}], not {self.turns.dtype} {self.turns.shape}")
        if self.files is not None and len(self.files) != len(self.labels):
            raise ValueError(f"{len(self.files)} files of {len(self.labels)} images")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise ValueError("a label lies outside class_names")
        for name, more in (("unlabelled images", self.unlabelled), ("outliers", self.outliers)):
            if more is not None and (more.dtype != torch.uint8 or more.shape[1:] != self.images.shape[1:]):
                raise ValueError(f"{name} must be as the others, not {more.dtype} {tuple(more.shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def by_class(self) -> tuple[Tensor, ...]:
        """Indices of every class's images, ascending: K tensors int64 [N_k]."""
        return tuple(torch.nonzero(self.labels == k).flatten() for k in range(self.num_classes))

    @cached_property
    def grouped(self) -> Grouped:
        return Grouped(self.labels)

    def chunks(self, count: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [N,C,H,W] in [0,1] and labels [N] on a device, `count` at a time."""
        for start in range(0, len(self), count):
            rows = slice(start, start + count)
            yield self.images[rows].to(device).float() / 255, self.labels[rows].to(device)

    def subset(self, indices: Tensor) -> "LabelledImages":
        """Some of the labelled images, without the unlabelled ones and the outliers."""
        turns = None if self.turns is None else self.turns[indices]
        files = None if self.files is None else tuple(self.files[index] for index in indices.tolist())
        return LabelledImages(self.images[indices], self.labels[indices], self.class_names, turns=turns, files=files)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "LabelledImages":
        """All pictures changed, the labelled ones first and the outliers last: uint8 [N,C,H,W] -> uint8 [N,C',H',W']"""
        images = change(self.images)
        unlabelled = None if self.unlabelled is None else change(self.unlabelled)
        outliers = None if self.outliers is None else change(self.outliers)
        return replace(self, images=images, unlabelled=unlabelled, outliers=outliers)

    def padded(self, side: int) -> "LabelledImages":
        """Each image in the middle of a square of 0."""
        height, width = self.images.shape[2:]
        top, left = (side - height) // 2, (side - width) // 2
        margins = (left, side - width - left, top, side - height - top)
        return self.mapped(lambda images: F.pad(images, margins))

    def without(self, excluded: tuple[str, ...]) -> "LabelledImages":
        """The images of the other classes; labels are renumbered in the order that remains."""
        kept = [k for k, name in enumerate(self.class_names) if name not in excluded]
        renumbered = torch.full((self.num_classes,), -1)
        renumbered[kept] = torch.arange(len(kept))
        remaining = self.subset(torch.nonzero(renumbered[self.labels] >= 0).flatten())
        names = tuple(self.class_names[k] for k in kept)
        return replace(remaining, labels=renumbered[remaining.labels], class_names=names, outliers=self.outliers)

    def with_few_labels(self, count: int, seed: int) -> "LabelledImages":
        """Keep `count` labels, equally many of every class and chosen by the seed; the other images lose theirs.

        Raises:
            ValueError: `count` does not divide among the classes, is under two a class, or is more than there are.
        """
        each, remainder = divmod(count, self.num_classes)
        fewest = min(len(members) for members in self.by_class)
        if remainder or not 2 <= each <= fewest:
            raise ValueError(
                f"{count} labels are not equally many of each of {self.num_classes} classes, two at least and "
                f"{fewest} at most"
            )
        generator = torch.Generator().manual_seed(seed)
        chosen = [members[torch.randperm(len(members), generator=generator)[:each]] for members in self.by_class]
        kept = torch.zeros(len(self), dtype=torch.bool)
        kept[torch.cat(chosen)] = True
        others = self.images[~kept]
        others = others if self.unlabelled is None else torch.cat([others, self.unlabelled])
        return replace(self.subset(torch.nonzero(kept).flatten()), unlabelled=others, outliers=self.outliers)

    def digest(self) -> str:
        """SHA-256 over shape, class names, labels, turns and pixels: equal data, equal digest, from anywhere."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.class_names)).encode())
        sha.update(self.labels.contiguous().numpy().astype("<i8").tobytes())
        if self.turns is not None:
            sha.update(self.turns.contiguous().numpy().astype("<f4").tobytes())
        sha.update(self.images.contiguous().numpy().data)
        if self.unlabelled is not None:
            sha.update(self.unlabelled.contiguous().numpy().data)
        if self.outliers is not None:
            sha.update(b"outliers")
            sha.update(self.outliers.contiguous().numpy().data)
        return sha.hexdigest()


@dataclass(frozen=True)
class Splits:
    """One data set, divided.

    skipped: 'file: reason' for everything that could not be used.
    doubts: what is used but hardly meant, a sentence each.
    """

    name: str
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages | None
    input: InputSpec
    preprocessing: Preprocessing
    skipped: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, LabelledImages]:
        present = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in present.items() if part is not None}

    @property
    def counts(self) -> dict[str, int]:
        """Images of each part, and those of the training set that have no label or are of no class."""
        counts = {name: len(part) for name, part in self.parts.items()}
        more = {"unlabelled": self.train.unlabelled, "outliers": self.train.outliers}
        return counts | {name: len(images) for name, images in more.items() if images is not None}

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the digests of the parts, so that another split of the same images differs."""
        return hashlib.sha256("".join(f"{n}:{part.digest()};" for n, part in self.parts.items()).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What the model folder says of its data: name, digest, images in each part, files that were left out."""
        return {"name": self.name, "digest": self.digest, "counts": self.counts, "skipped": len(self.skipped)}

    def on_canvas(self, side: int) -> "Splits":
        """The pictures in the middle of a canvas of 0, so that they can be turned and moved without a loss.

        Raises:
            DataError: the canvas is smaller than the pictures, or 0 is not their ground.
        """
        before = self.input.height
        if side < before or self.preprocessing.polarity != "light":
            reason = f"is smaller than {before}" if side < before else "needs light ink on a dark ground"
            raise DataError(f"{self.name}: canvas {side} {reason}")
        margin = (self.preprocessing.margin * before + (side - before) / 2) / side
        return replace(
            self,
            train=self.train.padded(side),
            validation=self.validation.padded(side),
            test=self.test.padded(side) if self.test is not None else None,
            input=self.input.model_copy(update={"height": side, "width": side}),
            preprocessing=self.preprocessing.model_copy(update={"margin": margin}),
        )

    def without(self, excluded: tuple[str, ...]) -> "Splits":
        """The data set without some classes (models for novelty are trained this way)."""
        if not excluded:
            return self
        if self.train.unlabelled is not None:
            raise DataError(f"{self.name}: classes cannot be excluded where some pictures have no label")
        if unknown := [name for name in excluded if name not in self.class_names]:
            raise DataError(f"{self.name}: no class {', '.join(unknown)}; there are {', '.join(self.class_names)}")
        if len(self.class_names) - len(set(excluded)) < 2:
            raise DataError(f"{self.name}: at least two classes must remain, but all except one are excluded")
        test = self.test.without(excluded) if self.test is not None else None
        return replace(
            self, train=self.train.without(excluded), validation=self.validation.without(excluded), test=test
        )

    def with_few_labels(self, count: int | None, seed: int) -> "Splits":
        """The data set with only `count` of its training labels (None: all of them)."""
        if count is None:
            return self
        try:
            return replace(self, train=self.train.with_few_labels(count, seed))
        except ValueError as error:
            raise DataError(f"{self.name}: {error}") from error


def stratified_split(labels: Tensor, share: float, seed: int, fewest_kept: int = 1) -> tuple[Tensor, Tensor]:
    """Divide indices [N] into (kept, held out): `share` of every class, both shuffled by the seed.

    At least one image of a class is held out, but `fewest_kept` stay in any case.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = torch.nonzero(labels == label).flatten()
        count = max(0, min(len(members) - fewest_kept, max(1, round(share * len(members)))))
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    order = torch.randperm(len(labels), generator=generator)
    return order[~held_out[order]], order[held_out[order]]


def first_of_each_class(data: LabelledImages, limit: int) -> LabelledImages:
    """About `limit` images, the first ones of every class in equal numbers and at least one."""
    count = max(1, limit // data.num_classes)
    return data.subset(torch.cat([members[:count] for members in data.by_class]).sort().values)
