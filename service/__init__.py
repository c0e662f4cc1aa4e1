"""The running system: model folders in, answers over HTTP out. It needs neither torch nor the training package."""

import os

# Before ONNX Runtime is imported: it would keep an identifier of the machine and a log of its use in the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Nor does anything here use pydantic's plug-ins, for which it would read the metadata of every installed distribution.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
