"""Peak memory of loading a single file and of applying weights to it, at true size.

    python tests/benchmarks/memory.py                   # SD 1.5, two minutes, 8 GB
    python tests/benchmarks/memory.py --variant sdxl    # 24 GB in float32

Files are sparse: a header, and zeros that take no disk. Anonymous memory (RssAnon of
/proc/self/status, without mapped files) is sampled by a thread, every case in a process of its
own, and counted from after the imports. Bars: loading takes the model and its largest tensor,
applying the base and the largest tensor, each and 10 %. No test: it needs gigabytes. Linux only.
"""

import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import click
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from ine.models.building import _empty, _empty_encoder
from ine.models.single_file import load_single_file
from ine.models.variants import VARIANTS
from ine.weights.apply import apply_weights
from ine.weights.compvis import UNET, single_file
from ine.weights.files import DTYPE_CODES

CASES = (
    "load",
    "apply full",
    "apply CompVis",
    "apply attn2",
    "apply LoRA",
    "apply full, base kept",
)
GB = 1e9


def anonymous():
    """Anonymous memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no RssAnon; this needs Linux")


class Peak:
    """The most anonymous memory while a block runs, sampled every two milliseconds."""

    def __enter__(self):
        self.most, self._over = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._over.wait(0.002):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self.most = max(self.most, anonymous())


def write_sparse(path, shapes, dtype):
    """Write a safetensors file of zeros: {name: shape}."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        entry = {"dtype": DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        header[name] = entry
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def shapes_of(variant):
    """({name: shape} of a whole single file, {name: shape} of its UNet under diffusers' names)."""
    settings = next(row for row in VARIANTS if row.name == variant).settings()
    names = [n for n in ("text_encoder", "text_encoder_2") if n in settings]
    parts = SimpleNamespace(
        unet=_empty(UNet2DConditionModel, settings["unet"]),
        vae=_empty(AutoencoderKL, settings["vae"]),
        text_encoders=tuple(_empty_encoder(name, settings[name]) for name in names),
        prediction_type="epsilon",
        scheduler_config={},
    )
    whole = {name: tensor.shape for name, tensor in single_file(parts).items()}
    return whole, {name: tensor.shape for name, tensor in parts.unet.state_dict().items()}


def file_of(case, unet, whole):
    """{name: shape} of what a case applies."""
    if "CompVis" in case:
        return {name: shape for name, shape in whole.items() if name.startswith(UNET)}
    if "attn2" in case:
        return {name: shape for name, shape in unet.items() if ".attn2." in name}
    if "LoRA" in case:
        made = {}
        for name, shape in unet.items():
            if ".attn" in name and len(shape) == 2:
                stem = "unet." + name.removesuffix(".weight")
                made[f"{stem}.lora_A.weight"] = (4, shape[1])
                made[f"{stem}.lora_B.weight"] = (shape[0], 4)
        return made
    return unet


def measure(case, variant, dtype, folder):
    """Run one case; return its figures in bytes."""
    whole, unet = shapes_of(variant)
    write_sparse(folder / "model.safetensors", whole, dtype)
    write_sparse(folder / "unet.safetensors", file_of(case, unet, whole), dtype)
    size = sum(shape.numel() for shape in whole.values()) * dtype.itemsize
    largest = max(shape.numel() for shape in whole.values()) * dtype.itemsize
    logging.disable()
    start = anonymous()
    with Peak() as peak:
        parts = load_single_file(folder / "model.safetensors", dtype=dtype)
    if case != "load":
        with Peak() as peak:
            apply_weights(parts, folder / "unet.safetensors", keep_base="kept" in case)
    return {"peak": peak.most - start, "model": size, "largest": largest}


@click.command()
@click.option("--variant", default="sd1", type=click.Choice([row.name for row in VARIANTS]))
@click.option("--dtype", "dtypes", multiple=True, default=("float32", "float16"))
@click.option("--case", type=click.Choice(CASES), help="Run this one here and print JSON.")
def main(variant, dtypes, case):
    if case:
        with tempfile.TemporaryDirectory() as folder:
            click.echo(json.dumps(measure(case, variant, getattr(torch, dtypes[0]), Path(folder))))
        return
    bad = 0
    click.echo(f"{'':<30}{'model':>8}{'largest':>9}{'peak':>8}  of model + largest")
    for dtype in dtypes:
        for name in CASES:
            started = time.perf_counter()
            args = (__file__, "--variant", variant, "--dtype", dtype, "--case", name)
            done = subprocess.run([sys.executable, *args], stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout)
            share = found["peak"] / (found["model"] + found["largest"])
            fine = share <= 1.1 or "kept" in name
            bad += not fine
            sizes = f"{found['model'] / GB:>8.3f}{found['largest'] / GB:>9.3f}"
            took = time.perf_counter() - started
            click.echo(
                f"{dtype} {name:<22}{sizes}{found['peak'] / GB:>8.3f}  {share:.3f}"
                f"{'' if fine else '  over the bar'}  ({took:.0f} s)"
            )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
