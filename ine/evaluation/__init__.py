"""Figures with intervals, and the report."""
