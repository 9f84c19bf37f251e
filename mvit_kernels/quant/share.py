"""Processes that calibrate together: each looks at a share of the images, then all know what all have seen, in the order of the images.

So results do not depend on how many processes there are: what comes out of a piece of the images is the same in whichever process, and it
is put together in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Of process `rank` of `world` ones."""

    rank: int = 0
    world: int = 1

    def of(self, pieces: Sequence[T]) -> Iterator[tuple[int, T]]:
        """(number, piece) of those that this process looks at."""
        return ((i, pieces[i]) for i in range(self.rank, len(pieces), self.world))

    def gathered(self, found: Mapping[int, T]) -> list[T]:
        """What all processes found, by number of the piece, in order. Every process calls it."""
        everything: list[Any] = [dict(found)]
        if self.world > 1:
            everything = [None] * self.world
            dist.all_gather_object(everything, dict(found))
        merged: dict[int, T] = {}
        for each in everything:
            merged |= each
        return [merged[i] for i in sorted(merged)]

    def of_first(self, find: Callable[[], T]) -> T:
        """What the first process finds, or its error: every process calls it, and none waits for one that has stopped."""
        found: list[Any] = [None, None]
        if self.rank == 0:
            try:
                found[0] = find()
            except (ValueError, OSError) as error:
                found[1] = error
        if self.world > 1:
            dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise found[1]
        first: T = found[0]
        return first


ALONE = Share()


def share_of_group(fingerprint: str) -> Share:
    """That of the default process group, whose processes must have the same images.

    Raises ValueError if there is no group, or if they have not.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("quantize: distributed: expected an initialized process group (torch.distributed.init_process_group), got none")
    share = Share(dist.get_rank(), dist.get_world_size())
    if len(set(share.gathered({share.rank: fingerprint}))) > 1:
        raise ValueError("quantize: distributed: expected the same calibration images in every process, got others in some")
    return share
