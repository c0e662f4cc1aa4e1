"""A finished run -> a model folder, ready to be served."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, assert_never

from rich.console import Console

from contract.manifest import OPSET, Manifest, ModelCard, verify, write_model_folder
from training.config import DigitsData, FolderData, MnistData, SvhnData, TextData
from training.errors import ConfigError, RunError
from training.graphs import export_graphs
from training.models.registry import KINDS, graphs, whole
from training.run import LoadedRun, load_run

__all__ = ["export_run"]


def export_run(
    run: Path,
    store: Path,
    licence: str | None = None,
    console: Console | None = None,
    without: Collection[str] = (),
) -> Path:
    """Export a finished run as the next version of its model in `store`, and say how to serve it.

    Nothing is written unless every graph passes. Figures of an evaluation of the same weights go into the manifest.

    Args:
        licence: of the weights. By default Apache-2.0 for the public data sets, "unspecified" for the user's own.
        without: capabilities to leave out, for a smaller folder and a quicker start.

    Raises:
        training.graphs.ExportError: a graph is not fit to be served.
        ConfigError: the model has no such capability to leave out, or no other.
        RunError: the run is not finished, an evaluation in it is damaged, or the store cannot be written.
    """
    loaded = load_run(run)
    kind = loaded.config.model.kind
    able = graphs(kind, loaded.model)
    chosen = {capability: graph for capability, graph in able.items() if capability not in without}
    if not chosen or not set(without) <= set(able):
        raise ConfigError(
            f"without {', '.join(without)}: {loaded.config.name} has {', '.join(able)}, and some must stay"
        )
    exported = export_graphs(chosen, loaded.input, whole(kind, loaded.model))
    card = ModelCard(
        name=loaded.config.name,
        kind=KINDS[kind].family,
        input=loaded.input,
        preprocessing=loaded.preprocessing,
        labels=loaded.class_names if "classify" in exported.graphs else (),
        group=loaded.config.model.group,
        graphs=exported.graphs,
        opset=OPSET,
        parity=exported.parity,
        training=_training(loaded),
        data=loaded.data,
        metrics=_metrics(loaded),
        licence=licence or ("unspecified" if loaded.config.data.source == "folder" else "Apache-2.0"),
    )
    try:
        folder = write_model_folder(store, card, exported.contents)
    except OSError as error:
        raise RunError(f"{store} cannot be written: {error.strerror}") from error
    _say(verify(folder), folder, store, console or Console())
    return folder


def _training(run: LoadedRun) -> dict[str, Any]:
    """How the weights came about. Where the data lay is nobody's business."""
    return {
        "recipe": run.config.recipe,
        "seed": run.config.fit.seed,
        "step": run.step,
        "minutes": round(run.minutes, 2),
        "precision": run.precision,
        "parameters": run.parameters,
        "config": run.config.portable(),
    }


def _metrics(run: LoadedRun) -> dict[str, Any]:
    """The loop's own validation, and the figures of every evaluation of these weights.

    Raises:
        RunError: an evaluation's file is damaged.
    """
    metrics: dict[str, Any] = {"validation": {**run.metrics, "protocol": _protocol(run)}}
    digest = run.sha256()
    for path in sorted(run.folder.glob("evaluation-*.json")):
        try:
            evaluation = json.loads(path.read_text(encoding="utf-8"))
            if evaluation["model"]["sha256"] == digest:
                metrics[path.stem] = {figure.pop("name"): figure for figure in evaluation["figures"]}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged: evaluate again, or delete it") from error
    return metrics


def _protocol(run: LoadedRun) -> str:
    """How the loop's last validation was measured, and what its figures owe to the choice of the weights."""
    data, fit = run.config.data, run.config.fit
    match data:
        case DigitsData() | FolderData():
            split = f"split seed {data.split_seed}"
        case MnistData() | SvhnData():
            split = "the last of the training file"
        case TextData():
            split = f"drawn with seed {data.seed}"
        case _:
            assert_never(data)
    parts = [
        *run.model.protocol,
        f"validation split of {run.data['name']}, {run.data['counts']['validation']:,} images, {split}",
    ]
    if fit.keep == "best":
        parts.append(f"the weights were selected by {fit.select} on this split, so these figures are optimistic")
    return "; ".join(parts)


def _say(manifest: Manifest, folder: Path, store: Path, console: Console) -> None:
    total = sum(file.size for file in manifest.files.values())
    lines = [f"{folder}: {manifest.name} version {manifest.version}, {total / 2**20:.2f} MiB"]
    for capability, graph in manifest.graphs.items():
        size = manifest.files[graph.file].size / 2**10
        worst = manifest.parity[capability]
        lines.append(f"  {graph.file:<16} {size:8.0f} KiB   differs from torch by at most {worst:.1e}")
    lines.append(f"serve it: python -m service --model-store {store}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
