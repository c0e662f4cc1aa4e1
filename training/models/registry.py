"""The kinds of model, each under the name that `model.kind` of a configuration has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from contract.manifest import Capability, InputSpec
from training.models import equivae_graphs, mcevae_graphs, symmetry_graphs
from training.models.base import Graph, Model
from training.models.equivae import EquiVAE
from training.models.equivae_config import EquiVAEConfig
from training.models.equivae_few import FewLabelEquiVAE
from training.models.mcevae import MCEVAE
from training.models.mcevae_paper import MCEVAEPaper
from training.models.plain_vae import PlainVAE
from training.models.symmetry import Symmetry
from training.models.symmetry_two_stage import SymmetryTwoStage
from training.models.upright import Upright

__all__ = ["KINDS", "Kind", "build", "graphs", "whole"]


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    family: what the manifest calls it. make: config, input and number of classes -> model. graphs: a capability -> the
    graph made from a model of this kind. whole: one graph with the outputs of all, of which they can be cut.
    """

    family: Literal["equivae", "mcevae", "symmetry"]
    make: Callable[[Any, InputSpec, int], Model]
    graphs: dict[Capability, Callable[[Any], Graph]]
    whole: Callable[[Any], Graph] | None = None


def _equivae(config: EquiVAEConfig, input: InputSpec, num_classes: int) -> EquiVAE:
    return (EquiVAE if config.few_labels is None else FewLabelEquiVAE)(config, input, num_classes)


_POSE_GRAPHS: dict[Capability, Callable[[Any], Graph]] = {
    "embed": mcevae_graphs.Embed,
    "transform": mcevae_graphs.Transform,
    "canonicalize": mcevae_graphs.Canonicalize,
}

KINDS: dict[str, Kind] = {
    "equivae": Kind(
        family="equivae",
        make=_equivae,
        graphs={
            "embed": equivae_graphs.Embed,
            "classify": equivae_graphs.Classify,
            "recombine": equivae_graphs.Recombine,
        },
    ),
    "mcevae": Kind(
        family="mcevae",
        make=MCEVAE,
        graphs={**_POSE_GRAPHS, "classify": equivae_graphs.Classify},
        whole=mcevae_graphs.WholeWithClasses,
    ),
    "mcevae_paper": Kind(family="mcevae", make=MCEVAEPaper, graphs=_POSE_GRAPHS, whole=mcevae_graphs.Whole),
    "plain_vae": Kind(family="mcevae", make=PlainVAE, graphs=_POSE_GRAPHS, whole=mcevae_graphs.Whole),
    "symmetry": Kind(
        family="symmetry",
        make=Symmetry,
        graphs={**_POSE_GRAPHS, "augment": symmetry_graphs.Augment},
        whole=symmetry_graphs.Whole,
    ),
    "symmetry_two_stage": Kind(
        family="symmetry",
        make=SymmetryTwoStage,
        graphs={
            "transform": mcevae_graphs.Transform,
            "canonicalize": mcevae_graphs.Canonicalize,
            "augment": symmetry_graphs.Augment,
        },
        whole=symmetry_graphs.Whole,
    ),
    "upright": Kind(
        family="mcevae",
        make=Upright,
        graphs={"transform": mcevae_graphs.Transform, "canonicalize": mcevae_graphs.Canonicalize},
    ),
}


def build(config: Any, input: InputSpec, num_classes: int) -> Model:
    """A model with fresh weights, from the `model` section of a configuration."""
    return KINDS[config.kind].make(config, input, num_classes)


def graphs(kind: str, model: Model) -> dict[Capability, Graph]:
    """One graph a capability of the model."""
    return {capability: make(model) for capability, make in _kind_of(kind, model).graphs.items()}


def whole(kind: str, model: Model) -> Graph | None:
    """The graph of the model of which those of its capabilities can be cut, where the kind has one."""
    make = _kind_of(kind, model).whole
    return None if make is None else make(model)


def _kind_of(kind: str, model: Model) -> Kind:
    """The kind, without what this model of it cannot do."""
    if isinstance(model, PlainVAE) and model.config.method == "beta":  # the identity for every picture is no answer
        return replace(KINDS[kind], graphs={"embed": mcevae_graphs.Embed}, whole=None)
    draws_nothing = isinstance(model, Symmetry) and not model.draws_variants
    if draws_nothing or isinstance(model, MCEVAE) and model.classes is None:
        return replace(KINDS[kind], graphs=_POSE_GRAPHS, whole=mcevae_graphs.Whole)
    return KINDS[kind]
