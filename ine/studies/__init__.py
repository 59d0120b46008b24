"""Experiments with a fixed question: each builds a grid and reads its results."""
