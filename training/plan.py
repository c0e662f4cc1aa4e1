"""What step t of a run does: which images, at which rate, with which random numbers. Functions of seed and t alone.

There is no sampler with a state to save: a run that is killed at any step goes on from its last checkpoint exactly as
it would have without the kill.
"""

import bisect
import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from training.config import BatchDoubling, Constant, Cosine, Fit
from training.datasets.images import LabelledImages
from training.errors import ConfigError


class Stream(IntEnum):
    """Sources of random numbers of one run, each without relation to the others.

    Two generators begin with NOISE: that of the draws of the loss, and the own one of the device (training/fit.py).
    """

    WEIGHTS = 0
    ORDER = 1
    BATCH = 2
    NOISE = 3


def derived_seed(seed: int, stream: Stream, *counters: int) -> int:
    """A 63-bit seed for one purpose, without relation to its neighbours (NumPy's SeedSequence mixes the numbers)."""
    words = np.random.SeedSequence((seed, stream, *counters)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def generator(seed: int, stream: Stream, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on the device that begins with `derived_seed`."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, stream, *counters))


@dataclass(frozen=True)
class Step:
    """epoch and position within it count from 0; batch is the number of images."""

    epoch: int
    position: int
    batch: int


class Plan:
    """The steps of a run over one training set.

    An epoch is as many whole batches as the training set holds; the remainder takes its turn in another epoch's order.
    """

    def __init__(self, fit: Fit, train: LabelledImages) -> None:
        self.fit = fit
        self.train = train
        doublings = fit.schedule.after_epochs if isinstance(fit.schedule, BatchDoubling) else ()
        batch = self._first_batch(2 ** len(doublings))
        # One entry for each stretch of equal batches: its first epoch, its first step, its batch.
        self.first_epochs, self.first_steps, self.batches = [0], [0], [batch]
        for epoch in sorted(doublings):
            steps = (epoch - self.first_epochs[-1]) * (len(train) // self.batches[-1])
            self.first_epochs.append(epoch)
            self.first_steps.append(self.first_steps[-1] + steps)
            self.batches.append(2 * self.batches[-1])
        self.total_steps = fit.steps or self._first_step_of(fit.epochs or 1)

    @property
    def note(self) -> str:
        """What is to be said of a first batch that is smaller than asked; empty where it is not."""
        asked, batch = self.fit.batch, self.batches[0]
        if batch == asked:
            return ""
        if self.fit.order == "shuffled":
            why = f"the training set has {len(self.train)} images"
        else:
            sizes = [len(members) for members in self.train.by_class]
            why = f"a step takes equally many images of each of {len(sizes)} classes"
            if asked - batch >= len(sizes) * self.fit.devices:
                why += f", and {self.train.class_names[sizes.index(min(sizes))]!r} has {min(sizes)}"
        return f"fit.batch is {batch} instead of {asked}: {why}"

    def _first_batch(self, growth: int) -> int:
        """Images a step, `growth` times as many at last: as asked, or the most below it that the training set has and
        that divide among the devices and, in balanced order, among the classes.
        """
        fit, train, devices = self.fit, self.train, self.fit.devices
        if fit.order == "shuffled":
            if fit.batch % devices:
                raise ConfigError(f"fit: batch {fit.batch} does not divide among {devices} devices")
            return min(fit.batch, self._share(len(train), growth, "the training set") * devices)
        unit = train.num_classes * devices
        if fit.batch < 2 * unit:
            raise ConfigError(
                f"fit: balanced order needs a batch of at least {2 * unit}, two images of each of "
                f"{train.num_classes} classes on {devices} device(s), not {fit.batch}: --set fit.batch={2 * unit}"
            )
        sizes = [len(members) for members in train.by_class]
        smallest = min(range(len(sizes)), key=sizes.__getitem__)
        images = self._share(sizes[smallest], growth, f"class {train.class_names[smallest]!r}", least=2)
        return min(fit.batch // unit, images) * unit

    def _share(self, images: int, growth: int, whose: str, least: int = 1) -> int:
        """Images per device and step at the first batch, so that `images` still suffice after it has grown `growth`
        times.
        """
        share = images // (growth * self.fit.devices)
        if share < least:
            raise ConfigError(
                f"fit: {whose} has {images} image(s): a step takes at least {least} on each of {self.fit.devices} "
                f"device(s){f', {growth} times as many at last' if growth > 1 else ''}"
            )
        return share

    def _first_step_of(self, epoch: int) -> int:
        stretch = bisect.bisect_right(self.first_epochs, epoch) - 1
        steps = (epoch - self.first_epochs[stretch]) * (len(self.train) // self.batches[stretch])
        return self.first_steps[stretch] + steps

    def step(self, t: int) -> Step:
        """Where step t, counted from 0, lies in its epoch."""
        stretch = bisect.bisect_right(self.first_steps, t) - 1
        batch = self.batches[stretch]
        epochs, position = divmod(t - self.first_steps[stretch], len(self.train) // batch)
        return Step(self.first_epochs[stretch] + epochs, position, batch)

    def epoch_at(self, t: int) -> float:
        """Epochs done before step t, as a fraction."""
        step = self.step(t)
        return step.epoch + step.position / (len(self.train) // step.batch)

    def validates_after(self, t: int) -> bool:
        """Whether a validation follows step t: whenever another `validate_epochs` are full, and after the last step."""
        every = self.fit.validate_epochs
        # The tolerance keeps 0.1 + 0.1 + ... from missing a boundary.
        passed = math.floor(self.epoch_at(t + 1) / every + 1e-9) > math.floor(self.epoch_at(t) / every + 1e-9)
        return passed or t + 1 == self.total_steps

    def indices(self, t: int) -> Tensor:
        """Rows of the training set that step t takes, int64 [batch], none of them twice."""
        step = self.step(t)
        if self.fit.order == "balanced":
            return self._balanced(t, step.batch)
        order = _permutation(self.fit.seed, len(self.train), step.epoch)
        return order[step.position * step.batch :][: step.batch]

    def _balanced(self, t: int, batch: int) -> Tensor:
        """Each class in its own shuffled rounds; interleaved, so that every device's share is balanced too."""
        count = batch // self.train.num_classes
        chosen = []
        for k, members in enumerate(self.train.by_class):
            round_number, taken = self._place_in_round(t, len(members))
            order = _permutation(self.fit.seed, len(members), round_number, k)
            chosen.append(members[order[taken:][:count]])
        return torch.stack(chosen, 1).flatten()

    def _place_in_round(self, t: int, members: int) -> tuple[int, int]:
        """Which round of a class of so many images step t takes from, and how many the steps before took of it.

        A round goes on where the batch doubles, and ends where less is left of it than a step takes.
        """
        round_number = taken = 0
        for first, end, batch in zip(self.first_steps, [*self.first_steps[1:], t], self.batches, strict=True):
            if t < first:
                break
            count = batch // self.train.num_classes
            steps, left = min(t, end) - first, (members - taken) // count
            if steps < left:
                taken += steps * count
            else:
                rounds, position = divmod(steps - left, members // count)
                round_number, taken = round_number + 1 + rounds, position * count
        return round_number, taken

    def rate(self, t: int) -> float:
        """Learning rate of step t."""
        base, schedule = self.fit.optimiser.learning_rate, self.fit.schedule
        match schedule:
            case Constant() | BatchDoubling():
                return base
            case Cosine():
                warmup = schedule.warmup * self.total_steps
                if t < warmup:
                    return base * (t + 1) / (warmup + 1)
                done = (t - warmup) / max(1.0, self.total_steps - warmup)
                return base * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2)


@lru_cache(maxsize=128)
def _permutation(seed: int, size: int, *counters: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, Stream.ORDER, size, *counters))
