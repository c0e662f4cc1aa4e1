"""Ray Serve: the raw body, `@serve.batch` of what is waiting. `ray_app.py PORT`"""

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
