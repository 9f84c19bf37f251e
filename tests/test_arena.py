"""Values that live at the same time have places of their own."""

from __future__ import annotations

import random

from mvit_kernels.ops.arena import Lifetime, place


def test_a_chain_needs_two_places():
    chain = {f"v{i}": Lifetime(i, i + 1, 640) for i in range(10)}
    offsets, whole = place(chain)
    assert whole == 1280
    assert set(offsets.values()) == {0, 640}


def test_nothing_overlaps():
    draw = random.Random(0)
    for _ in range(50):
        lives = {}
        for i in range(40):
            first = draw.randrange(30)
            lives[f"v{i}"] = Lifetime(first, first + draw.randrange(8), draw.randrange(1, 5000))
        offsets, whole = place(lives)
        for a, life in lives.items():
            assert offsets[a] % 64 == 0
            assert offsets[a] + life.bytes <= whole
            for b, other in lives.items():
                if a < b and life.first <= other.last and other.first <= life.last:
                    assert offsets[a] + life.bytes <= offsets[b] or offsets[b] + other.bytes <= offsets[a]
        least = max(sum(life.bytes for life in lives.values() if life.first <= step <= life.last) for step in range(40))
        assert whole < 2 * least


def test_nothing_to_place():
    assert place({}) == ({}, 0)
