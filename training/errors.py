"""The errors that training explains to its user in one line."""


class TrainingError(Exception):
    """Something the user can put right; the message says what and how, without a traceback."""


def first_line(error: BaseException) -> str:
    """Of what another's error says, which may be nothing."""
    return (str(error).splitlines() or [repr(error)])[0]


class ConfigError(TrainingError):
    """A configuration file or a `--set` override that cannot be used; the message names the file and the line."""


class DataError(TrainingError):
    """A data set that is absent, broken or too small."""


class DeviceError(TrainingError):
    """An accelerator that was asked for and is not there."""


class RunError(TrainingError):
    """A run folder that cannot be written, resumed or read."""


class RunFailed(RunError):
    """A run that was in order and could not go on: a full disk, a loss that is not finite."""
