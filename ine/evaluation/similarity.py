"""How alike two pictures are, pixel by pixel or by a learned distance: SSIM and LPIPS.

Shape letters: P pictures, H W pixels.
"""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from ine.errors import MissingDependency

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness, ITU-R BT.601."""

WINDOW, SIGMA = 11, 1.5
K1, K2, PEAK = 0.01, 0.03, 255.0


def ssim(first, second):
    """Return the structural similarity of each pair of pictures, at most 1.

    On the brightness of 8-bit pictures, with a Gaussian window of 11 x 11 and deviation 1.5,
    over every place where the window fits whole:
    ``(2 m_x m_y + C_1)(2 s_xy + C_2) / ((m_x^2 + m_y^2 + C_1)(s_x^2 + s_y^2 + C_2))``.

    Args:
        first: uint8 (P, H, W, 3), or one picture (H, W, 3); sides of at least 11.
        second: Pictures of the same shape.

    Returns:
        A number for one pair, (P,) for P of them.

    Raises:
        ValueError: Shapes differ, the type is not uint8, or a side is too short.

    Sources:
        Wang et al. 2004, IEEE Trans. Image Processing 13, equation 13 and section III.C.
    """
    first, second = _checked(first, second)
    if first.ndim == 4:
        return np.array([ssim(a, b) for a, b in zip(first, second, strict=True)])
    x, y = first @ LUMA, second @ LUMA
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x**2
    var_y = _blurred(y * y) - mean_y**2
    shared = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
    return float((above / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _checked(first, second):
    first, second = np.asarray(first), np.asarray(second)
    whole = first.shape == second.shape and first.ndim in (3, 4) and first.shape[-1] == 3
    if not whole or first.dtype != np.uint8 or second.dtype != np.uint8:
        raise ValueError(
            f"pictures {first.dtype} {first.shape} and {second.dtype} {second.shape}: expected two "
            "equal uint8 (..., H, W, 3)"
        )
    if min(first.shape[-3:-1]) < WINDOW:
        raise ValueError(f"pictures {first.shape}: sides of at least {WINDOW} pixels are needed")
    return first, second


@lru_cache(maxsize=1)
def _window():
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def _blurred(x):
    """Return the windowed means of (H, W), where the window fits whole."""
    for axis in (0, 1):
        length = x.shape[axis] - WINDOW + 1
        parts = (
            weight * x.take(range(k, k + length), axis=axis) for k, weight in enumerate(_window())
        )
        x = sum(parts)
    return x


def lpips_name(net="alex", size=64):
    """Return the name under which a figure is reported, "lpips-alex@64"."""
    return f"lpips-{net}@{size}"


def lpips(first, second, net="alex", size=64, batch=32):
    """Return the learned perceptual distance of each pair of pictures; 0 where equal.

    Figures at different sizes are not comparable: STG and DUO report `1 - lpips-alex@64`.

    Args:
        first: uint8 (P, H, W, 3).
        second: Pictures of the same shape.
        net: "alex", "vgg" or "squeeze".
        size: Side to which pictures are resized first (bicubic with antialiasing), in pixels.
        batch: Pairs at a time.

    Returns:
        (P,) float64.

    Raises:
        MissingDependency: The package `lpips`, or torchvision which it needs, is not installed.
        ValueError: As `ssim`.

    Sources:
        Zhang et al. 2018 (CVPR).
    """
    import torch

    from ine.judging.clip import to_pixels

    first, second = _checked(first, second)
    model = _lpips_model(net)
    found = []
    with torch.no_grad():
        for start in range(0, len(first), batch):
            # LPIPS takes values from -1 to 1.
            pair = [
                to_pixels(x[start : start + batch], size, [0.5] * 3, [0.5] * 3)
                for x in (first, second)
            ]
            found.append(model(*pair).flatten().double().numpy())
    return np.concatenate(found)


def _lpips_model(net):
    # Looked for by name: torchvision of another build breaks diffusers as soon as it is imported.
    missing = [name for name in ("lpips", "torchvision") if not _there(name)]
    if missing:
        raise MissingDependency(
            f"LPIPS needs the packages lpips (BSD-2) and torchvision; missing: "
            f"{', '.join(missing)}. ine does not install them: a torchvision that does not match "
            "torch breaks diffusers. Use ssim or a judge's feature cosine, or install both by hand "
            "in an environment where they match"
        )
    return import_module("lpips").LPIPS(net=net, verbose=False).eval().requires_grad_(False)


def _there(name):
    import sys

    return sys.modules[name] is not None if name in sys.modules else find_spec(name) is not None
