"""Offline training: data sets, models, one loop, evaluation and export of model folders."""
