"""Prompts into text states."""
