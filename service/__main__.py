"""`python -m service`: start the service. `python -m service check`: load and verify every version, then exit."""

import argparse
import gc
import json
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service import heap
from service.app import app_factory, create_store
from service.budget import Budget
from service.connections import Connections
from service.devices import DeviceUnavailable, find_devices
from service.engine import RuntimeUnavailable, check_runtime
from service.keys import KeyFileError, new_key
from service.life import Life
from service.logs import say, set_up_logging
from service.model_folder import EmptyStore, NoModelYet, find
from service.observability import Metrics
from service.process import Server
from service.schemas import EXAMPLE_PNG
from service.server import AddressUnavailable, allow_files, bind_all, configure, listen, url_of
from service.settings import ENV_PREFIX, Settings, SettingsError, load_settings, option_name
from service.store_watch import load_at_start
from service.tracing import TracingUnavailable

COMMANDS = ("serve", "check", "key")
EXIT_OK, EXIT_FAILED, EXIT_WRONG_SETTING = 0, 1, 2
_GARBAGE = 10_000  # objects that came and stayed before the collector looks at the youngest; by default 700


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the value is the exit status: 0, 1 (it failed) or 2 (a wrong setting)."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    # Not argparse's own `choices`: it would find fault with the value of a misspelt option before the option.
    if command not in COMMANDS:
        parser.error(f"{command}: no such command; choose from {', '.join(COMMANDS)}")
    if command == "key":
        return _make_key()
    try:
        settings = load_settings({name: value for name, value in options.items() if value is not None})
    except SettingsError as error:
        return _complain(str(error), EXIT_WRONG_SETTING)
    set_up_logging(settings.log_format, settings.log_level)
    warnings.filterwarnings("ignore", module="PIL")  # a client's damaged EXIF is no line of our log
    try:
        runtime = check_runtime()
        return _check(settings) if command == "check" else _serve(settings, runtime)
    except KeyFileError as error:
        return _complain(str(error), EXIT_WRONG_SETTING)
    except (RuntimeUnavailable, DeviceUnavailable, TracingUnavailable, AddressUnavailable, EmptyStore) as error:
        return _complain(str(error), EXIT_FAILED)


def _serve(settings: Settings, runtime: str) -> int:
    heap.share_one()
    try:
        find(settings.model_store)
    except NoModelYet:
        if not settings.wait_for_models:
            raise
    allow_files(settings.max_connections)
    with bind_all(settings) as sockets:
        server = assemble(settings, sockets, _freeze)
        # One that comes before the server runs ends it when it does. uvicorn finishes what it has accepted, then raises
        # the signal that stopped it once more: that is a normal end here.
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, server.handle_exit)
        listen(sockets)
        _say_where(settings, runtime, *map(url_of, sockets))
        server.run(sockets=sockets)
    if server.life.hung:
        say(logging.ERROR, "stopped, with a run of a graph that never ended")
        os._exit(EXIT_FAILED)  # the interpreter would wait for its thread for ever
    say(logging.INFO, "stopped")
    if server.life.busy:
        os._exit(EXIT_OK)  # the interpreter would wait for the thread
    return EXIT_OK


def _say_where(settings: Settings, runtime: str, url: str, probes: str = "") -> None:
    say(logging.INFO, "starting", url=url, docs=f"{url}/docs", model_store=settings.model_store, runtime=runtime)
    if probes:
        say(logging.INFO, "probes", url=probes)
    if settings.log_format == "plain":
        example = json.dumps({"images": [{"data": EXAMPLE_PNG}]})
        key = "-H 'Authorization: Bearer KEY' " if settings.api_keys else ""
        say(logging.INFO, f"try: curl {url}/classify {key}-H 'Content-Type: application/json' -d '{example}'")


def assemble(
    settings: Settings, sockets: Sequence[socket.socket], on_loaded: Callable[[], None] = lambda: None
) -> Server:
    """The app and its server for the sockets of `bind_all`."""
    life = Life()
    connections = Connections(settings.max_connections)
    probe_port = sockets[1].getsockname()[1] if len(sockets) > 1 else None
    make_app = app_factory(settings, on_loaded, connections, probe_port, life)
    return Server(configure(settings, connections, probe_port), make_app, life, settings)


def _make_key() -> int:
    key, line = new_key()
    print(f"key, shown once: {key}\nline for the file of keys (change the name; role use or admin):", file=sys.stderr)
    print(line)  # alone on standard output, for `>> keys.txt`
    return EXIT_OK


def _freeze() -> None:
    """Spare the garbage collector what lives as long as the process, and what a turn of the event loop makes and drops:
    a tenth of a small request's time each.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)


def _check(settings: Settings) -> int:
    """Load every version of every model; 0 if all are good."""
    find(settings.model_store)
    observed = Metrics(Budget(settings.queue_images, settings.queue_bytes))
    devices = find_devices(settings.device, settings.gpu_memory_bytes, settings.gpu_conv_search)
    with ThreadPoolExecutor(1) as loader:
        store = create_store(settings, observed, devices, [loader] * len(devices.found), loader, Life())
        load_at_start(store, every_version=True)
    return EXIT_FAILED if store.refused or not store.serving.models else EXIT_OK


def _complain(message: str, status: int) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve the models of a model store over HTTP.",
        epilog="A command line option wins over its environment variable, which wins over the default.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        metavar="{" + ",".join(COMMANDS) + "}",
        default="serve",
        help="serve (the default); check: load and verify every version of every model, then exit with 0 if all are "
        "good, else 1; key: make a new API key and its line for the file of keys",
    )
    for name, field in Settings.model_fields.items():
        parser.add_argument(option_name(name), dest=name, metavar=_values(field), help=_help(name, field))
    return parser


def _values(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "true|false"
    return "|".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else "VALUE"


def _help(name: str, field: FieldInfo) -> str:
    text = f"{field.description} [default: {field.default}; environment: {ENV_PREFIX}{name.upper()}]"
    return text.replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
