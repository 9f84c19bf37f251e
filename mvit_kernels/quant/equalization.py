"""Factors that are moved between layers so that channels with one quantizer have ranges alike.

Where kernels have one scale for all channels of a result, a channel far smaller than the others keeps few levels. What writes such a result
may multiply each channel by a factor of its own if what reads it divides by it, and the network computes the same:

- a map that products without SiLU write, also by sums and resizes, and that products alone read;
- the values of attention, which pass a weighted sum over pixels, or relu and a factor;
- queries against keys of softmax attention; keys against the values of separable attention.

Nagel et al. 2019 (arXiv 1906.04721), section 4.1, have this for ReLU networks, and Xiao et al. 2023, "SmoothQuant" (arXiv 2211.10438), eq.
4 the exponent: factors are r^-a of the range r of each channel. a is the one with the least noise at the results of the readers. With A
the step of the scaled map, W_n that of row n of the scaled weight, the variance of the noise of result n is

    sum over c of (w_nc^2 A^2 + E[x_c^2] W_n^2) / 12.

A channel that happens to be quiet on the images of the calibration would be stretched by r^-a, and clipped on others. So a is judged as it
will do there: factors of the ranges of half of the images, in the ranges of all. The a that is found then goes to the ranges of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from mvit_kernels.graph import Node, Program

from .calibrate import Range
from .layout import PRODUCTS
from .rounding import along_inputs

Tensor = torch.Tensor
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_FARTHEST = 2.0**-8  # of the ranges of channels: below it, factors stay as they are
_HOMOGENEOUS = ("resize", "avg_pool", "add")  # f(s x) = s f(x) for each channel


@dataclass(frozen=True)
class Seam:
    """Where factors of channels can be moved. All lists hold (name of a node, first of its channels).

    results: what is multiplied by the factors; writers: products whose rows are; against: products whose rows are divided; readers:
    products whose input channels are.
    """

    name: str
    count: int
    results: tuple[tuple[str, int], ...]
    writers: tuple[tuple[str, int], ...]
    against: tuple[tuple[str, int], ...] = ()
    readers: tuple[tuple[str, int], ...] = ()


def seams(program: Program) -> list[Seam]:
    """Of a float program, in its order."""
    users = program.users()
    found = []
    for node in program:
        if node.kind == "patch_attention":
            found += _of_softmax(program, users, node)
        elif node.kind == "separable_gate":
            found += _of_separable(program, users, node)
    return _of_maps(program, users) + found


def _of_maps(program: Program, users: Mapping[str, list[str]]) -> list[Seam]:
    group: dict[str, set[str]] = {node.name: {node.name} for node in program}
    for node in program:
        for name in _copied(node):
            both = group[node.name] | group[name]
            group |= dict.fromkeys(both, both)
    found = []
    for members in {id(each): each for each in group.values()}.values():
        names = [node.name for node in program if node.name in members]
        writers = [name for name in names if program[name].kind in PRODUCTS]
        readers = _readers(program, users, names)
        if writers and readers and all(_is_scalable(program[name]) for name in names):
            count = program[names[0]].size[0]
            found.append(Seam(names[0], count, _whole(names), _whole(writers), (), readers))
    return found


def _is_scalable(node: Node) -> bool:
    """Whether what it computes of scaled channels is scaled as they are: not by SiLU."""
    return node.kind in (*PRODUCTS, *_HOMOGENEOUS) and node.settings.get("activation", "none") in ("none", "relu")


def _copied(node: Node) -> tuple[str, ...]:
    """The inputs whose channels come out as they went in, but for sums and positive factors over pixels."""
    if node.kind in _HOMOGENEOUS:
        return node.inputs
    return node.inputs[-1:] if node.settings.get("residual") else ()


def _readers(program: Program, users: Mapping[str, list[str]], names: list[str]) -> tuple[tuple[str, int], ...]:
    """Products that multiply results, or none if others than these and the results themselves take them."""
    found: list[tuple[str, int]] = []
    for name in names:
        for user in dict.fromkeys(users[name]):
            node = program[user] if user else None
            copied = node is not None and user in names and name in _copied(node)
            if node is None or not (node.kind in PRODUCTS or copied):
                return ()
            if node.kind in PRODUCTS:
                multiplied = node.inputs[: len(node.inputs) - bool(node.settings.get("residual"))]
                first = [0, program[multiplied[0]].size[0]]
                found += [(user, first[i]) for i, each in enumerate(multiplied) if each == name]
    return tuple(found)


def _whole(names: list[str]) -> tuple[tuple[str, int], ...]:
    return tuple((name, 0) for name in names)


def _is_linear(program: Program, users: Mapping[str, list[str]], name: str, takers: set[str]) -> bool:
    """Whether a product without an activation writes it, for these alone."""
    node = program[name]
    plain = node.kind in PRODUCTS and node.settings.get("activation", "none") == "none" and not node.settings.get("residual")
    return plain and node.kind != "depthwise_conv2d" and set(users[name]) <= takers


def _of_softmax(program: Program, users: Mapping[str, list[str]], node: Node) -> list[Seam]:
    source, d = node.inputs[0], node.size[0]
    if not _is_linear(program, users, source, {node.name}):
        return []
    found = [Seam(f"{node.name}.queries", d, ((source, 0),), ((source, 0),), ((source, d),))]
    readers = _readers(program, users, [node.name])
    if readers:
        found.append(Seam(f"{node.name}.values", d, ((source, 2 * d), (node.name, 0)), ((source, 2 * d),), (), readers))
    return found


def _of_separable(program: Program, users: Mapping[str, list[str]], node: Node) -> list[Seam]:
    values, keys = node.inputs
    d, contexts = node.size[0], {user for user in users[values] if user and _takes_scores(program[user], values)}
    if not (_is_linear(program, users, values, {node.name} | contexts) and _is_linear(program, users, keys, {node.name})):
        return []
    found = [Seam(f"{node.name}.values", d, ((values, 1),), ((values, 1),), ((keys, 0),))]
    readers = _readers(program, users, [node.name])
    if readers:
        found.append(Seam(f"{node.name}.keys", d, ((node.name, 0),), ((keys, 0),), (), readers))
    return found


def _takes_scores(node: Node, name: str) -> bool:
    """Whether it takes the first channel of a result and nothing else of it."""
    return node.kind == "separable_context" and node.inputs[0] == name != node.inputs[1]


# --- factors ---


def migrated(program: Program, factors: Mapping[str, Tensor]) -> Program:
    """The program with factors (C,) moved at seams by name: the same function. Seams that it does not have are left out."""
    changed = {node.name: node for node in program}
    for seam in seams(program):
        f = factors.get(seam.name)
        if f is None:
            continue
        for name, first in seam.writers:
            changed[name] = _scaled_rows(changed[name], first, f)
        for name, first in seam.against:
            changed[name] = _scaled_rows(changed[name], first, 1 / f)
        for name, first in seam.readers:
            changed[name] = _scaled_columns(changed[name], first, 1 / f)
    return program.rewritten(changed)


def shared_factors(program: Program, like: Program, factors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """(those of seams that are the same in both programs, names of results at the others: they are scaled in `like` alone)."""
    own = {seam.name: seam for seam in seams(program)}
    kept, apart = dict(factors), set[str]()
    for seam in seams(like):
        if seam.name in kept and not _same(seam, own.get(seam.name)):
            del kept[seam.name]
            apart |= {name for name, _ in seam.results}
    return kept, apart


def _same(seam: Seam, other: Seam | None) -> bool:
    """But for resizes."""
    return other is not None and (seam.writers, seam.against, seam.readers) == (other.writers, other.against, other.readers)


def _scaled_rows(node: Node, first: int, f: Tensor) -> Node:
    def scaled(value: Tensor) -> Tensor:
        value = value.double().clone()
        value[first : first + f.numel()] *= f.reshape(-1, *(1,) * (value.ndim - 1))
        return value

    return replace(node, weights={key: scaled(value).to(value.dtype) for key, value in node.weights.items()})


def _scaled_columns(node: Node, first: int, f: Tensor) -> Node:
    weight = node.weights["weight"]
    value = weight.double().clone()
    columns = slice(None) if node.kind == "depthwise_conv2d" else slice(first, first + f.numel())
    value[:, columns] *= along_inputs(node, f)
    return replace(node, weights={**node.weights, "weight": value.to(weight.dtype)})


def factors(
    program: Program, ranges: Mapping[str, Range], half: Mapping[str, Range], squares: Mapping[str, Tensor], bits: tuple[int, int],
    wanted: Callable[[Seam], bool],
) -> dict[str, Tensor]:  # fmt: skip
    """(C,) float64 for seams that are wanted, by name, where they leave less noise than none.

    ranges, half, squares: (C,) the smallest and largest value of each result, those on half of the images, and the mean of its squares;
    bits: of weights, of activations.
    """
    found = {}
    for seam in seams(program):
        if wanted(seam):
            tried = [(_noise(program, seam, _candidate(seam, a, half), ranges, squares, bits), a) for a in EXPONENTS]
            best = _candidate(seam, min(tried)[1], ranges)
            if bool((best != 1).any()):
                found[seam.name] = best
    return found


def _candidate(seam: Seam, exponent: float, ranges: Mapping[str, Range]) -> Tensor:
    one = _size(seam, seam.results, ranges)
    if seam.against and seam.against[0][0] == seam.results[0][0]:  # queries and keys are both rounded: each gets half
        one = (one / _size(seam, seam.against, ranges)).sqrt()
    factor = one**-exponent
    return factor / factor.log().mean().exp()


def _size(seam: Seam, results: tuple[tuple[str, int], ...], ranges: Mapping[str, Range]) -> Tensor:
    """(C,) the largest size of a value in each channel."""
    sizes = [torch.maximum(ranges[name].low.abs(), ranges[name].high.abs())[first : first + seam.count].double() for name, first in results]
    size = torch.stack(sizes).amax(0)
    return size.clamp_min(max(float(size.max()) * _FARTHEST, torch.finfo(torch.float64).tiny))


def _noise(
    program: Program, seam: Seam, f: Tensor, ranges: Mapping[str, Range], squares: Mapping[str, Tensor], bits: tuple[int, int]
) -> float:  # fmt: skip
    """As a share of what is computed of the results, up to what does not depend on f."""

    def step(name: str, first: int, by: Tensor) -> float:
        low, high = (each[first : first + seam.count].double() * by for each in ranges[name])
        return float((high.max().clamp_min(0) - low.min().clamp_max(0)) / (2 ** bits[1] - 1))

    def square(name: str, first: int) -> Tensor:
        return squares[name][first : first + seam.count]

    total = 0.0
    if seam.against:  # products of two results, of which the second has bytes of its own in softmax attention
        (a, i), (b, j) = seam.results[0], seam.against[0]
        noise = square(b, j) / f.square() * step(a, i, f) ** 2
        if a == b:
            noise = noise + square(a, i) * f.square() * step(b, j, 1 / f) ** 2
        total += _share(noise, square(a, i) * square(b, j))
    steps = sum(step(name, first, f) ** 2 for name, first in seam.results)
    for name, first in seam.readers:
        total += _noise_of_reader(program[name], first, f, steps, square(*seam.results[-1]), 2 ** (bits[0] - 1) - 1)
    return total


def _noise_of_reader(node: Node, first: int, f: Tensor, steps: float, power: Tensor, most: int) -> float:
    """steps: the square of the step of what it takes, scaled by f; power (C,): the mean square of that, unscaled."""
    weight = node.weights["weight"].double()
    columns = slice(None) if node.kind == "depthwise_conv2d" else slice(first, first + f.numel())
    scaled = weight.clone()
    scaled[:, columns] /= along_inputs(node, f)
    rows = (scaled.flatten(1).abs().amax(1) / most).square().reshape(-1, *(1,) * (weight.ndim - 1))
    noise = scaled[:, columns].square() * steps + along_inputs(node, power * f.square()) * rows
    return _share(noise, weight[:, columns].square() * along_inputs(node, power))


def _share(noise: Tensor, of: Tensor) -> float:
    return float(noise.sum() / of.sum().clamp_min(torch.finfo(torch.float64).tiny))
