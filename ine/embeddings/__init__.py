"""Embedding files: our own format, other programs' layouts, and the model card."""
