"""What the tests of the integer ops share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from op_checks import needs_native

from mvit_kernels import ops

Tensor = torch.Tensor

both_backends = pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_native), "reference"])


def random_bytes(*size: int, most: int = 255) -> Tensor:
    return torch.randint(0, most + 1, size, dtype=torch.uint8)


def byte_map(*size: int, most: int = 255) -> Tensor:
    """Random bytes (B, C, H, W) in channels_last memory."""
    return random_bytes(*size, most=most).contiguous(memory_format=torch.channels_last)


def random_weight(*size: int, bits: int = 8) -> Tensor:
    most = 127 if bits == 8 else 31
    return torch.randint(-most, most + 1, size, dtype=torch.int8)


def random_packed_weight(columns: int, depth: int, bits: int = 8) -> ops.PackedWeight:
    return ops.pack_weight(random_weight(columns, depth, bits=bits), bits=bits)


def assert_compiles_and_exports(
    function: Callable[..., Any], *draws: Sequence[Tensor], dynamic: Sequence[dict[int, Any] | None] | None = None
) -> None:
    """Each of `draws` are arguments, of different sizes: one compiled function takes them all. So does one exported program where `dynamic`
    says which axes of each argument differ, in its first draw at least 2 long; else that is exported for the last draw alone."""

    class Module(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Any:
            return function(*inputs)

    def tensors(results: Any) -> tuple[Tensor, ...]:
        return results if isinstance(results, tuple) else (results,)

    torch.compiler.reset()  # functions of other tests, which would count as recompilations of this one
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager", dynamic=True)
    example = draws[-1] if dynamic is None else draws[0]
    shapes = None if dynamic is None else (tuple(dynamic),)
    exported = torch.export.export(Module(), tuple(example), dynamic_shapes=shapes).module()
    for inputs in draws:
        for run in (compiled, exported) if dynamic is not None or inputs is example else (compiled,):
            for ours, expected in zip(tensors(run(*inputs)), tensors(function(*inputs)), strict=True):
                assert torch.equal(ours, expected)


def axes(*which: int) -> dict[int, Any]:
    """Axes of an argument that differ, for `assert_compiles_and_exports`."""
    return {axis: torch.export.Dim(f"axis{axis}", min=2) for axis in which}


def assert_tensor_is_checked(op: Any, given: Sequence[Any], name: str, shown: str) -> None:
    """Called with what it was given, but with another tensor for the argument `name`, the op raises an error that begins with its own name
    and `shown`."""
    schema = op.default._schema
    at = [each.name for each in schema.arguments].index(name)
    x = given[at]
    for bad in (x[..., :-1].contiguous(), x[:0], x.to(torch.float64), x.to("meta")):
        with pytest.raises((TypeError, ValueError), match=f"{schema.name.partition('::')[2]}: {shown}"):
            op(*given[:at], bad, *given[at + 1 :])
