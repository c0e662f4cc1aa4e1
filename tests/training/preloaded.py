"""What the server of tests/training/process.py has imported."""

from importlib import import_module

from training.__main__ import importing

with importing():
    for name in ("training.fit", "sklearn.datasets", "torch.utils.tensorboard"):
        import_module(name)
