"""python -m training: train, seeds, evaluate, figures, export, keys."""

import gc
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from types import FrameType
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console

from training.errors import ConfigError, TrainingError
from training.evaluation.options import Options, Split

INTERRUPTED = 130


class Documented(typer.core.TyperGroup):
    def get_help(self, ctx: Any) -> str:
        """The program's own help and, so that one page has every option, those of its commands."""
        pages = (
            command.get_help(typer.Context(command, info_name=name, parent=ctx))
            for name, command in self.commands.items()
        )
        return "\n\n".join([super().get_help(ctx), *pages])


app = typer.Typer(
    cls=Documented,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # An option without an envvar of its own is named after its command: EQUIPOISE_TRAINING_EVALUATE_SAMPLES.
    context_settings={"auto_envvar_prefix": "EQUIPOISE_TRAINING"},
    help="Train, measure and export models. A run is a folder; a model folder is what the service loads.",
    epilog="From nothing to a served model: python -m training train training/configs/equivae-digits.yaml, "
    "python -m training export runs/equivae-digits-2 --to model_store, "
    "python -m service --model-store model_store.",
)

ConfigPath = Annotated[
    Path,
    typer.Argument(
        help="Configuration, YAML; examples in training/configs/, every key by python -m training keys.",
        metavar="CONFIG",
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished run.", metavar="RUN")]
Runs = Annotated[
    Path,
    typer.Option(
        "--runs", envvar="EQUIPOISE_TRAINING_RUNS", help="Folder in which run folders are made.", metavar="DIR"
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="EQUIPOISE_TRAINING_DATA",
        help="Folder in which data sets are looked for and downloaded to. Default: equipoise in the user's cache.",
        metavar="DIR",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        envvar="EQUIPOISE_TRAINING_SET",
        help="Override one value of the configuration; may be repeated (in the environment: set apart by spaces).",
        show_default="none",
        metavar="KEY=VALUE",
    ),
]
DEFAULT_RUNS = Path("runs")
# The seeds that a configuration holds, and those that scikit-learn takes.
LARGEST_SEED, LARGEST_SEED_OF_FIGURES = 2**63 - 1, 2**32 - 1


@contextmanager
def explained(go_on: str = "run the command again") -> Iterator[None]:
    """An expected error is one line and its exit code.

    Args:
        go_on: what to do after an interruption.
    """
    try:
        yield
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {go_on}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def importing() -> Iterator[None]:
    """Without collections of garbage, which begin hundreds of times while PyTorch is imported, walk over all that there
    is of it by then, and find nothing; nor do later ones."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main() -> None:
    # The first process of a container is not ended by SIGTERM otherwise, and every eviction would wait for the kill.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        app()
    finally:
        gc.freeze()  # the interpreter's last garbage collection would take a second to walk over all of PyTorch


def use_data_folder(folder: Path | None) -> None:
    """Data sets and the processes of several devices read the environment."""
    if folder is not None:
        os.environ["EQUIPOISE_TRAINING_DATA"] = str(folder)


def _said(metrics: dict[str, float], name: str) -> str:
    return f"{name} {metrics[name]:.2f}" + (" %" if name == "error" else "")


@app.command(
    epilog="Example: python -m training train training/configs/equivae-digits.yaml --set fit.steps=500. "
    "On several GPUs of one machine: --set fit.devices=2."
)
def train(
    config: ConfigPath,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Run folder. Default: NAME-SEED in the folder of --runs.", metavar="DIR"),
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            envvar="EQUIPOISE_TRAINING_SEED",
            min=0,
            max=LARGEST_SEED,
            help="Seed of the run in place of fit.seed and, where data.labels is set, also of data.label_seed: other "
            "images keep their labels. Default: both as the configuration has them.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with an interrupted run, or begin it; bit-exact on the CPU.", show_default="off"
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Delete the run that the folder holds and begin again.", show_default="off"),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only judge the configuration and its data, for any device, and list what is left out of these and "
            "which pictures are there twice: exit status 0, or 2 where they are wrong.",
            show_default="off",
        ),
    ] = False,
    data: Data = None,
    set_: Overrides = None,
) -> None:
    """Train a model into a run folder."""
    with explained("run the command again" if check else "go on with --resume"):
        use_data_folder(data)
        if resume and restart:
            raise ConfigError("--resume and --restart exclude each other")
        from training.config_file import load_config

        chosen = load_config(config, set_ or ())
        if seed is not None:
            chosen = chosen.with_seed(seed)
        # Only now: PyTorch takes seconds to import, and what is wrong with a configuration is said at once.
        with importing():
            from training.fit import train as fit
            from training.preparation import prepare
            from training.run import default_folder

        if check:
            prepared = prepare(chosen)
            left_out = [f"left out: {entry}" for entry in prepared.splits.skipped]
            typer.echo("\n".join((prepared.described, *prepared.remarks, *left_out)))
            return
        console = Console()
        outcome = fit(chosen, run or default_folder(runs, chosen), resume=resume, restart=restart, console=console)
        found = _said(outcome.metrics, chosen.fit.select)
        # On the console, which of several processes is quiet in all but the first.
        console.out(f"{outcome.folder}: validation {found} after {outcome.minutes:.1f} min", highlight=False)


def _further_seed(text: str) -> int:
    """An option takes one word: the seeds after the first arrive as arguments, behind that of the configuration."""
    if not (text.isascii() and text.isdecimal()) or int(text) > LARGEST_SEED:
        raise typer.BadParameter(
            f"{text!r} is no seed from 0 to {LARGEST_SEED}; the configuration stands before them: "
            "seeds CONFIG --seeds 1 2 3"
        )
    return int(text)


@app.command(
    epilog="Example: python -m training seeds training/configs/equivae-digits.yaml --seeds 1 2 --output seeds.jsonl"
)
def seeds(
    config: ConfigPath,
    first: Annotated[
        int,
        typer.Option(
            "--seeds",
            envvar="EQUIPOISE_TRAINING_SEEDS",
            min=0,
            max=LARGEST_SEED,
            help="Seeds, one run each, in this order (in the environment: one).",
            metavar="N...",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", help="Results, one JSON line a finished seed; appended to.", metavar="FILE")
    ],
    others: Annotated[list[int] | None, typer.Argument(parser=_further_seed, hidden=True, metavar="SEED")] = None,
    runs: Runs = DEFAULT_RUNS,
    test: Annotated[
        bool,
        typer.Option("--test", help="Measure on the test set too. Only when every choice is made.", show_default="off"),
    ] = False,
    benchmark_epochs: Annotated[
        int | None,
        typer.Option(
            "--benchmark-epochs",
            min=0,
            help="Of an EquiVAE, also train the other classifiers of the paper's tables: the neural head and, for so "
            "many epochs, the benchmark CNN (0: the head alone).",
            show_default="neither",
        ),
    ] = None,
    data: Data = None,
    set_: Overrides = None,
) -> None:
    """Train one configuration under many seeds; seeds that are finished are not trained again."""
    with explained():
        from training.config_file import load_config

        use_data_folder(data)
        chosen = load_config(config, set_ or ())
        with importing():
            from training.seeds import run_seeds

        wanted = [first, *(others or ())]
        rows = run_seeds(chosen, wanted, output, runs, test=test, benchmark_epochs=benchmark_epochs, console=Console())
        part = "test" if test else "validation"
        for row in rows:
            typer.echo(f"seed {row['seed']}: {part} {_said(row[part], chosen.fit.select)}, {row['minutes']:.1f} min")
        if len(rows) > 1:
            values = [row[part][chosen.fit.select] for row in rows]
            error = stdev(values) / math.sqrt(len(values))
            typer.echo(f"mean of {len(rows)} seeds: {part} {chosen.fit.select} {mean(values):.3f} ± {error:.3f}")


@app.command(epilog="Example: python -m training evaluate runs/equivae-digits-2 --split test")
def evaluate(
    context: typer.Context,
    run: RunFolder,
    split: Annotated[
        Split,
        typer.Option("--split", help="Part of the data set to measure on; test only when every choice is made."),
    ] = Options.split,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="JSON file of the figures. Default: evaluation-SPLIT.json in the run.", metavar="FILE"
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            min=0,
            max=LARGEST_SEED_OF_FIGURES,
            help="Seed of the classifiers trained here and of the samples drawn.",
        ),
    ] = Options.seed,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", min=1, help="Of an EquiVAE: samples from the prior, and negatives of each kind, images."
        ),
    ] = Options.samples,
    benchmark_epochs: Annotated[
        int,
        typer.Option(
            "--benchmark-epochs",
            min=0,
            help="Of an EquiVAE: epochs of the paper's benchmark CNN; 0 leaves it out.",
        ),
    ] = Options.benchmark_epochs,
    photographs: Annotated[
        int,
        typer.Option(
            "--photographs",
            min=0,
            help="Of an EquiVAE of light strokes: 12-megapixel pages with a digit to read, about a second each; 0 "
            "leaves them out.",
        ),
    ] = Options.photographs,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            "--held-out",
            help="Of an EquiVAE: train a model without this class for novelty; may be repeated (in the environment: "
            "set apart by spaces).",
            show_default="none",
            metavar="CLASS",
        ),
    ] = None,
    held_out_epochs: Annotated[
        int | None,
        typer.Option("--held-out-epochs", min=1, help="Epochs of each such training. Default: as the run's own."),
    ] = Options.held_out_epochs,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="A quick look at this many images of the split, no figures for an export; what is trained here takes "
            "its time all the same. Default: all.",
        ),
    ] = Options.limit,
    classifier: Annotated[
        Path | None,
        typer.Option(
            "--classifier",
            help="Of a model of poses: folder of a served model that reads what it makes upright. Default: a CNN made "
            "here.",
            metavar="DIR",
        ),
    ] = Options.classifier,
    data: Data = None,
) -> None:
    """Measure a finished run, print the table and write it as JSON."""
    with explained():
        with importing():
            from training.evaluate import evaluate as measure

        use_data_folder(data)
        # Not those of the environment, which is there for runs of every kind.
        sources = {name: context.get_parameter_source(name) for name in context.params}
        given = (name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
        options = Options(
            split=split,
            seed=seed,
            samples=samples,
            benchmark_epochs=benchmark_epochs,
            photographs=photographs,
            held_out=tuple(held_out or ()),
            held_out_epochs=held_out_epochs,
            limit=limit,
            classifier=classifier,
            given=frozenset(given),
        )
        measure(run, output, options)


@app.command(epilog="Example: python -m training figures runs/equivae-digits-2. Needs the extra `figures`.")
def figures(
    run: RunFolder,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder of the PNG files. Default: figures in the run.", metavar="DIR"),
    ] = None,
    data: Data = None,
) -> None:
    """Draw the paper's figures of a finished run: embeddings, samples, interpolations, swaps."""
    with explained():
        with importing():
            from training.figures import draw_figures

        use_data_folder(data)
        target = output or run / "figures"
        draw_figures(run, target)
        typer.echo(f"figures in {target}")


@app.command(epilog="Example: python -m training export runs/equivae-digits-2 --to model_store")
def export(
    run: RunFolder,
    store: Annotated[
        Path,
        typer.Option("--to", envvar="EQUIPOISE_MODEL_STORE", help="Model store; a new version is made.", metavar="DIR"),
    ] = Path("model_store"),
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence", help="Licence of the weights. Default: Apache-2.0, for a data folder of your own unspecified."
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            help="Leave a capability out, for a smaller folder and a quicker start; may be repeated (in the "
            "environment: set apart by spaces).",
            show_default="none",
            metavar="CAPABILITY",
        ),
    ] = None,
) -> None:
    """Write a finished run as a model folder: ONNX graphs, manifest, golden cases."""
    with explained():
        with importing():
            from training.export import export_run

        export_run(run, store, licence, without=without or ())


@app.command(epilog="Example: python -m training keys | grep augment")
def keys() -> None:
    """List every key of a configuration with what it takes, its default and its meaning, one a line."""
    from training.keys import keys as of_configuration

    for line in of_configuration():
        typer.echo(line)


if __name__ == "__main__":
    main()
