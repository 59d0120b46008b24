"""One training loop for every part of the bundled model: resumable, one or several processes.

Gradients are averaged by hand over gloo (CPU) or NCCL (CUDA), so that a part is trained by
`python build.py`, by `torchrun --nproc_per_node 2 build.py` or on one GPU with the same code.
"""

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

SAVE_SECONDS = 60


def start_processes():
    """Join the process group that torchrun made; return (rank, world size, device)."""
    cuda = torch.cuda.is_available()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if not cuda:
        asked = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
        torch.set_num_threads(1 if world_size > 1 else asked)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if cuda else 0)
    return rank, world_size, device if cuda else torch.device("cpu")


def learning_rate(step, steps, peak, warmup, hold):
    """Return linear warm-up, then `peak`, then a linear fall over the last `1 - hold`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = hold * steps
    return peak if step < start else peak * max(0.0, (steps - step) / (steps - start))


def average_gradients(parameters, world_size):
    """Replace every gradient by its mean over the processes, in one message."""
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world_size
    offset = 0
    for g in grads:
        g.copy_(flat[offset : offset + g.numel()].view_as(g))
        offset += g.numel()


def write_atomically(value, path):
    """Save with torch beside the target and rename, so that a kill leaves the old file."""
    part = path.with_suffix(".part")
    torch.save(value, part)
    part.replace(path)


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
    seed=0,
    every=500,
    on_sample=None,
):
    """Train `modules` (a dict) and leave the averaged weights in them.

    Args:
        loss_of: `(step, rng seed) -> (loss, {name: float})`; it draws its own batch.
        every: Steps between samples; `on_sample(step)` runs on rank 0 with averaged weights.
    """
    rank, world_size, _ = start_processes()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / f"{name}.state.pt"
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    device = parameters[0].device
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    average = [p.detach().clone() for p in parameters]
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        with torch.no_grad():
            for p, v in zip(parameters, state["parameters"], strict=True):
                p.copy_(v)
        average, first = state["average"], state["step"]
        optimiser.load_state_dict(state["optimiser"])

    def save(step):
        if rank == 0:
            write_atomically(
                {
                    "step": step,
                    "parameters": [p.detach() for p in parameters],
                    "average": average,
                    "optimiser": optimiser.state_dict(),
                },
                state_file,
            )

    def swap():
        for p, v in zip(parameters, average, strict=True):
            held = p.detach().clone()
            p.data.copy_(v)
            v.copy_(held)

    begun = saved = time.time()
    log = (folder / f"{name}.jsonl").open("a") if rank == 0 else None
    for step in range(first, steps):
        rate = learning_rate(step, steps, lr, warmup, hold)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss, extra = loss_of(step, seed + step * world_size + rank)
        optimiser.zero_grad()
        loss.backward()
        if world_size > 1:
            average_gradients(parameters, world_size)
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        decay = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        if log and (step % 20 == 0 or step == steps - 1):
            row = {"step": step, "loss": loss.item(), "lr": rate, **extra}
            row["seconds"] = round(time.time() - begun, 1)
            log.write(json.dumps(row) + "\n")
            log.flush()
        if time.time() - saved > SAVE_SECONDS:
            save(step + 1)
            saved = time.time()
        if on_sample and (step + 1) % every == 0:
            if rank == 0:
                swap()
                on_sample(step + 1)
                swap()
            if world_size > 1:
                dist.barrier()
    save(steps)
    swap()
