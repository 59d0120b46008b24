"""Damaged and hostile files for every reader, in numbers: see run.py."""
