"""Device, dtype, processes and seeds; the only file that reads `torch.cuda`."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch

from ine import __version__
from ine.errors import IneError

log = logging.getLogger("ine")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the torch device for "auto", "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        IneError: This machine, or its installed torch, has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise IneError(f"--device {name}: expected auto, cpu, mps, cuda or cuda:N") from error
    if why := _missing(device):
        raise IneError(f"--device {name}: {why}; use --device auto or --device cpu")
    return device


def _missing(device: torch.device) -> str:
    """Return why torch cannot compute on a device, or an empty text."""
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            return "no CUDA device here"
        last = "cuda:0 is the only one" if count == 1 else f"the last is cuda:{count - 1}"
        return f"no such CUDA device here, {last}" if (device.index or 0) >= count else ""
    if device.type == "mps":
        if not torch.backends.mps.is_built():
            return "this torch is built without MPS, which needs a Mac with Apple silicon"
        if torch.backends.mps.is_available():
            return ""
        return "MPS needs a Mac with Apple silicon and a macOS that this torch supports"
    return "" if device.type == "cpu" else "ine computes on cpu, cuda and mps"


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype for a name; "auto" is float16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 arithmetic of its own, not imitated in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Of a CPU only x86 is known: AVX-512 BF16 or AMX. Which torch has which question differs.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    asked = [getattr(torch.cpu, name, lambda: False)() for name in questions]
    return device.type == "cpu" and any(asked)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled modules uncompiled inside the context.

    A graph that torch.compile has traced ignores forward hooks added later, so hooked modules have
    to run without it. Nothing is recompiled. Without compiled modules this does nothing.

    torch before 2.6 has no such switch. Code that sets a hook checks that it ran.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)
    # Compiling imports this module; importing it here would take seconds.
    if set_stance is None or "torch._dynamo" not in sys.modules:
        yield
        return
    with set_stance("force_eager"):
        yield


def process_place(device: str = "auto") -> tuple[int, int, str]:
    """Return (rank, number of processes, device name) of this process.

    `accelerate launch` and `torchrun` set each process's rank in the environment; each process gets
    a different GPU if there are several. The processes share only files, without a process group,
    so one that dies or is slow does not stop the others.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count < 2:
        return 0, 1, device
    gpus = torch.cuda.device_count()
    if device in ("auto", "cuda") and gpus:
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % gpus}"
    return int(os.environ.get("RANK", "0")), count, device


def seed_for(*parts: str | int | float) -> int:
    """Return a seed in [0, 2**63) that depends on every part, the same on every machine.

    Work that draws from `generator_for(seed, "step", 17)` can resume at step 17 without a stored
    generator state.
    """
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(*parts: str | int | float) -> torch.Generator:
    """Return a CPU generator seeded by `seed_for`; all noise is drawn on the CPU."""
    return torch.Generator().manual_seed(seed_for(*parts))


def library_versions() -> str:
    """Return the versions of the libraries that decide the output's bits, as one line."""
    names = ("torch", "diffusers", "transformers", "numpy")
    return ", ".join([f"ine {__version__}", *(f"{n} {version(n)}" for n in names)])
