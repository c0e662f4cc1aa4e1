"""Ray Serve: the raw body, `@serve.batch` of what is waiting. `ray_app.py PORT`

Its documented high throughput is two environment variables, read when its processes start: by
RAY_SERVE_THROUGHPUT_OPTIMIZED=1 user code and router share the replica's event loop, the log is buffered and messages
go by gRPC; by RAY_SERVE_ENABLE_HA_PROXY=1 the HAProxy that comes with it hands requests to the replica, instead of a
proxy in Python. At 1, 8 and 64 clients, two cores of an AMD EPYC with AVX-512, requests/s: 138, 186, 270 without, 149,
223, 260 by the first, 745, 1,124, 1,224 by the second, 974, 1,411, 1,378 by both.
"""

import signal
import sys
from typing import Any

import ray
from classifier import BATCH, Classifier
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=2 * BATCH, num_replicas=1)
class Peer:
    def __init__(self) -> None:
        self.classifier = Classifier()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.0)
    async def judge(self, images: list[Any]) -> list[dict[str, Any]]:
        return self.classifier.judge(images)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return await self.judge(self.classifier.decode(await request.body()))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Peer.bind(), route_prefix="/classify")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
