"""Training of one part of the bundled model: averaged weights over `ine.optim`'s resumable loop."""

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ine.optim import StateFile, minimise
from ine.runtime import computes_bfloat16

SAVE_STEPS = {"cpu": 100, "cuda": 1000}
"""Steps between two states: under a minute on either device."""


def device_of_training():
    """Return the CUDA device where there is one, otherwise the CPU with the threads asked for."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    return torch.device("cpu")


def attention_on(device):
    """Return a context that chooses the attention for training on a device.

    On a CPU, the backward pass of torch's fused attention takes a third of a U-Net's step; two
    matrix products take less.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def precision_on(device):
    """Return a context of bfloat16 where the device computes in it, otherwise of float32.

    A processor that imitates bfloat16 takes ten times as long.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device))


def learning_rate(step, steps, peak, warmup, hold):
    """Return linear warm-up, then `peak`, then a linear fall over the last `1 - hold`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = hold * steps
    return peak if step < start else peak * max(0.0, (steps - step) / (steps - start))


class Average:
    """The history of a run: exponential averages of its parameters, and a log of its losses."""

    def __init__(self, parameters, decay, log):
        self.parameters = parameters
        self.decay = decay
        self.log = log
        self.values = {name: p.detach().clone() for name, p in parameters.items()}
        self.started = time.time()

    def record(self, step, loss):
        """Average over a finished step's parameters; write every twentieth loss."""
        decay = min(self.decay, step / (9 + step))
        with torch.no_grad():
            found = [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.values.values()), found, 1 - decay)
        if step % 20 == 0:
            row = {"step": step, "loss": loss, "seconds": round(time.time() - self.started, 1)}
            with self.log.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def pack(self):
        """Return the averages for a state file."""
        return {f"average.{name}": value for name, value in self.values.items()}, {}

    def unpack(self, tensors, notes):
        """Take the averages over from a state file."""
        for name, value in self.values.items():
            value.copy_(tensors[f"average.{name}"])

    def swap(self):
        """Exchange parameters and averages."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                held = p.detach().clone()
                p.copy_(self.values[name])
                self.values[name].copy_(held)


def train(
    name,
    modules,
    loss_of,
    folder,
    *,
    steps,
    lr,
    warmup=200,
    hold=0.6,
    ema=0.999,
    clip=1.0,
    weight_decay=0.01,
    every=500,
    on_sample=None,
):
    """Train `modules` (a dict) and leave the averaged weights in them.

    Args:
        name: Of the stage; the state goes to `folder`/NAME.state.safetensors.
        modules: {name: module}; parameters that require gradients are trained.
        loss_of: `seed -> loss`; it draws its own batch from the seed, which is the step's number.
        folder: Where state and log are.
        steps: Optimiser steps in all.
        lr: The largest learning rate, see `learning_rate`.
        warmup: Steps of rising learning rate.
        hold: Share of the steps after which it falls.
        ema: Decay of the averages.
        clip: Largest norm of the gradient.
        weight_decay: AdamW's.
        every: Steps between samples.
        on_sample: Called with the finished steps, with averaged weights in the modules.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {
        f"{part}.{key}": p
        for part, module in modules.items()
        for key, p in module.named_parameters()
        if p.requires_grad
    }
    values = list(parameters.values())
    optimiser = torch.optim.AdamW(values, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    average = Average(parameters, ema, folder / f"{name}.jsonl")

    def on_step(step, loss):
        if on_sample and step % every == 0:
            average.swap()
            on_sample(step)
            average.swap()

    minimise(
        f"stage {name}",
        parameters,
        optimiser,
        lambda step, part: loss_of(step),
        steps,
        advice=f"delete {folder / name}.state.safetensors and lower the learning rate",
        state=StateFile(
            path=folder / f"{name}.state.safetensors",
            key=f"{name} {steps}",
            command="build.py",
            every=SAVE_STEPS[values[0].device.type],
        ),
        history=average,
        max_grad_norm=clip,
        lr_of=lambda step: learning_rate(step, steps, lr, warmup, hold),
        on_step=on_step,
    )
    average.swap()
