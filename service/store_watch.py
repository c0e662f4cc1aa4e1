"""The model store over the life of the process: loaded at the start, looked through from time to time, logged."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

from service.catalogue import LoadedModel
from service.engine import Engine
from service.errors import NotReady
from service.logs import say
from service.model_folder import EmptyStore, Refusal
from service.model_store import ModelStore
from service.observability import Metrics
from service.settings import option_name


class StoreLog:
    """One log line and the metrics for every change: `model_store.StoreObserver`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open: Counter[tuple[str, int]] = Counter()  # after a step back and forth a version is there twice

    def loaded(self, model: LoadedModel) -> None:
        self._open[model.name, model.version] += 1
        self._metrics.model_loaded(model.name, model.version, model.manifest.kind)
        graphs = ",".join(f"{name}:{_where(batcher.engine)}" for name, batcher in model.batchers.items())
        say(logging.INFO, "model loaded", model=model.name, version=model.version, graphs=graphs)
        for capability, batcher in model.batchers.items():
            if strays := batcher.engine.strays:
                graph, nodes = f"{model.name}/{model.version}.{capability}", ", ".join(strays)
                say(logging.WARNING, "nodes on the CPU beside a GPU", graph=graph, nodes=nodes)

    def refused(self, refusal: Refusal, unforeseen: Exception | None) -> None:
        facts = {"model": refusal.model, "version": refusal.version, "reason": refusal.reason}
        say(logging.ERROR, "model refused", unforeseen, **facts)

    def closed(self, model: LoadedModel) -> None:
        self._open[model.name, model.version] -= 1
        if not self._open[model.name, model.version]:
            del self._open[model.name, model.version]
            self._metrics.model_closed(model.name, model.version, model.manifest.kind, model.batchers)
        say(logging.INFO, "model closed", model=model.name, version=model.version)


def load_at_start(store: ModelStore, *, every_version: bool = False) -> None:
    """Load every model, or every version of every model, and say what came of it; nothing where the service ends
    meanwhile.
    """
    try:
        store.load_all(every_version=every_version)
    except EmptyStore as error:
        store.loading, store.empty = False, str(error)
        say(logging.WARNING, "not ready, waiting for a model", reason=error)
        return
    except NotReady:
        return
    except Exception as error:
        store.loading = False
        if not store.life.draining:  # at the interpreter's end no thread can begin any more
            say(logging.ERROR, "models could not be loaded", error)
        return
    if store.life.draining:
        return
    if reason := store.reason_not_ready():
        say(logging.ERROR, "not ready", reason=reason)
    else:
        devices = ",".join(options.device.name for options in store.options)
        say(logging.INFO, "ready", models=",".join(store.serving.models), devices=devices)
    serving = store.serving
    for capability in serving.undecided():
        text = f"the default of /{capability} is not loaded: requests that name no model get 404"
        default, able = serving.defaults.get(capability, ""), ",".join(serving.able[capability])
        say(logging.WARNING, text, setting=option_name(f"default_{capability}"), default=default, models=able)


async def serve_store(
    store: ModelStore, loading: Future[None], poll_seconds: float, on_loaded: Callable[[], None]
) -> None:
    """Wait for `load_at_start`, which goes on in the loader's thread, so that probes are answered meanwhile; then look
    for what is new, until cancelled.

    poll_seconds: 0 looks once, at the start.
    """
    await asyncio.wrap_future(loading)
    on_loaded()
    complaint = store.empty
    while poll_seconds:
        await asyncio.sleep(poll_seconds)
        try:
            await store.poll()
            complaint = ""
        except NotReady:  # the service is about to end
            return
        except EmptyStore as error:  # what is loaded serves on; one line until it is there again
            if complaint != str(error):
                complaint = str(error)
                say(logging.WARNING, "the model store cannot be read", reason=complaint)
        except Exception as error:
            say(logging.ERROR, "the model store could not be looked through", error)


def _where(engine: Engine) -> str:
    """On the event loop, in a thread, or small batches there and larger ones here; with the most rows of a run."""
    inline = [f"inlinex{engine.inline_batch}"] if engine.inline_batch else []
    thread = [f"threadx{engine.max_batch}"] if engine.inline_batch < engine.max_batch else []
    return "+".join(inline + thread)
