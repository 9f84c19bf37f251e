"""Settings of the factors, each trained briefly by the same recipe: what the Gaussian processes are fitted to."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm

from mvit_kernels.data import StandInTask, image_folder
from mvit_kernels.data.digits import Target
from mvit_kernels.files import write_text
from mvit_kernels.training import TrainConfig, train

from . import pictures, table
from .counts import macs, parameters
from .factors import MODEL, Box, Factors
from .table import Sample, SampleSet

_OF_THE_RUN = ("model", "output", "size", "options", "checkpoint", "resume", "workers", "save_every", "device")
"""Fields of a training that are no part of the recipe: of one setting, or of how and where it runs."""


@dataclass(frozen=True)
class Recipe:
    """How every setting is trained. training: a template, whose model, options, output and size are of no account.

    canvas: side of the stand-in images in pixels, which every network sees at its own resolution; target, plain: see `StandInTask`.
    """

    training: TrainConfig
    box: Box
    canvas: int = 128
    target: Target = "both"
    plain: bool = False

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
    A longer draw of the same recipe may follow. Raises ValueError where the folder holds samples of another recipe.
    """
    settings = recipe.box.draw(count, recipe.training.seed)
    with _locked(folder):
        done = _prepare(folder, recipe, command)
        missing = [(index, factors) for index, factors in enumerate(settings) if index not in done]
        if missing and recipe.training.data == "standin":
            for task in recipe.tasks():
                pictures.draw(task, folder)
        calls = (delayed(train_setting)(folder / "runs" / f"{index:04}", index, factors, recipe, folder) for index, factors in missing)
        results = Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)
        for each in tqdm(results, "settings", total=count, initial=count - len(missing), disable=None):
            done[each.index] = each
            table.write(folder, done.values())
            shutil.rmtree(folder / "runs" / f"{each.index:04}")
    return table.read(folder)


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


def _prepare(folder: Path, recipe: Recipe, command: str) -> dict[int, Sample]:
    """Write the recipe, or check that the folder holds the same one; its samples by index, with what an earlier run left removed."""
    document, path = recipe.document(), folder / "recipe.json"
    if not path.is_file():
        write_text(path, json.dumps({**document, "command": command}, indent=2) + "\n")
        table.write(folder, [])
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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two runs in one folder would each write the table without the other's samples. The lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"sample: folder: expected one that no other run is filling, got {str(folder)!r}") from error
    finally:
        os.close(file)
