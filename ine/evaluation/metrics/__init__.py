"""Metrics: one file each, listed in `ine.evaluation.metrics.table`."""
