"""How alike two pictures are, pixel by pixel or by a learned distance: SSIM, PSNR and LPIPS.

Shape letters: P pictures, H W pixels.
"""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ine.errors import MissingDependency

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness, ITU-R BT.601."""

WINDOW, SIGMA = 11, 1.5
K1, K2, PEAK = 0.01, 0.03, 255.0


def ssim(first: ArrayLike, second: ArrayLike) -> float | np.ndarray:
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


def _checked(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
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
def _window() -> np.ndarray:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def _blurred(x: np.ndarray) -> np.ndarray:
    """Return the windowed means of (H, W), where the window fits whole."""
    for axis in (0, 1):
        length = x.shape[axis] - WINDOW + 1
        parts = (
            weight * x.take(range(k, k + length), axis=axis) for k, weight in enumerate(_window())
        )
        x = sum(parts)
    return x


def psnr(a: ArrayLike, b: ArrayLike, peak: float = 255.0) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each pair of pictures in dB; inf where equal.

    Args:
        a: Pictures, (H, W, 3) or (P, H, W, 3).
        b: Pictures of the same shape.
        peak: Largest value a pixel can have.

    Returns:
        A number for one pair, (P,) for P of them.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(f"pictures {a.shape} and {b.shape}: expected two equal (..., H, W, 3)")
    error = ((a - b) ** 2).mean(axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / error)


def lpips(
    first: np.ndarray, second: np.ndarray, net: str = "alex", size: int = 64, batch: int = 32
) -> np.ndarray:
    """Return the learned perceptual distance of each pair of pictures; 0 where equal.

    Figures at different sizes are not comparable: STG and DUO report `1 - lpips-alex@64`.

    Args:
        first: uint8 (P, H, W, 3).
        second: Pictures of the same shape.
        net: "alex", "vgg" or "squeeze".
        size: Side to which pictures are resized first, in pixels: see `to_lpips`.
        batch: Pairs at a time.

    Returns:
        (P,) float64.

    Raises:
        MissingDependency: The package `lpips`, or torchvision which it needs, or OpenCV is not
            installed.
        ValueError: As `ssim`.

    Sources:
        Zhang et al. 2018 (CVPR); aailab-kaist/STG, evaluation/calc_lpips.py at 8b0a8fd.
    """
    import torch

    first, second = _checked(first, second)
    model = _lpips_model(net)
    found = []
    with torch.no_grad():
        for start in range(0, len(first), batch):
            pair = [
                torch.from_numpy(to_lpips(x[start : start + batch], size)) for x in (first, second)
            ]
            found.append(model(*pair).flatten().double().numpy())
    return np.concatenate(found)


def is_lpips(name: str) -> bool:
    """Return whether a measure is "lpips-NET@SIZE"."""
    net, _, size = name.removeprefix("lpips-").partition("@")
    return name.startswith("lpips-") and net in ("alex", "vgg", "squeeze") and size.isdigit()


def to_lpips(pictures: np.ndarray, size: int) -> np.ndarray:
    """Return pictures as STG feeds LPIPS: stretched by OpenCV's bilinear resize, from -1 to 1.

    That resize looks at the four nearest pixels only, with no antialiasing, and rounds to 8 bits.

    Args:
        pictures: uint8 (P, H, W, 3).
        size: Side in pixels.

    Returns:
        (P, 3, size, size) float32.
    """
    import cv2

    small = np.stack([cv2.resize(np.ascontiguousarray(p), (size, size)) for p in pictures])
    return (small / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)


def _lpips_model(net: str) -> Any:
    # Looked for by name: torchvision of another build breaks diffusers as soon as it is imported.
    modules = {"lpips": "lpips", "torchvision": "torchvision", "cv2": "opencv-python-headless"}
    missing = [package for name, package in modules.items() if not _there(name)]
    if missing:
        raise MissingDependency(
            f"LPIPS needs the packages lpips (BSD-2) and torchvision; missing: "
            f"{', '.join(missing)}. ine does not install them: a torchvision that does not match "
            "torch breaks diffusers. Use ssim or a judge's feature cosine, or install both by hand "
            "in an environment where they match"
        )
    return import_module("lpips").LPIPS(net=net, verbose=False).eval().requires_grad_(False)


def _there(name: str) -> bool:
    import sys

    return sys.modules[name] is not None if name in sys.modules else find_spec(name) is not None
