"""Erasers: make an unlearned model where none is published."""
