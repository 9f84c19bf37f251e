"""`mvit-kernels eval`: how often a network is right on labelled images."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from mvit_kernels.data.listed import ListedImages
from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions

from .arguments import add_normalization, natural_number, positive_int
from .evaluation import Labelled, Network, labelled_images, load_network
from .output import require_writable
from .processes import process_group

_SAVE_EVERY = 20  # batches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "network", nargs="?", type=Path, metavar="FILE",
        help="weights of timm, transformers, ml-cvnets or mvit-kernels train; a network of mvit-kernels quantize; a plan of a compiled "
        "network; or the name of a shipped checkpoint",
    )  # fmt: skip
    parser.add_argument("--model", help="a name that mvit-kernels info lists (default: the one that the file names)")
    parser.add_argument("--num-classes", type=positive_int, help="classes of the checkpoint (default: what it says, else 1000)")
    parser.add_argument(
        "--data", required=True,
        help="standin, or a folder: one sub-folder a class, or pictures side by side with val.txt or LOC_val_solution.csv (a picture and "
        "its label a line), as it is or below DIR/val",
    )  # fmt: skip
    parser.add_argument("--images", type=positive_int, help="only so many, drawn evenly from all (default: all; 2000 of standin)")
    parser.add_argument("--size", type=positive_int, help="side in pixels (default: the file's, the model's, or 256)")
    add_normalization(parser)
    parser.add_argument("--batch-size", type=positive_int, default=32, help="(default: %(default)s)")
    parser.add_argument("--workers", type=natural_number, default=0, help="processes that read pictures (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="run layer by layer, not compiled")
    parser.add_argument("--state", type=Path, help="a file that progress is kept in; if it is there already, evaluation goes on from it")


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Every process of torchrun judges a share of the images; the first one reports."""
    require_writable("--state", args.state)  # before the work
    network = load_network(args, compiled=not args.eager)
    images = labelled_images(args.data, network.size, args.images)
    labels = _labels_of(network, images)
    with process_group() as (rank, world):
        wanted = min(args.images or len(images), len(images))
        chosen = [i * len(images) // wanted for i in range(wanted)][rank::world]
        counts = _judge(args, network, images, labels, chosen, rank, world)
        if world > 1:
            total = torch.tensor(counts)
            dist.all_reduce(total)
            counts = total.tolist()
    if rank:
        return None
    return {
        "conditions": conditions(args.command),
        "network": args.network and str(args.network),
        "kind": network.kind,
        "data": args.data,
        "size": network.size,
        **network.normalization._asdict(),
        "images": counts[2],
        "processes": world,
        "top1": counts[0] / counts[2],
        "top5": counts[1] / counts[2],
    }


def show(document: dict[str, Any]) -> None:
    side = document["size"]
    print(
        f"{document['network'] or 'untrained weights'} ({document['kind']}): {100 * document['top1']:.2f} % top-1, "
        f"{100 * document['top5']:.2f} % top-5 on {document['images']} images of {document['data']} at {side} x {side}"
    )


def _labels_of(network: Network, images: Labelled) -> list[int] | None:
    """The number, among the network's classes, of each class of the images, if both have names and they are not the same."""
    if network.class_names is None or (isinstance(images, ListedImages) and images.numbered):
        return None
    missing = sorted(set(images.class_names) - set(network.class_names))
    if missing:
        raise ValueError(
            f"--data: expected classes that the network knows, got {missing[0]!r}, which is none of its {len(network.class_names)}"
        )
    return [network.class_names.index(name) for name in images.class_names]


def _judge(
    args: argparse.Namespace, network: Network, images: Labelled, labels: list[int] | None, chosen: list[int], rank: int, world: int
) -> list[int]:  # fmt: skip
    """[right, right among the first five, seen]"""
    identity = _identity(args, network, len(images), world)
    state = None if args.state is None else args.state if world == 1 else args.state.with_name(f"{args.state.name}.{rank}")
    whole = network.class_names is None and not (isinstance(images, ListedImages) and images.numbered)
    counts = [0, 0, 0] if state is None or not state.exists() else _resumed(state, identity)
    loader = DataLoader(Subset(images, chosen[counts[2] :]), args.batch_size, num_workers=args.workers)
    bar = tqdm(total=len(chosen), initial=counts[2], desc="evaluate", unit="image", leave=False, disable=None if rank == 0 else True)
    for number, (x, y) in enumerate(loader):
        logits = network.call(network.normalization(x))
        classes = len(images.class_names)
        if logits.ndim != 2 or logits.shape[1] < classes or (whole and logits.shape[1] != classes):
            known = "" if not whole else ", as no file says which of them these are"
            raise ValueError(f"--data: expected the {logits.shape[-1]} classes of the network{known}, got {classes}")
        if labels is not None:
            y = torch.tensor(labels)[y]
        # A nan would be the largest, and its class right wherever it is the label.
        first = (logits.topk(min(5, logits.shape[1]), 1).indices == y[:, None]) & ~logits.isnan().any(1, keepdim=True)
        counts = [counts[0] + int(first[:, 0].sum()), counts[1] + int(first.any(1).sum()), counts[2] + len(y)]
        bar.update(len(y))
        if state is not None and (number % _SAVE_EVERY == _SAVE_EVERY - 1 or counts[2] == len(chosen)):
            write_text(state, json.dumps({"identity": identity, "counts": counts}))
    return counts


def _identity(args: argparse.Namespace, network: Network, images: int, world: int) -> str:
    """What must be the same for evaluation to go on."""
    file = "" if args.network is None or not args.network.is_file() else hashlib.sha256(args.network.read_bytes()).hexdigest()
    what = [
        str(args.network),
        file,
        args.model,
        args.num_classes,
        os.path.abspath(args.data),
        images,
        args.images,
        network.size,
        network.normalization,
        args.eager,
        world,
    ]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _resumed(state: Path, identity: str) -> list[int]:
    try:
        document = json.loads(state.read_text())
        right, among_five, seen = counts = [int(each) for each in document["counts"]]
        if not 0 <= right <= among_five <= seen:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--state: expected a state of mvit-kernels eval in {str(state)!r}, got something else") from None
    if document.get("identity") != identity:
        raise ValueError(f"--state: expected the state of the same evaluation, got that of another in {str(state)!r}")
    return counts
