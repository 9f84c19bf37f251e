"""The training loop: AdamW, warm-up and cosine, averaged weights; resumable, on one device or under torchrun."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from mvit_kernels.data import ImageFolder, Images, StandInTask, image_folder
from mvit_kernels.files import locked, remove_leftovers
from mvit_kernels.machine import cpu_model
from mvit_kernels.models import create_model, load_checkpoint
from mvit_kernels.swap import accelerate
from mvit_kernels.training.config import TrainConfig, command_line, model_options
from mvit_kernels.training.evaluate import evaluate
from mvit_kernels.training.state import History, halved, identity_of, load_state, read_metadata, save_state, save_weights

LOG_EVERY = 10
_CLASSIFIER = re.compile(r"(head|head_dist|head\.fc|classifier|classifier\.fc|classifier\.1|classifier\.classifier\.1)\.(weight|bias)")
"""What has a row for each class, in the names of every format."""


@dataclass(frozen=True)
class TrainResult:
    """weights: the fp16 safetensors file; top1: its accuracy on heldout_samples images; seconds of training, all resumed runs.

    Only the first process of several evaluates: top1 is nan in the others.
    """

    weights: Path
    top1: float
    heldout_samples: int
    steps: int
    seconds: float


class Diverged(ValueError):
    """The loss, or its gradient, is no finite number any more."""


def train(config: TrainConfig, datasets: tuple[Images, Images] | None = None) -> TrainResult:
    """Train a model and write its averaged weights to config.output; every process of torchrun calls this.

    datasets: training and held-out images in place of those that config.data names.

    Raises ValueError for an unknown model, missing data, the state of another run, or an output that holds a run other than
    the resumed one or that another process fills, before anything is written; `Diverged` (a ValueError), which leaves the last state from
    before.
    """
    if not config.resume:
        _require_fresh(config.output)
    with ExitStack() as held, _process_group(config) as (rank, world, device):
        training, heldout = datasets or _datasets(config)
        if len(training.class_names) < 2:
            raise ValueError(f"train: data: expected at least 2 classes to tell apart, got {list(training.class_names)}")
        steps_per_epoch = len(training) // (config.batch_size * world)
        if not steps_per_epoch:
            raise ValueError(f"train: batch_size: expected at most {len(training) // world}, got {config.batch_size}")
        total = config.steps or config.epochs * steps_per_epoch

        torch.manual_seed(config.seed)
        model = _fresh_model(config, len(training.class_names))
        start = None if config.resume else config.checkpoint
        if start and _load_start(model, start) and rank == 0:
            print(f"train: the classifier is fresh: {start} has none for these {len(training.class_names)} classes", file=sys.stderr)
        record = _record(config, start)
        if config.accelerate:
            model = accelerate(model)
        model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        average = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.lr)
        step, seconds = 0, 0.0
        identity = identity_of(config, world, len(training), len(training.class_names))
        if config.resume:
            state = load_state(config.resume, identity)
            _require_fresh(config.output, config.resume)
            model.load_state_dict(state["model"])
            average = {name: value.to(device) for name, value in state["model_ema"].items()}
            optimizer.load_state_dict(state["optimizer"])
            step, seconds, record = state["step"], state["seconds"], state["record"]
        network = DistributedDataParallel(model) if world > 1 else model

        history = None
        if rank == 0:
            held.enter_context(locked("train: output", config.output))
            remove_leftovers(config.output / "state.pt")
            history = History(config.output / "history.jsonl", step)
            if config.warmup > total:
                print(f"train: the learning rate never reaches {config.lr}: warmup takes {config.warmup} steps of {total}", file=sys.stderr)
        started = time.monotonic() - seconds
        progress = tqdm(total=total, initial=step, desc=config.model, disable=None if rank == 0 else True)
        finite, finite_step = torch.tensor(True, device=device), step
        for images, labels in _batches(training, config, rank, world, step, total):
            # Dropout draws from (seed, step, rank), so a resumed run needs no generator state.
            torch.manual_seed((config.seed << 32) + step * world + rank)
            loss, correct, norm = _train_step(network, optimizer, images.to(device), labels.to(device), step, total, config)
            step += 1
            finite &= (loss + norm).isfinite()
            if step % LOG_EVERY == 0 or step % config.save_every == 0 or step == total:  # at each step a GPU would be waited for
                if not finite:
                    raise Diverged(
                        f"train: lr: expected one with which loss and gradient stay finite, got {config.lr}, and loss {float(loss)} with a "
                        f"gradient of norm {float(norm)} after step {step} (finite up to step {finite_step})"
                    )
                finite_step = step
            _update_average(average, model.state_dict(), min(config.ema, step / (step + 10)))
            progress.update()
            if history and (step % LOG_EVERY == 0 or step == total):
                lr = optimizer.param_groups[0]["lr"]
                history.append(step=step, loss=float(loss), accuracy=float(correct), lr=lr)
                progress.set_postfix(loss=f"{float(loss):.3f}")
            if rank == 0 and (step % config.save_every == 0 or step == total):
                state = {"model": model.state_dict(), "model_ema": average, "optimizer": optimizer.state_dict()}
                state |= {"step": step, "seconds": time.monotonic() - started, "record": record}
                save_state(config.output / "state.pt", identity, state)
        progress.close()
        seconds = time.monotonic() - started

        result = TrainResult(config.output / "model.safetensors", math.nan, len(heldout), step, seconds)
        if rank == 0:
            weights = halved(average)
            model.load_state_dict(weights)
            result = replace(result, top1=evaluate(model, heldout, batch_size=config.batch_size, workers=config.workers).top1)
            metadata = _metadata(config, training.class_names, result, record) | {"trained_on": _machine(device, world)}
            save_weights(result.weights, weights, metadata)
        return result


def _require_fresh(output: Path, resumed: Path | None = None) -> None:
    """Raises ValueError where the folder holds another run than the one that left the state `resumed`."""
    state, weights = output / "state.pt", output / "model.safetensors"
    if resumed and state.exists() and resumed.samefile(state):
        return
    if state.exists() or weights.exists():
        raise ValueError(f"train: output: {str(output)!r} holds a run: pass resume (its state.pt), or another output")


def _fresh_model(config: TrainConfig, classes: int) -> nn.Module:
    options = model_options(config)
    try:
        return create_model(config.model, num_classes=classes, **options)
    except TypeError as error:
        if not options:
            raise
        raise ValueError(f"TrainConfig: options: {error}") from error


def _load_start(model: nn.Module, path: Path) -> bool:
    """Load the weights to start from. True if the classifier stays as it is; nothing else may be missing in the file."""
    report = load_checkpoint(model, path, strict=False)
    if report.unexpected or not all(_CLASSIFIER.fullmatch(name) for name in report.missing):
        load_checkpoint(model, path)  # raises the error that names them
    return bool(report.missing)


def _record(config: TrainConfig, start: Path | None) -> dict[str, Any]:
    """The command of this run after those that trained its checkpoint, and the steps and seconds that they took."""
    earlier = read_metadata(start) if start else {}
    commands = [earlier["command"]] if "command" in earlier else []
    return {
        "command": " && ".join([*commands, command_line(config)]),
        **{f"earlier_{name}": int(earlier[name]) if earlier.get(name, "").isdecimal() else 0 for name in ("steps", "seconds")},
    }


def _machine(device: torch.device, world: int) -> str:
    """What the run took its time on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_model()}, {torch.get_num_threads()} threads"
    return f"{world} x {name}; torch {torch.__version__}"


@contextmanager
def _process_group(config: TrainConfig) -> Iterator[tuple[int, int, torch.device]]:
    """(rank, processes, device), from torchrun's environment; a group that the caller made is used and left open."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("TrainConfig: device: expected cpu, since no GPU is available, got 'cuda'")
    own = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if config.device == "cuda" else "gloo")
    try:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        device = torch.device(config.device)
        if config.device == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        yield rank, world, device
    finally:
        if own:
            dist.destroy_process_group()


def _datasets(config: TrainConfig) -> tuple[Images, Images]:
    if config.data == "standin":
        return (
            StandInTask("train", config.samples, config.size, config.seed),
            StandInTask("heldout", config.heldout_samples, config.size, config.seed),
        )
    return image_folder(config.data, config.size, config.seed)


def _batches(
    dataset: Images, config: TrainConfig, rank: int, world: int, first_step: int, last_step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the steps from first_step on. Every epoch has its own order, shared out to the processes in turn."""
    per_epoch = len(dataset) // (config.batch_size * world)
    for epoch in range(first_step // per_epoch, math.ceil(last_step / per_epoch)):
        if isinstance(dataset, ImageFolder):
            dataset.set_epoch(epoch)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed((config.seed << 32) + epoch))
        order = order[rank : per_epoch * config.batch_size * world : world].view(per_epoch, config.batch_size)
        begin, end = max(first_step - epoch * per_epoch, 0), min(last_step - epoch * per_epoch, per_epoch)
        yield from DataLoader(
            dataset,
            batch_sampler=order[begin:end].tolist(),
            num_workers=config.workers,
            pin_memory=config.device == "cuda",
        )


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay for weights of two dimensions and more; biases and the parameters of norms have none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _learning_rate(step: int, total: int, config: TrainConfig) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(total - config.warmup, 1)
    return config.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def _train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    step: int,
    total: int,
    config: TrainConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """One update. The loss and the accuracy of this process's batch and the norm of the gradient, as scalars on its device."""
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(step, total, config)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.amp == "bf16"):
        logits = network(images.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip)
    optimizer.step()
    return loss.detach(), (logits.argmax(1) == labels).float().mean(), norm


@torch.no_grad()
def _update_average(average: dict[str, Tensor], weights: dict[str, Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights, running statistics included; counters are copied."""
    for name, value in average.items():
        if value.is_floating_point():
            value.lerp_(weights[name], 1 - decay)
        else:
            value.copy_(weights[name])


def _metadata(config: TrainConfig, class_names: tuple[str, ...], result: TrainResult, record: dict[str, Any]) -> dict[str, str]:
    """Paths and names may hold bytes that are no text, which a file of weights does not take."""
    metadata = {
        "model": config.model,
        **({"options": config.options} if model_options(config) else {}),
        "num_classes": str(len(class_names)),
        "class_names": json.dumps(class_names),
        "size": str(config.size),
        "seed": str(config.seed),
        "command": record["command"],
        "top1": f"{result.top1:.4f}",
        "heldout_samples": str(result.heldout_samples),
        "steps": str(record["earlier_steps"] + result.steps),
        "seconds": f"{record['earlier_seconds'] + result.seconds:.0f}",
    }
    return {name: value.encode("utf-8", "backslashreplace").decode() for name, value in metadata.items()}
