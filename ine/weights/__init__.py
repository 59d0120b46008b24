"""Unlearned weights: recognised, checked against a base model and applied to it."""
