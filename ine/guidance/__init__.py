"""Guidance: how the noise predictions of a step become one."""
