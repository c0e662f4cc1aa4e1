"""What every peer runs: Pillow decodes, one ONNX Runtime session on one thread judges a batch, the same fields answer.

The model's folder comes from the environment variable MODEL.
"""

import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

OUTPUTS = ["distances", "probabilities", "novelty"]
BATCH = 64


class Classifier:
    def __init__(self) -> None:
        folder = Path(os.environ["MODEL"])
        self.labels: list[str] = json.loads((folder / "manifest.json").read_text())["labels"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            folder / "classify.onnx", options, providers=["CPUExecutionProvider"]
        )

    def decode(self, picture: bytes) -> Any:
        """PNG -> float32 [1,H,W] in [0,1]"""
        return np.asarray(Image.open(BytesIO(picture)).convert("L"), dtype=np.float32)[None] / 255

    def judge(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Images [1,H,W] -> one answer each, in order."""
        distances, probabilities, novelty = self._session.run(OUTPUTS, {"image": np.stack(images)})
        return [
            {
                "label": self.labels[int(p.argmax())],
                "probability": float(p.max()),
                "probabilities": dict(zip(self.labels, p.tolist(), strict=True)),
                "distances": dict(zip(self.labels, d.tolist(), strict=True)),
                "novelty": {"score": float(n), "is_novel": bool(n > 0.99)},
            }
            for d, p, n in zip(distances, probabilities, novelty, strict=True)
        ]
