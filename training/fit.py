"""One loop for all models, on one CPU, one GPU or several processes (Lightning Fabric).

A model offers `prepare`, `batch`, `loss`, `validate` and `calibrate` (training/models/base.py); what step t does is
decided by training/plan.py, and what is kept of it by training/checkpoint.py.
"""

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor

from training import checkpoint
from training.average import Average
from training.config import Config, Fit, Precision
from training.datasets.images import first_of_each_class
from training.errors import DeviceError, RunError, RunFailed
from training.files import write_atomically
from training.models.base import Model
from training.models.symmetry_config import TwoStageConfig
from training.plan import Stream, derived_seed, generator
from training.preparation import Prepared, prepare
from training.reporter import Reporter, describe
from training.run import SKIPPED_FILE, begin_again, is_complete, load_run, open_folder, save_model

CHECKPOINT_VERSION = 2
REFERENCE_IMAGES = 10_000


@dataclass(frozen=True)
class Outcome:
    """What a run came to; `metrics` are the kept weights' on the validation set."""

    folder: Path
    metrics: dict[str, float]
    step: int
    minutes: float


@dataclass
class Progress:
    """What the loop knows beyond weights and moments; plain values and tensors, saved as they are."""

    step: int = 0
    seconds: float = 0.0
    best_value: float = math.inf
    best_step: int = 0
    best_state: dict[str, Tensor] | None = None
    since_best: int = 0
    window: dict[str, Tensor] = field(default_factory=dict)
    window_counts: dict[str, int] = field(default_factory=dict)


def train(
    config: Config, folder: Path, *, resume: bool = False, restart: bool = False, console: Console | None = None
) -> Outcome:
    """Train one model into a run folder, or go on with a run that was interrupted.

    Args:
        console: made quiet in every process but the first.
    Raises:
        TrainingError: wrong configuration or data, no such device, a folder in use, a full disk, a loss that is not
            finite. The checkpoints written before it stay.
    """
    console = console or Console(stderr=True)
    fit = config.fit
    if fit.threads:
        torch.set_num_threads(fit.threads)
    fabric = make_fabric(fit, in_stages=isinstance(config.model, TwoStageConfig))
    fabric.launch()
    if not fabric.is_global_zero:
        console.quiet = True
    if (precision := precision_on(fabric.device.type, fit)) != fit.precision:
        console.print(f"fit.precision: {precision}; {fit.precision} would be slower on this CPU", highlight=False)
    # All that can be wrong with the new run is said before a restart deletes the old one.
    goes_on = resume and (is_complete(folder) or checkpoint.is_begun(folder))  # with weights of its own
    prepared = prepare(config, None if goes_on else fit.initial_run)
    with _prepared_folder(fabric, prepared, folder, console, resume=resume, restart=restart):
        if is_complete(folder):
            done = load_run(folder)
            if done.data["digest"] != prepared.splits.digest:
                raise RunError(
                    f"{folder} is complete, but of other data than this {prepared.splits.name}: {begin_again(folder)}"
                )
            console.print(f"{folder} is complete already: {describe(done.metrics)}", highlight=False, soft_wrap=True)
            return Outcome(folder, done.metrics, done.step, done.minutes)
        loop = Loop(fabric, prepared, folder, console)
        if resume:
            loop.restore()
        return loop.run()


def make_fabric(fit: Fit, *, in_stages: bool = False) -> Fabric:
    """The devices that a configuration asks for.

    Args:
        in_stages: some steps leave weights out, whose gradients the other devices must not wait for.
    Raises:
        DeviceError: they are not there.
    """
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    accelerator = ("cuda" if present else "cpu") if fit.accelerator == "auto" else fit.accelerator
    if accelerator == "cuda" and not present:
        built = "" if torch.version.cuda else "; this torch is built without CUDA"
        raise DeviceError(f"fit.accelerator is cuda, but no CUDA device is usable here{built}: use cpu or auto")
    if accelerator == "cuda" and fit.devices > present:
        raise DeviceError(f"fit.devices is {fit.devices}, but this machine has {present} CUDA device(s)")
    strategy = "auto"
    if fit.devices > 1:
        strategy = "ddp_find_unused_parameters_true" if in_stages else "ddp"
    precision = precision_on(accelerator, fit)
    return Fabric(accelerator=accelerator, devices=fit.devices, precision=precision, strategy=strategy)


def precision_on(kind: str, fit: Fit) -> Precision:
    """What "cpu" or "cuda" computes in: a CPU without instructions for bfloat16, which would take two to eight times as
    long in it, in 32 bits.
    """
    return fit.precision if kind == "cuda" or torch.cpu._is_avx512_bf16_supported() else "32-true"


def _prepared_folder(
    fabric: Fabric, prepared: Prepared, folder: Path, console: Console, *, resume: bool, restart: bool
) -> ExitStack:
    """Rank 0 opens the folder and keeps it while the context lasts; every process fails with it."""
    held, splits = ExitStack(), prepared.splits
    problem: RunError | None = None
    if fabric.is_global_zero:
        try:
            held.enter_context(open_folder(folder, prepared.config, resume=resume, restart=restart))
            console.print(f"{prepared.described}; run {folder}", markup=False, highlight=False, soft_wrap=True)
            for line in prepared.remarks:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            if splits.skipped:
                listing = folder / SKIPPED_FILE
                write_atomically(listing, "\n".join((*splits.skipped, "")).encode())
                console.print(
                    f"{len(splits.skipped):,} files or folders left out, listed in {listing}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
        except RunError as error:
            problem = error
    problem = fabric.broadcast(problem)
    if problem is not None:
        held.close()
        raise problem
    return held


class Loop:
    """The state of one run and its steps."""

    def __init__(self, fabric: Fabric, prepared: Prepared, folder: Path, console: Console) -> None:
        self.fabric, self.folder, self.console = fabric, folder, console
        self.config, self.splits, self.plan = prepared.config, prepared.splits, prepared.plan
        self.module, self.optimiser = prepared.module, prepared.optimiser
        self.fit = self.config.fit
        self.layout = torch.channels_last if self.fit.channels_last else torch.preserve_format
        self.module.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.model, self.stepper = fabric.setup(self.module, self.optimiser)
        self.model.mark_forward_method("loss")
        self.average = None if self.fit.ema is None else Average(self.module, self.fit.ema)
        self.progress = Progress()
        # Class means for the validations on the way; the last one takes the whole training set.
        self.reference = first_of_each_class(self.splits.train, REFERENCE_IMAGES)

    @property
    def kept(self) -> Model:
        """The weights that are validated and, in the end, kept."""
        if self.average is None:
            return self.module
        averaged: Model = self.average.module  # type: ignore[assignment]
        return averaged

    def run(self) -> Outcome:
        """All remaining steps, then the finished model."""
        if not self.fabric.is_global_zero:
            self._steps(None)
        else:
            with Reporter(self.folder, self.console, self.plan.total_steps, self.progress.step) as reporter:
                self._steps(reporter)
        return self._finish()

    def _steps(self, reporter: Reporter | None) -> None:
        state, fit, total = self.progress, self.fit, self.plan.total_steps
        self.model.train()
        began = time.monotonic() - state.seconds
        stop = self._out_of_patience()
        while state.step < total and not stop:
            t = state.step
            self._accumulate(self._step(t))
            state.step += 1
            state.seconds = time.monotonic() - began
            if state.step % fit.log_steps == 0 or state.step == total:
                terms = self._close_window()
                if reporter:
                    reporter.training(state.step, self.plan.epoch_at(state.step), terms, self.plan.rate(t))
            if self.plan.validates_after(t):
                stop = self._validate(reporter)
                state.seconds = time.monotonic() - began
            if state.step % fit.checkpoint_steps == 0 or state.step == total or stop:
                self._save()

    def _step(self, t: int) -> dict[str, Tensor]:
        """One optimiser step on this process's share of the batch; the detached terms come back."""
        rank, seed = self.fabric.global_rank, self.fit.seed
        rate = self.plan.rate(t)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        indices = self.plan.indices(t)
        share = len(indices) // self.fabric.world_size
        indices = indices[rank * share : (rank + 1) * share]
        # Layers that draw for themselves, such as dropout, take the device's global generator. It begins as `noise`
        # below does, so that their draws are not independent of the loss's: a seed of its own would change the figures
        # of every model with dropout. (torch.manual_seed would remember a call, with its traceback, for every kind of
        # device that is not in use.)
        own_seed = derived_seed(seed, Stream.NOISE, t, rank)
        torch.default_generator.manual_seed(own_seed)
        if self.fabric.device.type == "cuda":
            torch.cuda.manual_seed(own_seed)
        batch = self.module.batch(self.splits.train, indices, generator(seed, Stream.BATCH, t, rank))
        device = self.fabric.device
        batch = {
            name: value.to(device, memory_format=self.layout if value.ndim == 4 else torch.preserve_format)
            for name, value in batch.items()
        }
        noise = generator(seed, Stream.NOISE, t, rank, device=device)
        # Without DDP Fabric calls the method itself, past the wrapper that would set the precision.
        with self.fabric.autocast():
            terms: dict[str, Tensor] = self.model.loss(batch, noise, t / self.plan.total_steps)
        self.fabric.backward(terms["loss"])
        if self.fit.clip is not None:
            self.fabric.clip_gradients(self.model, self.stepper, max_norm=self.fit.clip, error_if_nonfinite=False)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        return {name: value.detach() for name, value in terms.items()}

    def _accumulate(self, terms: dict[str, Tensor]) -> None:
        """Sums stay on the device: reading them at every step would wait for it."""
        window, counts = self.progress.window, self.progress.window_counts
        for name, value in terms.items():
            window[name] = window[name] + value if name in window else value.clone()
            counts[name] = counts.get(name, 0) + 1

    def _close_window(self) -> dict[str, float]:
        """Means of the terms, each over the steps that had it."""
        counts = self.progress.window_counts
        means = {name: float(value) / counts[name] for name, value in self.progress.window.items()}
        self._require_finite(self.progress.window.items())
        self.progress.window, self.progress.window_counts = {}, {}
        return means

    def _require_finite(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Check sums of loss terms, or weights, for NaN and infinity. The sums do not show the last weight update, so
        weights are checked too.

        Raises:
            RunFailed: one of them is infinite or not a number.
        """
        for name, value in named:
            if not bool(value.isfinite().all()):
                raise RunFailed(
                    f"{name} is not finite any more at step {self.progress.step}: lower fit.optimiser.learning_rate "
                    f"or set fit.clip; the last good checkpoint stays in {self.folder}"
                )

    def _validate(self, reporter: Reporter | None) -> bool:
        """Measure on the validation set, remember the best weights; whether patience is at its end comes back."""
        state, fit = self.progress, self.fit
        self._require_finite(self.module.named_parameters())
        if reporter:
            metrics = self.kept.validate(self.reference, self.splits.validation)
            reporter.validation(state.step, self.plan.epoch_at(state.step), metrics)
            value = metrics[fit.select] if fit.select_mode == "min" else -metrics[fit.select]
            if value < state.best_value:
                state.best_value, state.best_step, state.since_best = value, state.step, 0
                if fit.keep == "best":
                    state.best_state = {name: v.detach().cpu().clone() for name, v in self.kept.state_dict().items()}
            else:
                state.since_best += 1
        self.model.train()
        return bool(self.fabric.broadcast(self._out_of_patience()))

    def _out_of_patience(self) -> bool:
        return self.fit.patience is not None and self.progress.since_best >= self.fit.patience

    def _save(self) -> None:
        self._require_finite(self.progress.window.items())
        self._require_finite(self.module.named_parameters())
        if self.fabric.is_global_zero:
            state: dict[str, Any] = {
                "version": CHECKPOINT_VERSION,
                "data": self.splits.digest,
                "batches": self.plan.batches,
                "model": self.module.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "average": self.average.state_dict() if self.average is not None else None,
                "progress": vars(self.progress),
            }
            checkpoint.save(self.folder, self.progress.step, state)
        self.fabric.barrier()

    def restore(self) -> None:
        """Go back to the newest good checkpoint; without any, begin at step 0.

        Raises:
            RunError: there are only damaged ones, or the data has changed since.
        """
        found = checkpoint.find(self.folder)
        self.fabric.barrier()
        if found.damaged:
            self.console.print(f"damaged, passed over: {', '.join(found.damaged)}", highlight=False, soft_wrap=True)
            if found.state is None:
                raise RunError(f"{self.folder}: no checkpoint is undamaged: {begin_again(self.folder)}")
            if self.fabric.is_global_zero:
                for name in found.damaged:
                    (self.folder / name).unlink()
        if found.state is None:
            return
        state = found.state
        if state["version"] != CHECKPOINT_VERSION:
            raise RunError(f"{self.folder}: its checkpoint is of another version: {begin_again(self.folder)}")
        if state["data"] != self.splits.digest:
            raise RunError(f"{self.folder}: the data set has changed since its checkpoint: {begin_again(self.folder)}")
        if (batches := state["batches"]) != self.plan.batches:
            raise RunError(
                f"{self.folder} was begun with a batch of {batches[0]} images, of which {self.fit.devices} device(s) "
                f"make {self.plan.batches[0]}: resume on as many devices as before"
            )
        self.module.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.progress = Progress(**state["progress"])
        self.progress.window = {name: v.to(self.fabric.device) for name, v in self.progress.window.items()}
        self.console.print(f"resumed at step {self.progress.step:,}", highlight=False, soft_wrap=True)

    def _finish(self) -> Outcome:
        """Calibrate the chosen weights, measure them once more and write model.pt."""
        state, step = self.progress, self.progress.step
        if self.fabric.is_global_zero:
            if state.best_state is not None:
                self.kept.load_state_dict(state.best_state)
                step = state.best_step
            self.kept.calibrate(self.splits.train, self.splits.validation)
            metrics = self.kept.validate(self.splits.train, self.splits.validation)
            self._require_finite((name, torch.tensor(value, dtype=torch.float64)) for name, value in metrics.items())
            precision = precision_on(self.fabric.device.type, self.fit)
            save_model(self.folder, self.config, self.splits, self.kept, metrics, step, state.seconds / 60, precision)
        self.fabric.barrier()
        done = load_run(self.folder)
        return Outcome(self.folder, done.metrics, done.step, done.minutes)
