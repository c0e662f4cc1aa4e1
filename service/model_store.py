"""The models that serve: loaded at the start, replaced and removed while requests are answered.

The highest good version of every model serves. A bad folder is refused with its reason and never stops the others. A
new version is read, verified, warmed and held to its golden cases in the loader's thread; then one assignment makes it
the one that serves, and the old one is closed when its last request has left it.
"""

import asyncio
import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from contract.manifest import ManifestError
from service.batching import Batcher
from service.catalogue import Catalogue, LoadedModel
from service.engine import Engine, EngineError, EngineOptions
from service.errors import ModelNotFound, ModelRefused, NotAlive, NotReady
from service.life import Life
from service.model_folder import EmptyStore, Refusal, Signature, Version, find, printable, read_version, sign, warm

_LOADING = "models are being loaded"
_ENDING = "the service is about to end and finishes what it has accepted"

Result = TypeVar("Result")


class StoreObserver(Protocol):
    """What is told of the store; `store_watch` implements it."""

    def loaded(self, model: LoadedModel) -> None: ...

    def refused(self, refusal: Refusal, unforeseen: Exception | None) -> None: ...

    def closed(self, model: LoadedModel) -> None: ...


@dataclass
class ModelStore:
    """`serving` is what requests see; it is replaced by one assignment.

    options: of the engines of a graph, one a device.
    queue: puts the queue in front of a graph's engines; the last argument is (model, version, capability).
    loader: one thread, so that loads come one after the other and delay no request.
    hang_seconds: a run in a thread that takes longer will never end; 0: it may.
    empty: why no model was there at the start; empty where one was.
    """

    root: Path
    options: Sequence[EngineOptions]
    defaults: Mapping[str, str]
    queue: Callable[[Sequence[Engine], tuple[str, int, str]], Batcher]
    observer: StoreObserver
    loader: Executor
    life: Life
    hang_seconds: float
    serving: Catalogue = field(init=False)
    refused: list[Refusal] = field(default_factory=list)
    loading: bool = True
    empty: str = ""
    _unloaded: set[str] = field(default_factory=set)
    _seen: dict[tuple[str, int], Signature] = field(default_factory=dict)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Of versions that were replaced as well: one whose run hangs is kept alive by that run.
    _batchers: WeakSet[Batcher] = field(default_factory=WeakSet)

    def __post_init__(self) -> None:
        self.serving = Catalogue({}, self.defaults)
        self.root = self.root.absolute()  # a path that is found in reasons where it is meant, and nowhere else

    def load_all(self, *, every_version: bool = False) -> None:
        """Load the highest good version of every model; for the start, before anything serves.

        The highest versions are read side by side. Only then are they warmed, one after the other, since that takes
        the time of runs by the clock.

        every_version: load the older ones as well, to hear of each of them; the highest good one still serves.

        Raises:
            EmptyStore: see `find`. NotReady: the service is about to end, and what is not loaded yet stays so.
        """
        models: dict[str, LoadedModel] = {}
        found, refusals = find(self.root)
        for refusal in refusals:
            self._refuse(refusal)
        with ThreadPoolExecutor(self.options[0].cores, "start") as side_by_side:
            ahead = {
                (name, numbers[0]): side_by_side.submit(self._verify, name, numbers[0])
                for name, numbers in found.items()
            }
        for name, numbers in found.items():
            for number in numbers:
                version = self._read(name, number, ahead.pop((name, number), None))
                if version is None:
                    continue
                model = self._made_ready(version)
                self.observer.loaded(model)
                models.setdefault(name, model)
                if not every_version:
                    break
        self.serving, self.loading = Catalogue(models, self.defaults), False

    async def load(self, name: str) -> LoadedModel:
        """Let the highest version on disk serve; the answer is the model that does then.

        The version that serves is read anew where its folder has changed. A version that was refused is tried again.
        Where a folder was removed to go back to an older version, that one is loaded. Meanwhile, and where the new one
        is bad, the old one serves on.

        Raises:
            ModelNotFound: no such folder. ModelRefused: it cannot be listed, it has no version, or the highest one is
                bad; with the reason.
            NotReady: the service is still starting, or about to end.
        """
        async with self._changing:
            self.check_started()
            try:
                found, whole = await self._in_loader(find, self.root)
            except EmptyStore:
                raise ModelNotFound("the model store cannot be read, or has no model", models=[]) from None
            if name not in found:
                if bad := [entry for entry in whole if entry.model == name]:
                    raise ModelRefused(f"{name} is refused: {bad[0].reason}")
                raise ModelNotFound(f"the model store has no model {name[:100]!r}", models=list(found))
            numbers = found[name]
            if version := await self._in_loader(self._read_highest, name, numbers):
                self._publish(version)
            self._unloaded.discard(name)
            if bad := [entry for entry in self.refused if (entry.model, entry.version) == (name, numbers[0])]:
                raise ModelRefused(f"version {numbers[0]} of {name} is refused: {bad[0].reason}")
            return self.serving.models[name]

    async def unload(self, name: str) -> None:
        """Take a model out of service until it is loaded by name again; its requests are answered first.

        Raises:
            ModelNotFound: it is not loaded.
        """
        async with self._changing:
            model = self.serving.models.get(name)
            if model is None:
                raise ModelNotFound(f"the model {name[:100]!r} is not loaded", models=list(self.serving.models))
            others = {other: loaded for other, loaded in self.serving.models.items() if other != name}
            self.serving = Catalogue(others, self.defaults)
            self._unloaded.add(name)
            model.retire()

    async def poll(self) -> None:
        """Load what is new on disk: models, versions above those that serve, and those that serve where their folders
        have changed. What has gone from disk serves on.

        A folder that was refused is tried again when a file of it has changed; below the version that serves, its
        refusal is forgotten then.

        Raises:
            EmptyStore: the store cannot be listed, or has no model any more. NotReady: the service is about to end.
        """
        async with self._changing:
            for name, numbers in (await self._in_loader(self._find_new)).items():
                if version := await self._in_loader(self._read_first, name, numbers):
                    self._publish(version)

    def _find_new(self) -> dict[str, list[int]]:
        found, whole = find(self.root)
        before = self.refused
        self.refused = [
            entry
            for entry in before
            if entry in whole or (entry.version in found.get(entry.model, ()) and not self._is_outdated(entry))
        ]
        for refusal in whole:
            if refusal not in before:
                self._refuse(refusal)
        serving = {name: model.version for name, model in self.serving.models.items()}
        # Of what serves, even where it is gone: it may come back as it was.
        there = {(name, number) for name, numbers in found.items() for number in numbers} | serving.items()
        self._seen = {key: facts for key, facts in self._seen.items() if key in there}
        new: dict[str, list[int]] = {}
        for name, numbers in found.items():
            changed = [
                number for number in numbers if number >= serving.get(name, 0) and self._has_changed(name, number)
            ]
            if changed and name not in self._unloaded:
                new[name] = changed
        return new

    def _has_changed(self, name: str, number: int) -> bool:
        """Whether a version's folder is not as it was when it was last read."""
        return self._seen.get((name, number)) != sign(self._folder(name, number))

    def _is_outdated(self, refusal: Refusal) -> bool:
        """Whether it is of a version below the one that serves, which is not read again, and its folder has changed."""
        serving, number = self.serving.models.get(refusal.model), refusal.version
        if serving is None or number is None or number >= serving.version:
            return False
        return self._has_changed(refusal.model, number)

    async def _in_loader(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.loader, work, *arguments)

    def _publish(self, version: Version) -> None:
        """From here on it serves; on the event loop, between two requests."""
        model = self._made_ready(version)
        old = self.serving.models.get(model.name)
        self.serving = Catalogue(self.serving.models | {model.name: model}, self.defaults)
        self.observer.loaded(model)
        if old is not None:
            old.retire()

    def _read_highest(self, name: str, numbers: Sequence[int]) -> Version | None:
        """The highest good one of these versions, all that are on disk; None where it serves already."""
        model = self.serving.models.get(name)
        serving = model.version if model else 0
        if serving not in numbers:
            self._seen.pop((name, serving), None)  # it was taken out: should it be put back, it is new
            return self._read_first(name, numbers)
        refused = any((entry.model, entry.version) == (name, serving) for entry in self.refused)
        again = refused or self._has_changed(name, serving)
        return self._read_first(name, [number for number in numbers if number > serving or again and number == serving])

    def _read_first(self, name: str, numbers: Sequence[int]) -> Version | None:
        """The first good one of these versions; the others are refused."""
        return next((version for number in numbers if (version := self._read(name, number)) is not None), None)

    def _verify(self, name: str, number: int) -> Version:
        self._check_going_on()
        folder = self._folder(name, number)
        self._seen[name, number] = sign(folder)
        return read_version(folder, self.options)

    def _read(self, name: str, number: int, ahead: Future[Version] | None = None) -> Version | None:
        """A version, warm; None where it is refused. ahead: it has been verified already."""
        self.refused = [entry for entry in self.refused if (entry.model, entry.version) != (name, number)]
        try:
            version = ahead.result() if ahead else self._verify(name, number)
            self._check_going_on()
            warm(version[1])
        except NotReady:
            raise
        except (ManifestError, EngineError, OSError) as error:
            self._refuse(Refusal(name, number, self._told(str(error))))
            return None
        except Exception as error:  # whatever is wrong with one folder, the others are served
            self._refuse(Refusal(name, number, self._told(repr(error))), error)
            return None
        return version

    def _made_ready(self, version: Version) -> LoadedModel:
        """With a queue in front of every graph."""
        manifest, engines = version
        key = manifest.name, manifest.version
        batchers = {capability: self.queue(those, (*key, capability)) for capability, those in engines.items()}
        self._batchers = WeakSet((*self._batchers, *batchers.values()))  # others may be going through the old one
        return LoadedModel(manifest, batchers, self._closed)

    def _check_going_on(self) -> None:
        """
        Raises:
            NotReady: the service is about to end, and nobody would ask what is loaded now.
        """
        if self.life.draining:
            raise NotReady(_ENDING)

    def _closed(self, model: LoadedModel) -> None:
        self.observer.closed(model)
        with suppress(RuntimeError):  # the loader has ended, and so does the process
            self.loader.submit(_trim)

    def _refuse(self, refusal: Refusal, unforeseen: Exception | None = None) -> None:
        self.refused = [*self.refused, refusal]
        self.observer.refused(refusal, unforeseen)

    def _told(self, reason: str) -> str:
        """As clients read it: they learn nothing of where the store is."""
        return printable(reason.replace(str(self.root), "<store>"))

    def _folder(self, name: str, number: int) -> Path:
        return self.root / name / str(number)

    def select(self, capability: str, name: str | None, version: int | None) -> LoadedModel:
        """The model that answers a request, see `Catalogue.select`.

        Raises:
            NotReady: nothing is loaded. ModelNotFound, VersionNotFound, CapabilityNotFound: with what there is.
        """
        if not self.serving.models:
            self.check_ready()
        return self.serving.select(capability, name, version)

    def check_started(self) -> None:
        """
        Raises:
            NotReady: models are still being loaded for the first time.
        """
        if self.loading:
            raise NotReady(_LOADING, headers={"Retry-After": "1"})

    def check_ready(self) -> None:
        """
        Raises:
            NotReady: no request can be answered, with the reason.
        """
        if reason := self.reason_not_ready():
            raise NotReady(reason, headers={"Retry-After": "1"} if self.loading else None)

    def running_seconds(self) -> float:
        """How long the oldest run in a thread has been going on; 0 where none is."""
        since = [batcher.running_since for batcher in tuple(self._batchers)]
        return max((time.perf_counter() - start for start in since if start is not None), default=0.0)

    @property
    def hangs(self) -> bool:
        """Whether a run in a thread takes so long that it will never end."""
        return 0 < self.hang_seconds < self.running_seconds()

    def check_alive(self) -> None:
        """
        Raises:
            NotAlive: a run in a thread hangs, so that nothing behind it is ever answered; or CUDA has failed.
        """
        for model in self.serving.models.values():
            for engine in (engine for batcher in model.batchers.values() for engine in batcher.engines):
                if engine.lost:
                    raise NotAlive(f"the GPU has failed, which only a new process mends: {engine.lost}")
        if self.hangs:
            raise NotAlive(f"a run of a graph has not ended for {self.running_seconds():.0f} s")

    def reason_not_ready(self) -> str | None:
        """Why no request should be sent here; None where one can."""
        if self.life.draining:
            return _ENDING
        if self.loading:
            return _LOADING
        if self.serving.models:
            return None
        reasons = [f"{refusal.model}/{refusal.version or ''}: {refusal.reason}" for refusal in self.refused]
        reasons += [f"{name}: unloaded until it is loaded by name" for name in sorted(self._unloaded)]
        return f"no model is loaded: {'; '.join(reasons) or self._told(self.empty) or 'the log says why'}"


def _trim() -> None:
    """Give freed memory back to the system, which glibc by itself seldom does; other C libraries have no such call."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
