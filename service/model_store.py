"""The models on disk and the models that serve: find, verify, load.

The highest good version of every model serves. A bad folder is refused with its reason and never stops the others.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from contract.manifest import GOLDEN_FILE, Capability, Manifest, ManifestError, verify, versions
from service.batching import Batcher
from service.engine import Array, Engine, EngineError, EngineOptions, Golden
from service.errors import CapabilityNotFound, ModelNotFound, NotReady, VersionNotFound

CAPABILITIES: tuple[str, ...] = get_args(Capability)


class EmptyStore(Exception):
    """The model store is missing, cannot be listed, or has no model folder at all."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model folder that does not serve, and why; version None: the folder above its versions."""

    model: str
    version: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A version that serves: immutable, so that a request that holds it is answered by it to its end."""

    manifest: Manifest
    batchers: Mapping[str, Batcher]

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version


def find(root: Path) -> tuple[dict[str, list[int]], list[Refusal]]:
    """Model name -> version numbers on disk, highest first; and the models whose folder cannot be listed.

    Raises:
        EmptyStore: no folder, one that cannot be listed, or no <model>/<version> in it.
    """
    try:
        if not root.is_dir():
            raise EmptyStore(f"the model store {root} is not a folder")
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise EmptyStore(f"the model store {root} cannot be listed: {error.strerror}") from error
    found: dict[str, list[int]] = {}
    refusals: list[Refusal] = []
    for name in names:
        try:
            numbers = versions(root / name)
        except OSError as error:
            refusals.append(Refusal(name, None, f"the folder cannot be listed: {error.strerror}"))
            continue
        if numbers:
            found[name] = numbers[::-1]
    if not found and not refusals:
        raise EmptyStore(f"the model store {root} has no model: a model is <store>/<model>/<version>/")
    return found, refusals


@dataclass
class ModelStore:
    """Loaded models by name. `load` may run in another thread: it changes `models` by one assignment at its end.

    queue: puts the queue in front of an engine; the last argument is (model, version, capability).
    """

    root: Path
    options: EngineOptions
    defaults: Mapping[str, str]
    queue: Callable[[Engine, tuple[str, int, str]], Batcher]
    models: dict[str, LoadedModel] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    loading: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(
        self,
        loaded: Callable[[LoadedModel], None],
        refused: Callable[[Refusal], None],
        *,
        every_version: bool = False,
    ) -> None:
        """Load the highest good version of every model; tell of each as it is done.

        every_version: load the older ones as well, to hear of each of them; the highest good one still serves.
        """
        with self._lock:
            models: dict[str, LoadedModel] = {}
            found, refusals = find(self.root)
            for refusal in refusals:
                refused(refusal)
            for name, numbers in found.items():
                for number in numbers:
                    try:
                        model = self._load_version(name, number)
                    except Exception as error:  # whatever is wrong with one folder, the others are served
                        reason = str(error) if isinstance(error, ManifestError | EngineError | OSError) else repr(error)
                        refusals.append(Refusal(name, number, reason))
                        refused(refusals[-1])
                        continue
                    loaded(model)
                    models.setdefault(name, model)
                    if not every_version:
                        break
            self.models, self.refused, self.loading = models, refusals, False

    def _load_version(self, name: str, number: int) -> LoadedModel:
        folder = self.root / name / str(number)
        manifest = verify(folder)
        golden = _read_golden(folder / GOLDEN_FILE)
        batchers: dict[str, Batcher] = {}
        for capability, spec in manifest.graphs.items():
            graph = (folder / spec.file).read_bytes()
            cases = _golden_of(golden, capability)
            try:
                engine = Engine(graph, spec, manifest.opset, cases, self.options)
            except EngineError as error:
                raise EngineError(f"{capability}: {error}") from error
            batchers[capability] = self.queue(engine, (name, number, capability))
        return LoadedModel(manifest, batchers)

    def select(self, capability: str, name: str | None, version: int | None) -> LoadedModel:
        """The model that answers a request.

        With no name it is the capability's default; where that is not loaded and exactly one model has the
        capability, that one.

        Raises:
            NotReady: nothing is loaded. ModelNotFound, VersionNotFound, CapabilityNotFound: with what there is.
        """
        if name is None and version is None:
            model = self.models.get(self.defaults.get(capability, ""))
            if model is not None and capability in model.batchers:
                return model
        return self._search(capability, name, version)

    def able(self, capability: str) -> list[str]:
        """The names of the loaded models that have a capability."""
        return [model.name for model in self.models.values() if capability in model.batchers]

    def _search(self, capability: str, name: str | None, version: int | None) -> LoadedModel:
        if not self.models:
            self.check_ready()
        able = self.able(capability)
        default = self.defaults.get(capability, "")
        if name is None:
            if not able:
                raise CapabilityNotFound(f"no loaded model can {capability}", capability=capability, models=able)
            if default not in able and len(able) > 1:
                raise ModelNotFound(
                    f"the default model {default!r} of {capability} is not loaded and several others are: "
                    "choose one with ?model=",
                    models=able,
                )
            name = default if default in able else able[0]
        model = self.models.get(name)
        if model is None:
            raise ModelNotFound(f"the model {name!r} is not loaded", models=able)
        if version is not None and version != model.version:
            raise VersionNotFound(f"version {version} of {name} is not loaded", model=name, versions=[model.version])
        if capability not in model.batchers:
            raise CapabilityNotFound(f"the model {name} cannot {capability}", capability=capability, models=able)
        return model

    def check_ready(self) -> None:
        """
        Raises:
            NotReady: no request can be answered, with the reason.
        """
        if reason := self.reason_not_ready():
            raise NotReady(reason, headers={"Retry-After": "1"} if self.loading else None)

    def reason_not_ready(self) -> str | None:
        """Why no request can be answered; None where one can."""
        if self.loading:
            return "models are being loaded"
        if self.models:
            return None
        reasons = "; ".join(f"{refusal.model}/{refusal.version or ''}: {refusal.reason}" for refusal in self.refused)
        return f"no model could be loaded: {reasons or 'the log says why'}"

    async def close(self) -> None:
        for model in self.models.values():
            for batcher in model.batchers.values():
                await batcher.close()


def _read_golden(path: Path) -> dict[str, Array]:
    """Arrays by `<capability>/<in|out>/<tensor>`.

    Raises:
        ManifestError: not such a file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: np.ascontiguousarray(archive[key], dtype=np.float32) for key in archive.files}
    except Exception as error:  # numpy and zipfile raise a dozen kinds on a damaged archive
        raise ManifestError(f"{path.name} cannot be read: {error}") from error


def _golden_of(golden: Mapping[str, Array], capability: str) -> Golden:
    def side(name: str) -> dict[str, Array]:
        prefix = f"{capability}/{name}/"
        return {key[len(prefix) :]: array for key, array in golden.items() if key.startswith(prefix)}

    return Golden(side("in"), side("out"))
