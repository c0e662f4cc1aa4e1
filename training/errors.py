"""The errors that training explains to its user in one line."""

from typing import ClassVar

FAILED, WRONG_INPUT = 1, 2


class TrainingError(Exception):
    """Something the user can put right; the message says what and how, without a traceback.

    exit_code: of the command that it ends: 2 for wrong input, 1 for what went wrong on the way.
    """

    exit_code: ClassVar[int] = FAILED


def first_line(error: BaseException) -> str:
    """Of what another's error says, which may be nothing."""
    return (str(error).splitlines() or [repr(error)])[0]


class ConfigError(TrainingError):
    """A configuration file or a `--set` override that cannot be used; the message names the file and the line."""

    exit_code = WRONG_INPUT


class DataError(TrainingError):
    """A data set that is absent, broken or too small."""

    exit_code = WRONG_INPUT


class DeviceError(TrainingError):
    """An accelerator that was asked for and is not there."""

    exit_code = WRONG_INPUT


class RunError(TrainingError):
    """A run folder that cannot be written, resumed or read."""

    exit_code = WRONG_INPUT


class RunFailed(RunError):
    """A run that was in order and could not go on: a full disk, a loss that is not finite."""

    exit_code = FAILED
