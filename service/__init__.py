"""The running system: model folders in, answers over HTTP out. It needs neither torch nor the training package."""
