"""Judges: what is in a picture, and named rules that call it safe or not."""
