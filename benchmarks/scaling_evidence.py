"""Derived models against plain ways to the same multiply-adds, all trained by the recipe of the shipped samples.

    python benchmarks/scaling_evidence.py            # trains what is missing in results/scaling.json, and writes it again after each run

At a half, a quarter and an eighth of the multiply-adds of the parent, MobileViTv2-0.5 at the largest resolution of the samples:

    width          the parent, narrower
    resolution     the parent, on smaller images
    derived        the best model of `Downsizer.derive`
    random         settings of the samples with 70 to 100 % of the budget: what somebody gets who trains one of them (bootstrap)

Each but the last is trained with three seeds, which are of weights, images and their order.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mvit_kernels.files import write_text
from mvit_kernels.machine import conditions
from mvit_kernels.scaling import SHIPPED, Box, Downsizer, Factors, Macs, Recipe, SampleSet, macs, pictures, read
from mvit_kernels.scaling.cost import WIDTHS
from mvit_kernels.scaling.downsize import widest
from mvit_kernels.scaling.sample import train_setting
from mvit_kernels.training import TrainConfig

RESULTS = Path(__file__).parent / "results" / "scaling.json"
SHARES = (1 / 2, 1 / 4, 1 / 8)
SEEDS = (1, 2, 3)
STRATEGIES = ("width", "resolution", "derived")
POOL = (0.7, 1.0)
DRAWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, default=SHIPPED)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--work", type=Path, default=Path("build") / "scaling", help="for drawn images and interrupted runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    samples = read(args.samples)
    parent = Factors(samples.recipe["box"]["resolution"][1], 0.5, 1.0, 1.0)
    classes = samples.recipe["num_classes"]
    runs = json.loads(args.results.read_text())["runs"] if args.results.is_file() else []
    args.work.mkdir(parents=True, exist_ok=True)
    for share in SHARES:
        budget = share * macs(parent.config, classes)
        for strategy in args.strategies:
            factors = chosen(strategy, parent, budget, samples)
            for seed in SEEDS:
                if any((run["share"], run["strategy"], run["seed"]) == (share, strategy, seed) for run in runs):
                    continue
                top1 = trained(factors, samples.recipe, seed, args.work)
                used = macs(factors.config, classes)
                runs.append({"share": share, "strategy": strategy, "seed": seed, **factors._asdict(), "macs": used, "top1": top1})
                print(f"{share:.3f} {strategy:10} seed {seed}: {factors}, {used / 1e6:.2f} M, top-1 {top1:.3f}", flush=True)
                write(args.results, samples, parent, runs)
    write(args.results, samples, parent, runs)


def chosen(strategy: str, parent: Factors, budget: float, samples: SampleSet) -> Factors:
    """The model of a strategy that uses most of the budget."""
    cost = Macs(samples.recipe["num_classes"])
    if strategy == "derived":
        return Downsizer(samples, cost, num_classes=cost.num_classes).derive(budget)[0].factors
    if strategy == "width":
        width = widest(parent, budget, cost)
        if width is None:
            raise ValueError(f"scaling_evidence: no width from {WIDTHS[0]} on is within {budget}")
        return parent._replace(width=width)
    sides = [
        side for side in range(2, parent.resolution + 1, 2) if macs(parent._replace(resolution=side).config, cost.num_classes) <= budget
    ]
    return parent._replace(resolution=max(sides))


def trained(factors: Factors, document: dict[str, Any], seed: int, work: Path) -> float:
    """Top-1 after the recipe of the samples with another seed."""
    training = TrainConfig("mobilevitv2", work, **{**document["training"], "seed": seed})
    box = Box(**{name: tuple(value) if isinstance(value, list) else value for name, value in document["box"].items()})
    recipe = Recipe(training, box, document["canvas"], document["target"], document["plain"])
    for task in recipe.tasks():
        pictures.draw(task, work)
    run = work / "-".join(map(str, (*factors, seed)))
    top1 = train_setting(run, 0, factors, recipe, work).top1
    shutil.rmtree(run)
    return top1


def write(path: Path, samples: SampleSet, parent: Factors, runs: list[dict[str, Any]]) -> None:
    budget = macs(parent.config, samples.recipe["num_classes"])
    table = [summary(share, [run for run in runs if run["share"] == share], share * budget, samples) for share in SHARES]
    document = {
        "conditions": conditions(shlex.join(["python", "benchmarks/scaling_evidence.py", *sys.argv[1:]])),
        "recipe": samples.recipe["training"],
        "samples": len(samples.samples),
        "parent": {**parent._asdict(), "macs": budget},
        "table": table,
        "runs": runs,
    }
    write_text(path, json.dumps(document, indent=2) + "\n")


def summary(share: float, runs: list[dict[str, Any]], budget: float, samples: SampleSet) -> dict[str, Any]:
    """Mean top-1 of each strategy with its 95 % interval: of three seeds by Student's t, of the pool by bootstrap."""
    row: dict[str, Any] = {"share": share, "budget": budget}
    for strategy in STRATEGIES:
        found = [run for run in runs if run["strategy"] == strategy]
        if len(found) == len(SEEDS):
            top1 = np.array([run["top1"] for run in found])
            half = 4.303 * top1.std(ddof=1) / math.sqrt(len(top1))  # t of two degrees of freedom
            row[strategy] = {"top1": top1.mean(), "low": top1.mean() - half, "high": top1.mean() + half, "macs": found[0]["macs"]}
    pool = np.array([each.top1 for each in samples.samples if POOL[0] * budget <= each.macs <= POOL[1] * budget])
    if len(pool):
        means = np.random.default_rng(0).choice(pool, (DRAWS, len(pool))).mean(1)
        low, high = np.quantile(means, (0.025, 0.975))
        row["random"] = {"top1": pool.mean(), "low": low, "high": high, "settings": len(pool), "best": pool.max(), "worst": pool.min()}
    return row


if __name__ == "__main__":
    main()
