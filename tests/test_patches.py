from __future__ import annotations

import pytest
import torch

import mvit_kernels as mk
from mvit_kernels import reference
from mvit_kernels.ops.backend import native

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# (batch, channels, H, W, patch)
SHAPES = [
    (1, 1, 2, 2, (2, 2)),
    (2, 3, 6, 10, (2, 2)),
    (1, 5, 2, 70, (2, 2)),
    (2, 64, 32, 32, (2, 2)),
    (1, 3, 9, 8, (3, 4)),
    (2, 3, 4, 6, (1, 3)),
    (2, 2, 5, 7, (5, 7)),
    (2, 3, 4, 6, (1, 1)),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unfold_and_fold(shape, fmt: str, dtype: torch.dtype, isa: str, poison) -> None:
    *size, patch = shape
    x = torch.randint(0, 255, size).to(dtype).contiguous(memory_format=FORMATS[fmt])
    p = mk.ops.unfold_patches(x, patch, backend="cpu")
    assert torch.equal(p, reference.unfold_patches(x, patch))
    assert p.is_contiguous(memory_format=FORMATS[fmt])
    back = mk.ops.fold_patches(p, size[2:], patch, backend="cpu")
    assert torch.equal(back, x)
    assert back.is_contiguous(memory_format=FORMATS[fmt])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_any_strides(backend: str, isa: str) -> None:
    big = torch.randn(3, 6, 8, 12)
    for x in (big[1:, 2:], big[..., ::2], big.transpose(2, 3), big[:, :1].expand(-1, 4, -1, -1), big.permute(1, 0, 3, 2)):
        p = mk.ops.unfold_patches(x, backend=backend)
        assert torch.equal(p, reference.unfold_patches(x))
        assert torch.equal(mk.ops.fold_patches(p, x.shape[2:], backend=backend), x)


def test_tokens_of_a_channels_last_map_are_a_view() -> None:
    p = mk.ops.unfold_patches(torch.randn(2, 8, 6, 4).contiguous(memory_format=torch.channels_last))
    tokens = p.permute(0, 2, 3, 1).reshape(2 * 4, 6, 8)
    assert tokens.data_ptr() == p.data_ptr()


@pytest.mark.parametrize("size", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_empty(size) -> None:
    p = mk.ops.unfold_patches(torch.zeros(size))
    assert p.shape == (size[0], size[1], 4, size[2] * size[3] // 4)
    assert mk.ops.fold_patches(p, size[2:]).shape == size


@pytest.mark.parametrize("backend", [None, "reference"])
def test_gradients_and_their_gradients(backend) -> None:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)

    def unfold(t: torch.Tensor) -> torch.Tensor:
        return mk.ops.unfold_patches(t, backend=backend)

    def fold(t: torch.Tensor) -> torch.Tensor:
        return mk.ops.fold_patches(t.reshape(2, 3, 4, 6), (4, 6), backend=backend)

    for function in (unfold, fold):
        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.skipif(native is None, reason="the native kernels are not built")
def test_same_bits_on_any_number_of_threads(threads) -> None:
    x = torch.randn(4, 64, 32, 32)
    for count in (1, 2, 5):
        threads(count)
        for fmt in FORMATS.values():
            assert torch.equal(mk.ops.unfold_patches(x.contiguous(memory_format=fmt), backend="cpu"), reference.unfold_patches(x))


@pytest.mark.skipif(native is None, reason="the native kernels are not built")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", ["unfold_patches", "fold_patches"])
def test_writes_only_its_output(kernel: str, channels_last: bool, isa: str) -> None:
    x = torch.randn(2, 3, 6, 10)
    buffer = torch.full((x.numel() + 32,), 7.0)
    status = getattr(native, kernel)(4, x.shape, (2, 2), channels_last, x.data_ptr(), buffer[16:].data_ptr(), 2)
    assert status == 0
    assert (buffer[:16] == 7.0).all()
    assert (buffer[-16:] == 7.0).all()
    assert sorted(buffer[16:-16].tolist()) == sorted(x.flatten().tolist())


@pytest.mark.parametrize("backend", [None, "reference"])
def test_result_is_never_a_view(backend) -> None:
    """Where nothing moves, plain torch returns its input."""
    for size, patch, fmt in (((1, 3, 2, 2), (2, 2), "nchw"), ((1, 3, 4, 6), (1, 1), "nchw"), ((1, 3, 4, 2), (4, 2), "nhwc")):
        x = torch.randn(size).contiguous(memory_format=FORMATS[fmt])
        before = x.clone()
        mk.ops.unfold_patches(x, patch, backend=backend).zero_()
        p = mk.ops.unfold_patches(x, patch, backend=backend)
        mk.ops.fold_patches(p, size[2:], patch, backend=backend).zero_()
        assert torch.equal(x, before)
        assert torch.equal(p, reference.unfold_patches(before, patch))
        torch.library.opcheck(torch.ops.mvit_kernels.unfold_patches, (x, patch), {"backend": backend})


def test_lazy_tensors_are_resolved() -> None:
    z = torch.randn(1, 2, 4, 4, dtype=torch.complex64)
    assert torch.equal(mk.ops.unfold_patches(z.conj()), reference.unfold_patches(z.conj().resolve_conj()))


def test_opcheck() -> None:
    for x in (torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6).contiguous(memory_format=torch.channels_last)):
        for requires_grad in (False, True):
            leaf = x.detach().requires_grad_(requires_grad)
            torch.library.opcheck(torch.ops.mvit_kernels.unfold_patches, (leaf, [2, 2]))
            torch.library.opcheck(torch.ops.mvit_kernels.fold_patches, (leaf.detach().requires_grad_(requires_grad), [4, 6], [2, 2]))


def test_exports_with_dynamic_size() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mk.ops.fold_patches(mk.ops.unfold_patches(x) * 2, x.shape[2:])

    dims = {0: torch.export.Dim("batch"), 2: 2 * torch.export.Dim("rows", min=2), 3: 2 * torch.export.Dim("columns", min=2)}
    program = torch.export.export(Module(), (torch.randn(2, 3, 8, 12),), dynamic_shapes=(dims,))
    x = torch.randn(5, 3, 4, 6)
    assert torch.equal(program.module()(x), x * 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mk.ops.unfold_patches(None), TypeError, "unfold_patches: x: expected a tensor, got NoneType"),
        (lambda: mk.ops.unfold_patches(torch.zeros(4, 4)), ValueError, r"unfold_patches: x: expected 4 dimensions, got shape \(4, 4\)"),
        (lambda: mk.ops.unfold_patches(torch.zeros(1, 1, 3, 4)), ValueError, r"unfold_patches: x: .* multiples of \(2, 2\), got 3 x 4"),
        (lambda: mk.ops.unfold_patches(torch.zeros(1, 1, 4, 4), (2,)), TypeError, "unfold_patches: patch_size: expected two integers"),
        (
            lambda: mk.ops.fold_patches(torch.zeros(1, 1, 4, 5), (4, 4)),
            ValueError,
            r"fold_patches: p: expected shape \(B, C, 4, 4\) for output_size \(4, 4\) and patch_size \(2, 2\), got \(1, 1, 4, 5\)",
        ),
        (lambda: mk.ops.fold_patches(torch.zeros(1, 1, 4, 4), (4,)), TypeError, r"output_size: expected two integers, got \(4,\)"),
        (
            lambda: mk.ops.fold_patches(torch.zeros(1, 1, 4, 4), (-4, -4)),
            ValueError,
            r"output_size: expected height and width .* got -4 x -4",
        ),
        (lambda: mk.ops.fold_patches(torch.zeros(1, 1, 4, 4), None), TypeError, "output_size: expected two integers, got None"),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
