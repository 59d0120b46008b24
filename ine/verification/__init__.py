"""Verification of an embedding: does it fit a model, and has it the concept in it."""
