"""The card of a model that estimates a pose: every measure on one split, with baselines beside it.

Pictures start upright and are shown under known transforms (training/evaluation/views.py). A model of unknown turns
has a frame of its own, so its errors are relative: between a picture as it is and the same picture transformed. A model
that was told what is upright has absolute errors too. Of a data set whose pictures are turned already, by known angles,
there is nothing else to measure.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from training.datasets import LabelledImages, Splits
from training.datasets.rotnet import rotnet_digits
from training.errors import RunError
from training.evaluation import pose_baselines as baselines
from training.evaluation import pose_measures as measures
from training.evaluation import probes
from training.evaluation.classification import NOVEL, class_scores, listed, mistakes, serve
from training.evaluation.options import Options
from training.evaluation.pose_measures import Errors
from training.evaluation.pose_models import LatentModel, PoseModel, canonicals, clusters, latents, look_at_orbits, poses
from training.evaluation.report import Measurement, Report, describe
from training.evaluation.scores import percent
from training.evaluation.upright_classifier import Classifier, served_classifier
from training.evaluation.views import Limits, even_degrees, limits_of, lost_ink, observe, rotation_matrices
from training.lie import inverse, resample
from training.mixture import matched_accuracy
from training.models.mcevae import MCEVAE
from training.models.pose import Canonical, Pose
from training.run import LoadedRun
from training.turned import PROBE_DEGREES

__all__ = ["PoseEvaluation"]

SHIFT_PIXELS, SHIFTED_SIDE = 3, 28  # an extra shift, where a frame is at least so wide
SYMMETRIC = ("0", "1", "8")  # digits that look alike upside down
ORBIT_IMAGES, ORBIT_MEMBERS = 1000, 36
ORBIT_CHUNK = 50  # pictures whose orbits are in memory at a time
VAE_EPOCHS = 5
LEAST = 1e-4  # of a probability in the cross-entropy
BASELINES = {"identity": baselines.identity, "principal_axis": baselines.principal_axis}


class Shown(NamedTuple):
    """Pictures [N,C,S,S] as seen under the known matrices [N,2,3]."""

    known: Tensor
    pictures: Tensor


class PoseEvaluation:
    """One evaluation in progress: the model on its device, the pictures, and the figures so far.

    Raises:
        ConfigError: an option was given that does not apply.
        RunError: the classifier that is named does not fit, or a model that was not told what is upright would be
            measured on pictures that are turned already: there is nothing to hold its angles to.
    """

    def __init__(
        self, run: LoadedRun, splits: Splits, data: LabelledImages, options: Options, console: Console
    ) -> None:
        of_equivae = ("samples", "benchmark_epochs", "photographs", "held_out", "held_out_epochs")
        options.refuse(run.config.model.kind, *of_equivae)
        self.loaded, self.splits, self.options, self.console = run, splits, options, console
        self.data, self.labels, self.names = data, data.labels, data.class_names
        self.upright = data.images.float() / 255
        run.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.model = cast(PoseModel, run.model)
        config = self.model.config
        self.limits = limits_of(config)
        if data.turns is not None and not config.supervised:
            raise RunError(
                f"{run.folder} holds a model that was not told what is upright, and the pictures of {splits.name} are "
                "turned already: of those only a supervised model can be measured"
            )
        self.served = None  # where a classifier was named: a wrong name is said before anything is measured
        if options.classifier is not None:
            self.served = served_classifier(options.classifier, self.names, *self.upright.shape[1:3])
        self.report = Report(describe(run) | {"group": config.group, "supervised": config.supervised})

    def run(self) -> Report:
        steps = {
            "absolute errors": self.absolute_errors,
            "errors of the pose": self.relative_errors,
            "frame": self.frame,
            "reading": self.reading,
            "orbits": self.orbits,
            "reconstruction": self.reconstruction,
            "clusters": self.clustering,
            "classes": self.classes,
        }
        if self.data.turns is not None:
            steps = {"absolute errors": self.absolute_errors}  # of a supervised model, or it was refused
        for name, step in steps.items():
            with self.console.status(name):
                step()
        return self.report

    def add(self, name: str, value: float, unit: str, how: str, n: int | None = None) -> None:
        options, count = self.options, n or len(self.data)
        self.report.figures.append(Measurement(name, float(value), unit, options.split, count, options.seed, how))

    # --- what is shown --------------------------------------------------------------------------------------------

    def show(self, limits: Limits) -> Shown:
        known = limits.draw(len(self.upright), self.options.seed)
        return Shown(known, observe(self.upright, known))

    @cached_property
    def before(self) -> Pose:
        """A(x) of the upright pictures."""
        return poses(self.model, self.upright)

    @cached_property
    def probe(self) -> Shown:
        return self.show(Limits(PROBE_DEGREES))

    @cached_property
    def as_trained(self) -> Shown:
        """Under the range of the model's own training pictures; those that are turned already are shown as they are."""
        if self.data.turns is not None:
            return Shown(rotation_matrices(torch.rad2deg(self.data.turns)), self.upright)
        return self.show(self.limits)

    @cached_property
    def canonical_as_trained(self) -> Canonical:
        return canonicals(self.model, self.as_trained.pictures)

    # --- errors ---------------------------------------------------------------------------------------------------

    def relative_errors(self) -> None:
        pose = self._relative("60", Limits(PROBE_DEGREES), self.probe)
        ranges = (
            {} if self.limits.degrees == PROBE_DEGREES else {f"{self.limits.degrees:g}": Limits(self.limits.degrees)}
        )
        side = self.upright.shape[-1]
        if side >= SHIFTED_SIDE:
            ranges["60_shift3"] = Limits(PROBE_DEGREES, shift=SHIFT_PIXELS / side)
        if self.limits.shift:
            ranges["60_moved"] = Limits(PROBE_DEGREES, self.limits.shift, self.limits.scale)
        for name, limits in ranges.items():
            self._relative(name, limits, self.show(limits))
        self._calibration(pose)
        for name, estimate in BASELINES.items():
            found = measures.error_matrices(estimate(self.upright), estimate(self.probe.pictures), self.probe.known)
            errors = self._errors(found)
            how = f"the same of the baseline {name}"
            self.add(f"{name}_error_60", errors.mean, "degrees", how)
            self.add(f"{name}_median_60", errors.median, "degrees", how)
            self.add(f"{name}_flips_60", errors.flips, "%", how)

    def _relative(self, name: str, limits: Limits, shown: Shown) -> Pose:
        after = poses(self.model, shown.pictures)
        found = measures.error_matrices(self.before.matrix, after.matrix, shown.known)
        errors = self._errors(found)
        of_error = f"of A(Mx)^-1 M A(x), x upright, M of {limits}"
        how = f"angle {of_error}"
        self.add(f"rotation_error_{name}", errors.mean, "degrees", how)
        self.add(f"rotation_median_{name}", errors.median, "degrees", how)
        self.add(f"rotation_flips_{name}", errors.flips, "%", f"{how}: share above 90 degrees")
        self._add_by_axis(f"rotation_error_{name}_by_axis", errors, how)
        if limits.shift and self.model.config.group != "SO2":
            shifts = 100 * measures.shift_errors(found)
            self.add(f"shift_error_{name}", float(shifts.mean()), "% of the width", f"shift {of_error}")
            self.add(f"shift_median_{name}", float(shifts.median()), "% of the width", f"shift {of_error}")
        lost = lost_ink(self.upright, shown.known)
        self.report.details[f"rotation_{name}"] = asdict(errors) | {
            "lost_ink": {"mean": float(lost.mean()), "largest": float(lost.max())}
        }
        return after

    def _calibration(self, after: Pose) -> None:
        found = measures.error_matrices(self.before.matrix, after.matrix, self.probe.known)
        stds = (torch.rad2deg(pose.coefficients_std[:, 0]) for pose in (self.before, after))
        share = measures.calibration(measures.rotation_errors(found), *stds)
        how = "relative error within sqrt(s1^2 + s2^2), flips apart"
        if self.model.config.supervised:
            how += "; deviations are of the absolute error, of which alone 68.3 is expected"
        else:
            how += f"; 68.3 expected{self._fitted_factor}"
        self.add("within_one_std_60", share, "%", how)

    def _errors(self, found: Tensor) -> Errors:
        return Errors.of(found, self.labels, self.names, SYMMETRIC)

    def _add_by_axis(self, name: str, errors: Errors, how: str) -> None:
        """The mean with digits that look alike upside down scored modulo 180, where there are such digits."""
        if set(SYMMETRIC) & set(self.names):
            self.add(name, errors.by_axis, "degrees", f"{how}; {', '.join(SYMMETRIC)} modulo 180")

    @property
    def _fitted_factor(self) -> str:
        """Of the standard deviation, where the model has one."""
        return f", the factor of the deviation {self.options.fitted}" if hasattr(self.model, "std_factor") else ""

    def absolute_errors(self) -> None:
        if not self.model.config.supervised:
            return
        upright = baselines.identity(self.upright)
        after = poses(self.model, self.as_trained.pictures)
        found = measures.error_matrices(upright, after.matrix, self.as_trained.known)
        errors = self._errors(found)
        how = "angle found against the true one, " + (str(self.limits) if self.data.turns is None else "as it is known")
        self.add("absolute_error", errors.mean, "degrees", how)
        self.add("absolute_median", errors.median, "degrees", how)
        self.add("absolute_flips", errors.flips, "%", f"{how}: share above 90 degrees")
        self.report.details["absolute"] = asdict(errors)
        std = torch.rad2deg(after.coefficients_std[:, 0])
        share = measures.calibration(measures.rotation_errors(found), std, torch.zeros_like(std))
        within = f"{how}: within its standard deviation, flips apart; 68.3 expected{self._fitted_factor}"
        self.add("absolute_within_one_std", share, "%", within)
        self._add_by_axis("absolute_error_by_axis", errors, how)
        for name, estimate in BASELINES.items():
            found = measures.error_matrices(upright, estimate(self.as_trained.pictures), self.as_trained.known)
            errors = self._errors(found)
            by_it = f"{how}, by the baseline {name}"
            self.add(f"absolute_error_{name}", errors.mean, "degrees", by_it)
            self._add_by_axis(f"absolute_error_by_axis_{name}", errors, by_it)
        if self.limits.degrees == 180 and self.upright.shape[1] == 1 and self.data.turns is None:
            pictures, degrees = rotnet_digits(self.data.images, self.options.seed)
            found = measures.error_matrices(upright, poses(self.model, pictures).matrix, rotation_matrices(degrees))
            errors = self._errors(found)
            how = "the same on RotNet's generator: binary digits whose size depends on the angle"
            self.add("rotnet_error", errors.mean, "degrees", how)
            self._add_by_axis("rotnet_error_by_axis", errors, how)

    def frame(self) -> None:
        angles = measures.rotation_degrees(self.before.matrix)
        frame = measures.frame(angles, measures.slant_degrees(self.upright), self.labels, self.names)
        how = "angles found in upright pictures, per class, then the mean over the classes"
        self.add("frame_largest_mean", frame.largest_mean, "degrees", "the class whose mean angle is farthest from 0")
        self.add("frame_spread", frame.deviation, "degrees", f"circular standard deviation of {how}")
        self.add("frame_slant", frame.slant, "degrees", "standard deviation of the handwriting's slant, the same way")
        self.add("frame_rest", frame.rest, "degrees", f"{how}: deviation that a line in the slant leaves")
        self.report.details["frame"] = frame.per_class

    # --- pictures -------------------------------------------------------------------------------------------------

    @cached_property
    def classifier(self) -> Classifier:
        """Of upright pictures."""
        if self.served is not None:
            return self.served
        judge = probes.independent_cnn(self.loaded.folder, self.splits, self.options.seed)
        return Classifier("a CNN trained on upright pictures", lambda images: probes.predict(judge.network, images))

    def reading(self) -> None:
        if len(self.names) < 2:
            return
        seen = canonicals(self.model, self.probe.pictures)
        axis = resample(self.probe.pictures, baselines.principal_axis(self.probe.pictures))
        turns = f"turned by {Limits(PROBE_DEGREES)}"
        for what, images, how in (
            ("upright", self.upright, "upright pictures"),
            ("turned", self.probe.pictures, f"pictures {turns}"),
            ("rectified", seen.rectified, f"rectified pictures of those {turns}"),
            ("canonical", seen.canonical, f"canonical pictures of those {turns}"),
            ("principal_axis", axis, f"pictures {turns}, made upright by their principal axis"),
        ):
            right = percent((self.classifier.read(images) == self.labels).numpy())
            self.add(f"accuracy_{what}", right, "%", f"{self.classifier.name} on {how}")

    def orbits(self) -> None:
        """Members: the same picture at even angles over the model's range, with its shifts and scales."""
        generator = torch.Generator().manual_seed(self.options.seed)
        chosen = torch.randperm(len(self.data), generator=generator)[:ORBIT_IMAGES]
        count, limits = len(chosen), self.limits
        moves = Limits(0.0, limits.shift, limits.scale).draw(count * ORBIT_MEMBERS, self.options.seed)
        turns = rotation_matrices(even_degrees(limits.degrees, ORBIT_MEMBERS)).repeat(count, 1, 1)
        known = torch.cat([moves[:, :, :2] @ turns[:, :, :2], moves[:, :, 2:]], 2).reshape(count, ORBIT_MEMBERS, 2, 3)
        parts = zip(torch.split(self.upright[chosen], ORBIT_CHUNK), torch.split(known, ORBIT_CHUNK), strict=True)
        found = [look_at_orbits(self.model, upright, matrices) for upright, matrices in parts]
        how = f"{ORBIT_MEMBERS} angles evenly over the model's range ({limits}), mse to the orbit's medoid"
        for name, what in (
            ("rectified", "rectified pictures"),
            ("canonical", "canonical pictures"),
            ("floor", "the same turned back by the true transform: what interpolation costs"),
            ("identity", "the pictures as they are shown"),
        ):
            errors = torch.cat([part.errors[name] for part in found])
            decibels = float(np.median([measures.psnr(value) for value in errors.tolist()]))
            self.add(f"orbit_psnr_{name}", measures.psnr(float(errors.mean())), "dB", f"{what}; {how}, mean", count)
            self.add(f"orbit_psnr_{name}_median", decibels, "dB", f"{what}; {how}, median digit", count)
        medoids, members = (torch.cat([getattr(part, name) for part in found]) for name in ("medoids", "members"))
        others = measures.random_member_errors(medoids, members, self.labels[chosen], generator)
        if len(others):
            how = "rectified pictures, medoid of one picture against a member of another of its class"
            self.add("orbit_psnr_other", measures.psnr(float(others.mean())), "dB", how, len(others))
        before = latents(self.model, self.upright[chosen]) if isinstance(self.model, LatentModel) else ()
        for index, name in enumerate(("z_c", "z")[: len(before)]):
            orbit = torch.cat([part.latents[index] for part in found])
            how = f"|{name}(x) - {name}(Mx)|^2 over the orbit by the mean between different pictures"
            self.add(f"invariance_{name}", measures.invariance(before[index], orbit), "", how, count)

    def reconstruction(self) -> None:
        shown, seen = self.as_trained.pictures, self.canonical_as_trained
        rebuilt = resample(seen.canonical, inverse(seen.pose.matrix), padding="border")
        how = f"canonical picture under the pose found, against the picture shown, {self.limits}"
        nats = F.binary_cross_entropy(rebuilt.clamp(LEAST, 1 - LEAST), shown, reduction="none").flatten(1).sum(1)
        self.add("reconstruction_bce", float(nats.mean()), "nats", how)
        self.add("reconstruction_mse", float(F.mse_loss(rebuilt, shown)), "", how)
        again = poses(self.model, seen.rectified)
        first, second = (pose.coefficients.norm(dim=1).median() for pose in (seen.pose, again))
        if first > 0:  # a model that finds no pose has nothing to take back
            how = "rectified pictures fed back: median norm of the coefficients over the first ones'"
            self.add("recanonicalisation", 100 * float(second / first), "%", how)

    # --- clusters -------------------------------------------------------------------------------------------------

    def clustering(self) -> None:
        classes, seed = len(self.names), self.options.seed
        if classes < 2 or not isinstance(self.model, LatentModel):
            return
        shown = self.as_trained.pictures
        found = clusters(self.model, shown)
        how = f"clusters matched to classes one to one, pictures under {self.limits}"
        assigned, count = found.argmax(1), found.shape[1]
        self.add("clustering", 100 * matched_accuracy(assigned, self.labels), "%", f"{count} {how}")
        # Which classes share a cluster: of each class, the per cent in every cluster.
        pairs = torch.bincount(self.labels * count + assigned, minlength=classes * count).reshape(classes, count)
        shares = 100 * pairs / pairs.sum(1, keepdim=True).clamp_min(1)
        self.report.details["clusters"] = dict(zip(self.names, shares.tolist(), strict=True))
        train = self.splits.train.images
        if self.options.limit is not None:
            train = train[: 10 * self.options.limit]
        pictures = train.float() / 255
        pictures = observe(pictures, self.limits.draw(len(pictures), seed + 1))
        steps = math.ceil(VAE_EPOCHS * len(pictures) / 128)
        for name, features, what in (
            ("pixels", shown, "pixels"),
            ("rectified", self.canonical_as_trained.rectified, "rectified pictures"),
            ("z_c", latents(self.model, shown)[0], "the means of z_c"),
            ("vae", baselines.vae_features(pictures, shown, seed, steps), f"z of a VAE of {VAE_EPOCHS} epochs"),
        ):
            right = baselines.k_means_accuracy(features, self.labels, classes, seed)
            self.add(f"clustering_k_means_{name}", right, "%", f"k-means on {what}, {classes} {how}")

    def classes(self) -> None:
        """What `classify` serves, of a model that knows the means of its classes."""
        if not isinstance(self.model, MCEVAE) or self.model.classes is None:
            return
        served = serve(self.model, self.as_trained.pictures)
        scores, how = class_scores(served, self.labels.numpy()), f"pictures under {self.limits}"
        self.report.details["mistakes"] = listed(mistakes(served, self.labels.numpy()), self.data)
        self.add("error_distance", scores["error"], "%", f"nearest class mean of z_c, training split; {how}")
        fitted = self.options.fitted
        self.add("ece", scores["ece"], "", f"probabilities served, 15 bins; {how}; temperature {fitted}")
        alarms = percent(served.novelty > NOVEL)
        self.add("false_alarms", alarms, "%", f"novelty > {NOVEL}; {how}; its quantiles {fitted}")
