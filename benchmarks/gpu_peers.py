"""One network on a GPU against torch.compile, max-autotune too: `make gpu-peers MODEL=mobilevitv2_100 BATCH=8`.

    python benchmarks/gpu_peers.py --model mobilevit_s --batch 1

A variant that fails is listed with its reason; one comparison fits into nine minutes.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 500  # seconds, after which no further variant is begun
ROUNDS, CALLS = 20, 5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", default="mobilevitv2_100")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of those in `variants`; all by default")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    args = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print(f"gpu_peers: expected a machine with a GPU, torch {torch.__version__} finds none", file=sys.stderr)
        return 2
    import triton

    from mvit_kernels.cli.output import json_text, print_table
    from mvit_kernels.files import write_text
    from mvit_kernels.machine import conditions

    context = conditions(shlex.join(["python", "benchmarks/gpu_peers.py", *(sys.argv[1:] if arguments is None else arguments)])) | {
        "gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda, "triton": triton.__version__,
        "model": args.model, "batch": args.batch, "size": args.size, "dtype": args.dtype,
    }  # fmt: skip
    rows = measure(args.model, args.batch, args.size, getattr(torch, args.dtype), args.variants)
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"gpu-peers-{args.model}-{args.batch}.json"
    write_text(path, json_text({"conditions": context, "results": rows}))
    cells = [[each["variant"], *(str(each.get(key, "")) for key in ("median_ms", "min_ms", "prepare_s", "off", "error"))] for each in rows]
    print_table(
        f"{args.model}, batch {args.batch}, {args.dtype}", ("variant", "median ms", "min ms", "to prepare, s", "off", "error"), cells
    )
    return 0


def variants(model: Callable[[], Any], size: int) -> dict[str, Callable[[], Callable[[Any], Any]]]:
    """How each is made; all begin with the same weights."""
    import torch

    import mvit_kernels as mk

    def compiled() -> Any:
        network = model()
        return mk.compile(network, torch.empty(1, 3, size, size, device="cuda"))

    return {
        "eager": model,
        "compile": lambda: torch.compile(model(), dynamic=False),
        "compile, CUDA graph": lambda: torch.compile(model(), dynamic=False, mode="reduce-overhead"),
        "mk.accelerate": lambda: mk.accelerate(model()),
        "mk.compile": compiled,
        "mk.compile, int8": lambda: mk.compile(quantized(model(), size), torch.empty(1, 3, size, size, device="cuda")),
        "mk.compile, int6": lambda: mk.compile(quantized(model(), size, 6), torch.empty(1, 3, size, size, device="cuda")),
        "compile, max-autotune": lambda: torch.compile(model(), dynamic=False, mode="max-autotune"),
    }


def quantized(model: Any, size: int, bits: int = 8) -> Any:
    """With the ranges of a few random images: what it takes to time it, not what makes it accurate."""
    import torch

    import mvit_kernels as mk

    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    config = mk.QuantConfig(method="minmax", weight_bits=bits, activation_bits=bits)
    return mk.quantize(model.cpu().float(), [images], config)


def measure(name: str, batch: int, size: int, dtype: Any, names: list[str] | None = None) -> list[dict[str, Any]]:
    import torch

    import mvit_kernels as mk

    torch.manual_seed(0)
    state = mk.create_model(name).state_dict()

    def model() -> Any:
        network = mk.create_model(name)
        network.load_state_dict(state)
        return network.to("cuda", dtype, memory_format=torch.channels_last).eval()

    x = torch.randn(batch, 3, size, size, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
    rows: list[dict[str, Any]] = []
    ready: dict[str, Callable[[], Any]] = {}
    started = time.monotonic()
    with torch.inference_mode():
        right = model()(x).float()
        made = variants(model, size)
        if unknown := set(names or ()) - set(made):
            raise ValueError(f"gpu_peers: variants: expected some of {', '.join(made)}, got {', '.join(sorted(unknown))}")
        for label, make in made.items():
            if names and label not in names:
                continue
            if time.monotonic() - started > LIMIT:
                rows.append({"variant": label, "error": f"not begun: {LIMIT} s were over"})
                continue
            begin = time.monotonic()
            try:
                network = make()
                for _ in range(3):
                    y = network(x).float()
                off = float((y - right).abs().max() / right.abs().max())
                torch.cuda.synchronize()
            except (Exception, KeyboardInterrupt) as error:  # whatever stands in its way is what there is to say; Ctrl-C ends this variant
                rows.append({"variant": label, "error": f"{type(error).__name__}: {error}"[:300]})
                continue
            ready[label] = functools.partial(network, x)
            rows.append({"variant": label, "prepare_s": round(time.monotonic() - begin, 1), "off": round(off, 5)})
        times = _in_turn(ready)
    for row in rows:
        if samples := times.get(row["variant"]):
            row |= {"median_ms": round(statistics.median(samples), 4), "min_ms": round(min(samples), 4)}
    return rows


def _in_turn(ready: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Milliseconds of a call by CUDA events, all variants once a round."""
    import torch

    times: dict[str, list[float]] = {label: [] for label in ready}
    for _ in range(ROUNDS):
        for label, call in ready.items():
            call()
            for _ in range(CALLS):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                call()
                end.record()
                end.synchronize()
                times[label].append(begin.elapsed_time(end))
    return times


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
