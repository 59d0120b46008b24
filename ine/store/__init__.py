"""Resumable units: one rule of keys and damage (`units`), kept as pictures or as tensors."""
