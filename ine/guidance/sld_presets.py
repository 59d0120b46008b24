"""Published settings of safe latent diffusion (Schramowski et al. 2023)."""

from typing import TypedDict


class Preset(TypedDict):
    """Settings that were published together; see the fields of `SafeLatent`."""

    strength: float
    threshold: float
    momentum_scale: float
    momentum_beta: float
    warmup: int


PRESETS: dict[str, Preset] = {
    "weak": {
        "strength": 200.0,
        "threshold": 0.0,
        "momentum_scale": 0.0,
        "momentum_beta": 0.0,
        "warmup": 15,
    },
    "weak-diffusers": {
        "strength": 20.0,
        "threshold": 0.0,
        "momentum_scale": 0.0,
        "momentum_beta": 0.0,
        "warmup": 15,
    },
    "medium": {
        "strength": 1000.0,
        "threshold": 0.01,
        "momentum_scale": 0.3,
        "momentum_beta": 0.4,
        "warmup": 10,
    },
    "strong": {
        "strength": 2000.0,
        "threshold": 0.025,
        "momentum_scale": 0.5,
        "momentum_beta": 0.7,
        "warmup": 7,
    },
    "max": {
        "strength": 5000.0,
        "threshold": 1.0,
        "momentum_scale": 0.5,
        "momentum_beta": 0.7,
        "warmup": 0,
    },
}
"""Published settings by name. Two values of s_S are published as weak: 200 by the authors'
repository and those that build on it, 20 by diffusers' `SafetyConfig`."""

DEFAULT = "medium"
"""The default preset of both public implementations."""
