"""The app that most people would write: FastAPI, the raw body, Pillow, one `session.run` a request, a response model.

It answers `POST /classify` with the same numbers as the service, without limits, metrics, request ids or a check of
what it was sent. Run by `benchmarks/serving.py`; the model's folder comes from the environment variable MODEL.
"""

import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request
from PIL import Image
from pydantic import BaseModel

folder = Path(os.environ["MODEL"])
labels: list[str] = json.loads((folder / "manifest.json").read_text())["labels"]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(folder / "classify.onnx", options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Novelty(BaseModel):
    score: float
    is_novel: bool


class Answer(BaseModel):
    label: str
    probability: float
    probabilities: dict[str, float]
    distances: dict[str, float]
    novelty: Novelty


@app.post("/classify", response_model=Answer)
async def classify(request: Request) -> Answer:
    picture = Image.open(BytesIO(await request.body())).convert("L")
    image = np.asarray(picture, dtype=np.float32)[None, None] / 255
    distances, probabilities, novelty = session.run(["distances", "probabilities", "novelty"], {"image": image})
    best = int(probabilities[0].argmax())
    return Answer(
        label=labels[best],
        probability=float(probabilities[0, best]),
        probabilities=dict(zip(labels, probabilities[0].tolist(), strict=True)),
        distances=dict(zip(labels, distances[0].tolist(), strict=True)),
        novelty=Novelty(score=float(novelty[0]), is_novel=bool(novelty[0] > 0.99)),
    )
