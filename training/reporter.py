"""What a run tells while it goes on: a progress bar, metrics as JSON lines, and TensorBoard where it is installed."""

import importlib.util
import json
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.errors import RunFailed
from training.files import reason_of, write_atomically
from training.run import METRICS_FILE, read_metrics

SHOWN_TERMS = 4  # how many stand beside the bar; all of them stand in metrics.jsonl
SILENCE_SECONDS = 60  # after which a log, which has no bar, gets a line


def describe(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


class Reporter:
    """Reports of one process; a context manager. Only rank 0 makes one.

    Args:
        start: steps already done. Rows of metrics.jsonl after it are dropped: the resumed run writes them again.
    """

    def __init__(self, folder: Path, console: Console, total_steps: int, start: int) -> None:
        self._path = folder / METRICS_FILE
        self._start, self._total_steps = start, total_steps
        self._began = self._spoke = time.monotonic()
        self._console = console
        rows = [row for row in read_metrics(folder) if row["step"] <= start]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[terms]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=start, terms="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._board is not None:
            self._board.close()

    def training(self, step: int, epoch: float, terms: dict[str, float], rate: float) -> None:
        """Means of the loss and its terms over the last steps, up to and with `step`."""
        shown = describe(dict(list(terms.items())[:SHOWN_TERMS]))
        self._bar.update(self._task, completed=step, terms=shown)
        if self._bar.disable and time.monotonic() - self._spoke >= SILENCE_SECONDS:
            self._say(f"step {step}  epoch {epoch:.1f}  {shown}  ({self._left(step)} left)")
        self._write({"step": step, "epoch": round(epoch, 4), "split": "train", **terms, "rate": rate})

    def validation(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Figures of the validation set after `step` steps."""
        self._say(f"step {step}  epoch {epoch:.1f}  validation: {describe(metrics)}  ({self._left(step)} left)")
        self._write({"step": step, "epoch": round(epoch, 4), "split": "validation", **metrics})

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)
        self._spoke = time.monotonic()

    def _left(self, step: int) -> str:
        """Time that the remaining steps take at the pace so far, as h:mm:ss."""
        seconds = (time.monotonic() - self._began) / max(1, step - self._start) * (self._total_steps - step)
        return str(timedelta(seconds=round(seconds)))

    def _write(self, row: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if self._board is not None:
                for name, value in row.items():
                    if isinstance(value, float) and name != "epoch":
                        self._board.add_scalar(f"{row['split']}/{name}", value, row["step"])
        except OSError as error:
            raise RunFailed(
                f"{self._path} cannot be written: {reason_of(error)}; the checkpoints are kept: "
                "make room and run the command again (train: with --resume)"
            ) from error
