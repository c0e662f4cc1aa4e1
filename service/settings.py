"""Every knob of the service, once: its environment name, its unit, its default and what it costs.

`EQUIPOISE_<NAME>` in the environment sets a field, `--<name>` on the command line sets it with precedence. A variable
with the prefix that names no field is an error, so that a typing mistake cannot pass for a setting.
"""

import difflib
import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contract.picture import MOST_DECODED_BYTES_PER_PIXEL
from service.devices import ConvSearch

ENV_PREFIX = "EQUIPOISE_"
TRAINING_PREFIX = "EQUIPOISE_TRAINING_"  # the training package's own variables: not ours to judge
MIB = 1024 * 1024
MOST_THREADS_BY_DEFAULT = 8  # thirty graphs have thirty pools
_DAY_SECONDS = 24 * 3600
_LEAST_SECONDS = 0.001  # below it a deadline has passed before anything can be done
_LEAST_HANG_SECONDS = 1.0  # a busy machine may leave a process out for as long as less
_LEAST_POLL_SECONDS = 0.01
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:\d{1,5})?")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2}(,\d{1,2})*)?")
_COLLECTOR = re.compile(r"https?://([^\s/?#@]*@)?([a-zA-Z0-9._-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?(/[^\s?#]*)?")


class SettingsError(Exception):
    """A setting that cannot be used; the message has one line a setting and names its variable and its option."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False)

    model_store: Path = Field(
        default=Path("model_store"),
        description="Folder with the models, <store>/<model>/<version>/. The highest good version of each is served.",
    )
    model_poll_seconds: float = Field(
        default=5.0,
        ge=0,
        le=_DAY_SECONDS,
        description="How often the model store is looked through for new models and versions, and for versions that "
        "were written anew, seconds, at least 0.01; 0: never. A good one replaces the older one without a request "
        "lost. What has gone from the folder serves on.",
    )
    wait_for_models: bool = Field(
        default=False,
        description="Start on a model store that is an empty folder, not ready until the first model is found in it: "
        "for a volume that training will fill. Off, an empty store ends the process at once, so that a wrong path is "
        "not taken for one. Needs model_poll_seconds above 0.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on. 0.0.0.0 opens it to the network.")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    probe_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="A second port for probes and metrics alone; /metrics is then not on the first. Probes and metrics "
        "ask for no key and are not counted in max_connections there.",
    )
    api_keys: Path | None = Field(
        default=None,
        description="File of keys, a line each: name, role (use or admin) and sha256:<digest>, as `key` makes them. "
        "Requests then need `Authorization: Bearer <key>`, but for probes, metrics and documentation. Read anew within "
        "a second of a change. Loading and unloading models needs an admin key and is off without one.",
    )
    allow_anonymous: bool = Field(
        default=False,
        description="Listen beyond this machine without api_keys: for a network where something else decides who asks.",
    )
    cors_origins: str = Field(
        default="",
        description="Origins of web pages that may call the service, separated by commas; * is any, empty none.",
    )
    max_connections: int = Field(
        default=2048,
        ge=1,
        le=1_000_000,
        description="Most connections open at once, idle ones included; past it 503 and closed. Each takes a file "
        "and up to 1.5 MiB of bytes that arrive before they are part of queue_bytes.",
    )

    default_embed: str = Field(
        default="equivae-mnist",
        description="Model that answers /embed where a request names none. Where it is not loaded and exactly one "
        "model has the capability, that one answers.",
    )
    default_classify: str = Field(default="equivae-mnist", description="The same for /classify.")
    default_recombine: str = Field(default="equivae-mnist", description="The same for /recombine.")
    default_transform: str = Field(default="mcevae-mnist-se2", description="The same for /transform.")
    default_canonicalize: str = Field(default="mcevae-mnist-se2", description="The same for /canonicalize.")
    default_augment: str = Field(default="symmetry-mnist", description="The same for /augment.")

    max_body_bytes: int = Field(
        default=64 * MIB,
        ge=1024,
        description="Largest request body, bytes. A body is held in memory whole; what has arrived of all of them is "
        "part of queue_bytes.",
    )
    body_timeout_seconds: float = Field(
        default=30.0,
        ge=_LEAST_SECONDS,
        le=_DAY_SECONDS,
        description="Seconds that the head of a request may take to arrive, then its body; also for how long a client "
        "may take nothing of its answer. Longer lets slow clients hold connections and memory.",
    )
    max_pixels: int = Field(
        default=50_000_000,
        ge=64,
        le=178_956_970,  # past it Pillow refuses some formats itself
        description="Largest picture, pixels (width times height), read from its header before it is decoded. "
        "Decoding and preparing a picture holds 3 bytes a pixel (grey), 10 (colour), 12 (CMYK) or 18 (WebP).",
    )
    min_side: int = Field(default=4, ge=1, description="Smallest side of a picture, pixels.")
    max_images: int = Field(
        default=1024, ge=1, description="Most pictures in one request. A request is answered when its last one is."
    )

    queue_images: int = Field(
        default=2048,
        ge=1,
        description="Most pictures accepted and not yet answered, over all requests; past it 429 with Retry-After. The "
        "default is 64 requests of a whole batch, with which a graph is as busy as it can be; more bridges longer "
        "bursts and makes everybody wait longer.",
    )
    queue_seconds: float = Field(
        default=1.0,
        ge=0,
        le=_DAY_SECONDS,
        description="New pictures are refused with 429 and Retry-After where they would wait longer than this for "
        "those before them, seconds. The wait follows from the rate at which pictures were answered of late. A longer "
        "one makes what is accepted slower under overload; too short a one leaves graphs with small batches. 0: "
        "queue_images alone says.",
    )
    queue_bytes: int = Field(
        default=1024 * MIB,
        ge=MIB,
        description="Most memory for bodies, as they arrive, and decoded pictures, bytes; past it 429 with "
        "Retry-After. At least what the largest picture takes: 18 times max_pixels, and max_body_bytes. Lower all "
        "three together where memory is short.",
    )
    request_timeout_seconds: float = Field(
        default=60.0,
        ge=_LEAST_SECONDS,
        le=_DAY_SECONDS,
        description="Deadline of a request from its head to its answer, seconds; past it, or where the work that waits "
        "already takes longer, 504. A client may ask for less in X-Request-Timeout-Ms. Longer lets slow work pile up.",
    )
    max_batch: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Most pictures in one run of a graph. More gains little on a CPU and delays those who wait; on a "
        "GPU 128 or 256 do, each size of batch up to it (1, 2, 4, ...) with buffers of its own.",
    )
    inline_milliseconds: float = Field(
        default=5.0,
        ge=0,
        le=60_000,
        description="Runs of a graph that take at most this long, by the size of the batch, are done on the event loop "
        "itself, which saves a thread hop a request and stalls everything else for that time; longer ones in a thread. "
        "0: always a thread.",
    )
    device: str = Field(
        default="auto",
        description="Where graphs run: cpu; cuda, cuda:1 or cuda:0,1 (every graph on each, one thread a device), which "
        "has to be had or the service does not start; auto: cuda:0 where it can be had, else the CPU, which "
        "/readyz says, and the log and equipoise_device_fallback where ONNX Runtime's CUDA build is installed.",
    )
    gpu_memory_bytes: int = Field(
        default=1024 * MIB,
        ge=0,
        le=2**40,
        description="Most memory that one graph takes on a GPU for what it computes, bytes; 0: no limit. Memory once "
        "taken is kept. With too low a limit the model fails to load.",
    )
    gpu_conv_search: ConvSearch = Field(
        default="heuristic",
        description="How cuDNN chooses the kernels of convolutions, once a graph and size of batch, before the graph "
        "serves: heuristic by a table, at once; exhaustive by timing all, which makes every load longer and may choose "
        "otherwise in every process; default: cuDNN's plain one.",
    )
    inference_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Threads for one run of a graph, in a pool that every graph keeps for itself, so that all graphs "
        "together have so many times their number; 0: as many as the CPUs that the process may use (affinity and "
        f"cgroup quota), at most {MOST_THREADS_BY_DEFAULT}.",
    )
    decode_threads: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Threads, at lowered priority, for large pictures and large batches. More take CPU time from "
        "small requests.",
    )

    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        le=_DAY_SECONDS,
        description="How long an idle connection is kept, seconds. Keep it above the idle time of a proxy in front.",
    )
    drain_seconds: float = Field(
        default=5.0,
        ge=0,
        le=_DAY_SECONDS,
        description="How long the service goes on after SIGTERM, seconds: not ready and closing connections, but "
        "answering, until balancers look elsewhere. Then it finishes what it has accepted. SIGINT leaves it out.",
    )
    hang_seconds: float = Field(
        default=30.0,
        ge=0,
        le=_DAY_SECONDS,
        description="After how long something that hangs is given up, seconds, at least 1; 0: never. A run in a "
        "thread: /healthz fails. The event loop: the stacks of all threads are written to standard error and the "
        "process exits with 1. Time in which the whole process was stopped does not count for it.",
    )
    log_format: Literal["plain", "json"] = Field(default="plain", description="plain for people, json for machines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Least severe level that is logged. Records of requests, see access_log_every, are of info.",
    )
    access_log_every: int = Field(
        default=0,
        ge=0,
        description="Log every n-th request, with its id, endpoint, status, timings, model and the name of its key; 1 "
        "logs all, which takes time of every small picture. 0 logs none. With any other, every answer of 500 and more "
        "is logged too, but for those to probes.",
    )
    otel_endpoint: str = Field(
        default="",
        description="URL of an OTLP/HTTP collector, as http://collector:4318, that gets OpenTelemetry traces; needs "
        "the extra otel. Empty: none, at no cost.",
    )
    otel_share: float = Field(
        default=0.01, ge=0, le=1, description="Share of requests that are traced where their caller has not decided."
    )

    @field_validator("hang_seconds", "model_poll_seconds")
    @classmethod
    def _off_or_long_enough(cls, value: float, info: ValidationInfo) -> float:
        least = _LEAST_HANG_SECONDS if info.field_name == "hang_seconds" else _LEAST_POLL_SECONDS
        if 0 < value < least:
            raise ValueError(f"Input should be 0 (off) or at least {least:g}")
        return value

    @field_validator("device")
    @classmethod
    def _of_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError("a device is auto, cpu, cuda, or cuda with the numbers of its GPUs: cuda:1, cuda:0,1")
        return value

    @field_validator("otel_endpoint")
    @classmethod
    def _of_collector(cls, value: str) -> str:
        if value and not _COLLECTOR.fullmatch(value):
            raise ValueError("a collector is http://host:port or https://host:port, with a path where it has one")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _of_origins(cls, value: str) -> str:
        for origin in value.split(",") if value else ():
            if not _ORIGIN.fullmatch(origin.strip()):
                raise ValueError(
                    f"{origin.strip()!r} is no origin as browsers send it: https://host or https://host:port in lower "
                    "case, without a path"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.queue_images < self.max_images:
            raise ValueError(
                f"queue_images ({self.queue_images}) must be at least max_images ({self.max_images}), "
                "or the largest request could never be accepted"
            )
        if not (self.api_keys or self.allow_anonymous or _is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} lets the network in and nobody has to show a key: set api_keys "
                f"({ENV_PREFIX}API_KEYS), or allow_anonymous ({ENV_PREFIX}ALLOW_ANONYMOUS=true) where something in "
                "front decides who asks"
            )
        if self.wait_for_models and not self.model_poll_seconds:
            raise ValueError("wait_for_models needs model_poll_seconds above 0, or no model would ever be found")
        if self.min_side**2 > self.max_pixels:
            raise ValueError(
                f"min_side ({self.min_side}) squared must be at most max_pixels ({self.max_pixels}), or every picture "
                "would be refused"
            )
        largest = MOST_DECODED_BYTES_PER_PIXEL * self.max_pixels + self.max_body_bytes
        if self.queue_bytes < largest:
            raise ValueError(
                f"queue_bytes ({self.queue_bytes}) must be at least {largest} ({MOST_DECODED_BYTES_PER_PIXEL} times "
                "max_pixels, and max_body_bytes), or the largest picture could never be accepted"
            )
        return self

    def default_model(self, capability: str) -> str:
        """The model that answers for a capability where a request names none."""
        return str(getattr(self, f"default_{capability}"))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def option_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def load_settings(options: Mapping[str, object]) -> Settings:
    """Settings from the command line's `options` (only those given), then the environment, then the defaults.

    Raises:
        SettingsError: a value of the wrong type or range, values that contradict each other, an unknown variable.
    """
    complaints = [_unknown_variable(name) for name in os.environ if _is_unknown(name)]
    try:
        settings = Settings(**dict(options))  # type: ignore[arg-type]
    except ValidationError as error:
        for item in error.errors(include_url=False):
            field = str(item["loc"][0]) if item["loc"] else ""
            complaints.append(_wrong_value(field, item["msg"], item.get("input"), given=field in options))
        raise SettingsError("\n".join(complaints)) from None
    if complaints:
        raise SettingsError("\n".join(complaints))
    return settings


def _is_unknown(variable: str) -> bool:
    name = variable.upper()
    ours = name.startswith(ENV_PREFIX) and not name.startswith(TRAINING_PREFIX)
    return ours and name.removeprefix(ENV_PREFIX).lower() not in Settings.model_fields


def _unknown_variable(variable: str) -> str:
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    close = difflib.get_close_matches(variable.upper(), known, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    if variable.endswith(("_SERVICE_HOST", "_SERVICE_PORT")) or "_TCP" in variable:
        hint = ": Kubernetes injects it for a Service of this name; set enableServiceLinks: false in the pod"
    return f"{variable} is no setting{hint}"


def _wrong_value(field: str, message: str, value: object, *, given: bool) -> str:
    message = message.removeprefix("Value error, ")
    if not field:
        return message
    name = option_name(field) if given else ENV_PREFIX + field.upper()
    hint = ""
    if isinstance(value, str) and value.startswith("tcp://"):
        hint = " (Kubernetes injects this for a Service of this name; set enableServiceLinks: false in the pod)"
    return f"{name}={value}: {message}{hint}"
