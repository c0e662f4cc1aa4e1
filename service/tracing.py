"""OpenTelemetry traces, by the extra `otel`: a span a request, one a stage below it, sent to a collector.

Spans are made of a request's timings once it has been answered, so that nothing is carried along on its way. Without a
collector nothing of this is imported.
"""

import threading
import time

from starlette.types import Scope

from service.call import Call

_LAST_SPANS_SECONDS = 3.0  # of the time that a pod is given for its end, which is for requests


class TracingUnavailable(Exception):
    """Traces are asked for and cannot be made; the message says what to do."""


class Tracing:
    """What `RequestEdge` calls at the end of a request."""

    def __init__(self, endpoint: str, share: float, version: str) -> None:
        """endpoint: URL of an OTLP/HTTP collector. share: of requests that bring no decision of their caller's.
        version: the service's.

        Raises:
            TracingUnavailable: the extra is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ImportError:
            raise TracingUnavailable(
                "otel_endpoint is set and OpenTelemetry is not installed: it comes with the extra otel, in the "
                "project's folder `pip install '.[otel]'`"
            ) from None
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "equipoise", "service.version": version})
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("equipoise")
        self._propagator = TraceContextTextMapPropagator()
        self._server = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)
        self._in_context = set_span_in_context

    def __call__(self, call: Call, scope: Scope, seconds: float) -> None:
        end = time.time_ns()
        carrier = {
            name: call.headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in call.headers
        }
        attributes: dict[str, str | int] = {
            "http.request.method": scope["method"],
            "http.route": call.endpoint,
            "http.response.status_code": call.status,
            "equipoise.request_id": call.request_id,
        }
        if call.model is not None:
            attributes |= {"equipoise.model": call.model.name, "equipoise.version": call.model.version}
        span = self._tracer.start_span(
            f"{scope['method']} {call.endpoint}",
            context=self._propagator.extract(carrier),
            kind=self._server,
            attributes=attributes,
            start_time=end - round(seconds * 1e9),
        )
        if call.status >= 500:
            span.set_status(self._failed)
        if span.is_recording():
            self._add_stages(call, self._in_context(span), end)
        span.end(end)

    def _add_stages(self, call: Call, context: object, end: int) -> None:
        """Their lengths are exact; they are drawn one after the other up to the answer."""
        start = end - round(sum(seconds for _, seconds in call.stages) * 1e9)
        for name, seconds in call.stages:
            stage = self._tracer.start_span(name, context=context, start_time=start)  # type: ignore[arg-type]
            start += round(seconds * 1e9)
            stage.end(start)

    def close(self) -> None:
        """Send what is left; waits for the collector at most a few seconds, OpenTelemetry by itself half a minute."""
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(_LAST_SPANS_SECONDS)
