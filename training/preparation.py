"""What a run begins with: its data, the plan of its steps, and the model with its first weights."""

from dataclasses import dataclass
from pathlib import Path

import torch

from training import datasets
from training.config import Config, Fit, Optimiser
from training.datasets import Splits
from training.errors import ConfigError, DataError, RunError, first_line
from training.models.base import Model
from training.models.equivae_config import EquiVAEConfig
from training.models.registry import build
from training.plan import Plan, Stream, derived_seed
from training.run import load_run

SHOWN = 10  # classes that are named
CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Prepared:
    """What is trained, on which examples, in which order; the same on every device."""

    config: Config
    splits: Splits
    plan: Plan
    module: Model
    optimiser: torch.optim.Optimizer

    @property
    def described(self) -> str:
        """The data on one line: how many pictures of each part, and classes, by which a wrong folder shows itself."""
        counted, model = self.splits.counts, self.config.model
        counts = ", ".join(f"{count:,} {name}" for name, count in counted.items())
        if isinstance(model, EquiVAEConfig):
            if "outliers" in counted and not model.outlier_share:
                counts += " (the outliers of no use to a training without model.outlier_share)"
        elif {"unlabelled", "outliers"} & counted.keys():
            counts += f" (of no use to a model of kind {model.kind})"
        names = self.splits.class_names
        more = ", ..." if len(names) > SHOWN else ""
        return f"{self.splits.name}: {counts}; classes {len(names)}: {', '.join(names[:SHOWN])}{more}"

    @property
    def remarks(self) -> list[str]:
        """What whoever begins the run may not expect, a line each."""
        return [*filter(None, [self.plan.note]), *self.splits.doubts]


def prepare(config: Config, initial: Path | None = None) -> Prepared:
    """Read the data and make the model.

    Args:
        initial: finished run whose weights to begin with; what is measured of the data is this data's all the same.
    Raises:
        TrainingError: wrong configuration or data, or no run with weights for this model.
    """
    splits = datasets.load(config.data)
    config = config.for_data(unlabelled=splits.train.unlabelled is not None)
    _check_complements(config.model, config.fit)
    plan = Plan(config.fit, splits.train)
    torch.manual_seed(derived_seed(config.fit.seed, Stream.WEIGHTS))
    try:
        module = build(config.model, splits.input, len(splits.class_names))
    except (ValueError, RuntimeError) as error:  # sizes that fit neither one another nor the pictures
        said = first_line(error)
        raise ConfigError(said if said.startswith("model.") else f"model: {said}") from error
    if initial is not None:
        _begin_with(module, initial)
    try:
        module.prepare(splits.train)
    except ValueError as error:
        raise DataError(f"{splits.name}: {error}") from error
    return Prepared(config, splits, plan, module, make_optimiser(module, config.fit.optimiser))


def _check_complements(model: object, fit: Fit) -> None:
    """Not for the configuration itself to say: finished runs that were lucky can still be read."""
    if not isinstance(model, EquiVAEConfig) or fit.order == "balanced":
        return
    need_others = {
        "model.complements: in_batch": model.complements == "in_batch",
        "model.class_mean_weight": model.class_mean_weight,
        "model.distance_weight": model.distance_weight,  # alone, an image would be the mean that it is to lie near
    }
    for asking, used in need_others.items():
        if used:
            raise ConfigError(f"{asking} needs fit.order: balanced; shuffled, an image may be alone of its class")


def _begin_with(module: torch.nn.Module, run: Path) -> None:
    """Copy the weights of a finished run, and with them all that it has measured.

    Raises:
        RunError: no such run, or its model is of another kind or shape.
    """
    if not run.is_dir():
        name, _, seed = run.name.rpartition("-")  # as run folders are named that nobody has named otherwise
        config, command = CONFIGS / f"{name}.yaml", ""
        if config.is_file() and seed.isdecimal():
            command = f": python -m training train {config} --seed {seed} --run {run}"
        raise RunError(f"fit.initial: {run} does not exist: train that run first{command}")
    try:
        module.load_state_dict(load_run(run).model.state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RunError(f"fit.initial: the model of {run} has another shape: {reason}") from error


def make_optimiser(module: torch.nn.Module, config: Optimiser) -> torch.optim.Optimizer:
    """Adam or AdamW, fused; weight decay on matrices and kernels, not on biases and norms."""
    shrinking = [p for p in module.parameters() if p.ndim >= 2]
    free = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": shrinking, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate, betas=config.betas, fused=True)
