"""Calibration: a gate's probes from pictures, its thresholds from benign prompts."""
