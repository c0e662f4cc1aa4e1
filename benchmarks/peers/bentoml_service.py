"""BentoML: multipart pictures, its adaptive batching. `bentoml serve bentoml_service:Peer`"""

from typing import Any

import bentoml
from classifier import BATCH, Classifier
from PIL.Image import Image as Picture


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Peer:
    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(route="/classify", batchable=True, max_batch_size=BATCH, max_latency_ms=10_000)
    def classify(self, image: list[Picture]) -> list[dict[str, Any]]:
        import numpy as np

        return self.classifier.judge([np.asarray(p.convert("L"), dtype=np.float32)[None] / 255 for p in image])
