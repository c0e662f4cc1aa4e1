"""What the tests ask of a subprocess.Popen, of a process that a server of `multiprocessing` has forked."""

from __future__ import annotations

import os
from contextlib import suppress
from multiprocessing.process import BaseProcess


class ForkedProcess:
    def __init__(self, process: BaseProcess) -> None:
        """process: started."""
        self._process = process

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit status, negative where a signal ended it; None where it goes on after these seconds."""
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    def end(self) -> None:
        self.kill()
        self.wait()
