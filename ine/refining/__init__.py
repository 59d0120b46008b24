"""Iterative prompt refinement: look at prompt and picture, keep or rewrite, generate again."""
