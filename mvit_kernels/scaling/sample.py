"""Settings of the factors, each trained briefly by the same recipe: what the Gaussian processes are fitted to."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm

from mvit_kernels.data import StandInTask, image_folder
from mvit_kernels.data.digits import Target
from mvit_kernels.files import locked, write_text
from mvit_kernels.training import Diverged, TrainConfig, train

from . import pictures, table
from .counts import macs, parameters
from .factors import MODEL, Box, Factors
from .table import Sample, SampleSet

_OF_THE_RUN = ("model", "output", "size", "options", "checkpoint", "resume", "workers", "save_every", "device")
"""Fields of a training that are no part of the recipe: of one setting, or of how and where it runs."""


@dataclass(frozen=True)
class Recipe:
    """How every setting is trained. training: a template, whose model, options, output and size are of no account.

    canvas: side of the stand-in images in pixels, which every network sees at its own resolution, so none may be higher: it would cost
    more and show no more. target, plain: see `StandInTask`.
    """

    training: TrainConfig
    box: Box
    canvas: int = 128
    target: Target = "both"
    plain: bool = False

    def __post_init__(self) -> None:
        highest = self.box.resolution[1]
        if self.training.data == "standin" and self.canvas < highest:
            raise ValueError(f"Recipe: canvas: expected at least {highest}, the highest resolution, got {self.canvas}")

    def document(self) -> dict[str, Any]:
        """All that shapes the samples, as JSON holds it."""
        fields = {name: value for name, value in asdict(self.training).items() if name not in _OF_THE_RUN}
        images = {"canvas": self.canvas, "target": self.target, "plain": self.plain} if self.training.data == "standin" else {}
        return json.loads(json.dumps({"box": asdict(self.box), **images, "training": fields, "num_classes": len(self.class_names)}))

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.tasks()[0].class_names if self.training.data == "standin" else image_folder(self.training.data, 32)[0].class_names

    def tasks(self) -> tuple[StandInTask, StandInTask]:
        """The stand-in images, training and held out."""
        t, task = self.training, functools.partial(StandInTask, size=self.canvas, target=self.target, plain=self.plain)
        return task("train", t.samples, seed=t.seed), task("heldout", t.heldout_samples, seed=t.seed)


def sample(folder: Path, count: int, recipe: Recipe, *, jobs: int = 1, command: str = "") -> SampleSet:
    """Train `count` settings of the box and write them to `folder`; what is there already is kept, what was interrupted goes on.

    jobs: settings trained at a time, each in a process of its own. command: written beside the recipe.
    A longer draw of the same recipe may follow. Raises ValueError where the folder holds samples of another recipe; after all others are
    trained, where settings diverged.
    """
    settings, document = recipe.box.draw(count, recipe.training.seed), recipe.document()
    diverged = dict[int, Diverged]()
    with locked("sample: folder", folder):
        done = _prepare(folder, document, command)
        missing = [(index, factors) for index, factors in enumerate(settings) if index not in done]
        if missing and recipe.training.data == "standin":
            for task in recipe.tasks():
                pictures.draw(task, folder)
        process = os.getpid()
        calls = (delayed(_in_worker)(process, folder / "runs" / f"{i:04}", i, factors, recipe, folder) for i, factors in missing)
        results = Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)
        for index, each in tqdm(results, "settings", total=count, initial=count - len(missing), disable=None):
            if isinstance(each, Diverged):
                diverged[index] = each
                continue
            done[index] = each
            table.write(folder, done.values())
            shutil.rmtree(folder / "runs" / f"{index:04}")
    if diverged:
        index, error = min(diverged.items())
        raise ValueError(
            f"sample: recipe: expected one that trains all settings, got {len(diverged)} of {count} that diverged and are left out, "
            f"the first {index}, {settings[index]}: {error}"
        ) from error
    return table.read(folder)


def _in_worker(process: int, run: Path, index: int, factors: Factors, recipe: Recipe, images: Path) -> tuple[int, Sample | Diverged]:
    """`train_setting` for a process, ending with it: what went on after it was killed would write to what the next one resumes from."""
    if os.getppid() == process:
        _end_with(process)
    try:
        return index, train_setting(run, index, factors, recipe, images)
    except Diverged as error:
        return index, error


@functools.cache
def _end_with(process: int) -> None:
    def watch() -> None:
        while os.getppid() == process:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def train_setting(run: Path, index: int, factors: Factors, recipe: Recipe, images: Path) -> Sample:
    """Train one setting in the folder `run`, from where it was interrupted. images: the folder that `pictures.draw` wrote to."""
    state = run / "state.pt"
    options = {name: value for name, value in factors._asdict().items() if name != "resolution"}
    config = replace(
        recipe.training,
        model=MODEL,
        output=run,
        size=factors.resolution,
        options=json.dumps(options),
        resume=state if state.is_file() else None,
    )
    standin = recipe.training.data == "standin"
    training, heldout = (pictures.load(task, images, factors.resolution) for task in recipe.tasks()) if standin else (None, None)
    result = train(config, None if training is None or heldout is None else (training, heldout))
    classes = len(recipe.class_names)
    return Sample(
        index,
        factors,
        macs=macs(factors.config, classes),
        params=parameters(factors.config, classes),
        top1=result.top1,
        heldout_samples=result.heldout_samples,
        steps=result.steps,
        seconds=result.seconds,
    )


def _prepare(folder: Path, document: dict[str, Any], command: str) -> dict[int, Sample]:
    """Write the recipe, or check that the folder holds the same one; its samples by index, with what an earlier run left removed."""
    path = folder / "recipe.json"
    if not path.is_file():
        if table.has_samples(folder):
            raise ValueError(f"sample: folder: expected recipe.json, which says how the samples in {str(folder)!r} were made, got none")
        table.write(folder, [])  # before the recipe: a folder with a recipe has a table, whenever the process ends
        write_text(path, json.dumps({**document, "command": command}, indent=2) + "\n")
        return {}
    there = table.read(folder)
    changed = [name for name, value in document.items() if there.recipe.get(name) != value]
    if changed:
        old, new = ({name: each.get(name) for name in changed} for each in (there.recipe, document))
        raise ValueError(f"sample: folder: expected the recipe of the samples in {str(folder)!r}, {old}, got {new}")
    done = {each.index: each for each in there.samples}
    for index in done:
        shutil.rmtree(folder / "runs" / f"{index:04}", ignore_errors=True)
    return done
