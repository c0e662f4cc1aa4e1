"""The models that serve, and which of them answers a request."""

from collections.abc import Callable, Mapping
from typing import get_args

from contract.manifest import Capability, Manifest
from service.batching import Batcher
from service.errors import CapabilityNotFound, ModelNotFound, VersionNotFound

CAPABILITIES: tuple[str, ...] = get_args(Capability)


class LoadedModel:
    """A version that serves. A request that has entered it is answered by it, whatever is loaded meanwhile.

    It is entered, left and retired on the event loop, so that a plain number counts its requests.
    """

    __slots__ = ("_close", "_requests", "_retired", "batchers", "manifest")

    def __init__(
        self, manifest: Manifest, batchers: Mapping[str, Batcher], close: Callable[["LoadedModel"], None]
    ) -> None:
        self.manifest = manifest
        self.batchers = batchers
        self._close = close
        self._requests = 0
        self._retired = False

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version

    def enter(self) -> None:
        """A request begins that will use this model."""
        self._requests += 1

    def leave(self) -> None:
        """That request has been answered."""
        self._requests -= 1
        if self._retired and not self._requests:
            self._close(self)

    def retire(self) -> None:
        """No new request enters: close at once, or when the last one leaves."""
        self._retired = True
        if not self._requests:
            self._close(self)


class Catalogue:
    """Loaded models by name. It never changes, so that all of a request sees the same: another one takes its place.

    able: the names of the models that have a capability, by capability.
    defaults: the name of the model that answers where a request names none, by capability; it need not be loaded.
    """

    __slots__ = ("able", "defaults", "models")

    def __init__(self, models: Mapping[str, LoadedModel], defaults: Mapping[str, str]) -> None:
        self.models = dict(sorted(models.items()))
        self.able = {
            capability: [model.name for model in self.models.values() if capability in model.batchers]
            for capability in CAPABILITIES
        }
        self.defaults = defaults

    def select(self, capability: str, name: str | None, version: int | None) -> LoadedModel:
        """The model that answers a request.

        With no name it is the default; where that is not loaded and exactly one model has the capability, that one.

        Raises:
            ModelNotFound, VersionNotFound, CapabilityNotFound: with what there is.
        """
        able = self.able[capability]
        if name is None:
            if not able:
                raise CapabilityNotFound(f"no loaded model can {capability}", capability=capability, models=able)
            default = self.defaults.get(capability)
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

    def undecided(self) -> list[str]:
        """Capabilities that several models have and the default is none of them: without a name nobody answers."""
        return [name for name, able in self.able.items() if len(able) > 1 and self.defaults.get(name) not in able]
