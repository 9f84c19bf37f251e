"""The command `mvit-kernels`: one file a subcommand, each with `add_arguments(parser)`, `run(args) -> document` and `show(document)`.

`run` does the work and returns what `--json` prints; `show` prints the same for people. Expected errors (ValueError, OSError, a missing
extra, too little memory) end in one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from mvit_kernels import __version__

PROGRAM = "mvit-kernels"
SUBCOMMANDS = {
    "info": "what is installed and usable here, and why the rest is not",
    "run": "classify images",
    "bench": "time models: PyTorch eager against this package",
    "quantize": "an integer network from a checkpoint and some images",
    "eval": "accuracy of a float, quantized or compiled network on labelled images",
    "export": "a quantized network as ONNX",
    "scale": "MobileViTv2 of any size: train samples, fit them, derive models within a budget",
    "train": "train a model on the stand-in task or on a folder of images",
    "demo": "shipped checkpoints on held-out images, full-size networks on photographs, and a table of latencies",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code. argparse leaves with SystemExit after --help and bad flags."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog=PROGRAM, description="Fused kernels that make MobileViT and its relatives fast in PyTorch.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="|".join(SUBCOMMANDS))
    for name, summary in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if argv[:1] == [name]:  # the others are not imported
            module = importlib.import_module(f"{__name__}.{name}")
            module.add_arguments(subparser)
            subparser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    args = parser.parse_args(argv, argparse.Namespace(command=shlex.join([PROGRAM, *argv])))
    from mvit_kernels import backends

    from .output import json_text

    try:
        backends()  # raises where an environment variable is wrong
        document = module.run(args)
        if document is not None:
            if args.json:
                sys.stdout.write(json_text(document))
            else:
                module.show(document)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has left; what is still buffered must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        print(f"{PROGRAM} {args.subcommand}: {_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM} {args.subcommand}: interrupted", file=sys.stderr)
        return 130
    return 0


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    lines = str(error).splitlines()
    if "Original Traceback" in str(error):  # of a DataLoader's worker: its last line is "ValueError: message"
        return lines[-1].partition(": ")[2]
    return lines[0] if lines else type(error).__name__
