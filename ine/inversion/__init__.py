"""Concept inversion: pictures to latents, the objective, the loop."""
