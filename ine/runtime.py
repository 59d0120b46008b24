"""Device, dtype, threads and seeds; the only file that reads `torch.cuda`."""

import hashlib
import logging
import os
from importlib.metadata import version

import torch

from ine import __version__
from ine.errors import IneError

log = logging.getLogger("ine")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name="auto"):
    """Return the torch device for "auto", "cpu", "cuda", "cuda:1" or "mps"."""
    if name != "auto":
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise IneError(f"--device {name}: no CUDA device here; use --device cpu")
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(name, device):
    """Return the dtype for a name; "auto" is float16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def process_place(device="auto"):
    """Return (rank, number of processes, device name) of this process.

    `accelerate launch` and `torchrun` tell each process its rank in the environment; of several
    GPUs it gets one of its own. The processes share files only, so no process group is opened:
    one that dies or is late stops no other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count < 2:
        return 0, 1, device
    gpus = torch.cuda.device_count()
    if device in ("auto", "cuda") and gpus:
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % gpus}"
    return int(os.environ.get("RANK", "0")), count, device


def seed_for(*parts):
    """Return a seed in [0, 2**63) that depends on every part, the same on every machine.

    Work that draws from `generator_for(seed, "step", 17)` can be resumed at step 17 without
    any stored generator state.
    """
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(*parts):
    """Return a CPU generator seeded by `seed_for`; noise is drawn on the CPU everywhere."""
    return torch.Generator().manual_seed(seed_for(*parts))


def library_versions():
    """Return the versions that decide the bits, as one line."""
    names = ("torch", "diffusers", "transformers", "numpy")
    return ", ".join([f"ine {__version__}", *(f"{n} {version(n)}" for n in names)])
