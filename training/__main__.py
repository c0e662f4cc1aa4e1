"""python -m training: train, seeds, evaluate, figures, export."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.errors import ConfigError, DataError, DeviceError, TrainingError

WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train, measure and export models. A run is a folder; a model folder is what the service loads.",
    epilog="From nothing to a served model: `python -m training train training/configs/equivae-digits.yaml`, "
    "`python -m training export runs/equivae-digits-1 --to model_store`, "
    "`python -m service --model-store model_store`.",
)

ConfigPath = Annotated[
    Path, typer.Argument(help="Configuration, YAML; examples in training/configs/.", metavar="CONFIG")
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished run.", metavar="RUN")]
Runs = Annotated[
    Path, typer.Option("--runs", envvar="EQUIPOISE_RUNS", help="Folder in which run folders are made.", metavar="DIR")
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="EQUIPOISE_DATA",
        help="Folder in which data sets are looked for and downloaded to. Default: equipoise in the user's cache.",
        metavar="DIR",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one value of the configuration; may be repeated.", metavar="KEY=VALUE"),
]
DEFAULT_RUNS = Path("runs")


@contextmanager
def explained() -> Iterator[None]:
    """An expected error is one line and an exit code: 2 for wrong input, 1 for what went wrong on the way."""
    try:
        yield
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(WRONG_INPUT if isinstance(error, ConfigError | DataError | DeviceError) else FAILED) from error
    except KeyboardInterrupt:
        typer.echo("interrupted: go on with --resume", err=True)
        raise typer.Exit(INTERRUPTED) from None


def use_data_folder(folder: Path | None) -> None:
    """Data sets and the processes of several devices read the environment."""
    if folder is not None:
        import os

        os.environ["EQUIPOISE_DATA"] = str(folder)


@app.command(epilog="Example: `python -m training train training/configs/equivae-digits.yaml --set fit.epochs=20`")
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
            "--seed", envvar="EQUIPOISE_SEED", min=0, help="Seed of the run. Default: fit.seed of the configuration."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run; bit-exact on the CPU.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete what the run folder holds and begin again.")
    ] = False,
    data: Data = None,
    set_: Overrides = None,
) -> None:
    """Train a model into a run folder."""
    with explained():
        from training.config import load_config
        from training.fit import train as fit
        from training.run import default_folder

        use_data_folder(data)
        if resume and restart:
            raise ConfigError("--resume and --restart exclude each other")
        chosen = load_config(config, set_ or ())
        if seed is not None:
            chosen = chosen.with_seed(seed)
        outcome = fit(chosen, run or default_folder(runs, chosen), resume=resume, restart=restart, console=Console())
        typer.echo(
            f"{outcome.folder}: validation error {outcome.metrics['error']:.2f} % after {outcome.minutes:.1f} min"
        )


@app.command()
def evaluate(run: RunFolder) -> None:
    """Measure."""


if __name__ == "__main__":
    sys.exit(app())
