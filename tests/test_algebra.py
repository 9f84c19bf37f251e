"""The rewrites that kernels and compiler stand on are exact in real arithmetic: each is held against its definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mvit_kernels import reference
from mvit_kernels.reference import folding


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def assert_exact(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-10 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("patch", [(2, 2), (1, 2), (4, 2), (3, 5)])
def test_patches_are_strides(patch: tuple[int, int]) -> None:
    ph, pw = patch
    x = randn(2, 3, 4 * ph, 3 * pw)
    phases = [x[:, :, i::ph, j::pw].flatten(2) for i in range(ph) for j in range(pw)]
    assert torch.equal(reference.unfold_patches(x, patch), torch.stack(phases, dim=2))
    assert torch.equal(reference.fold_patches(torch.stack(phases, dim=2), (4 * ph, 3 * pw), patch), x)


def test_norm_projection_and_feed_forward_commute_with_unfold() -> None:
    x, weight, gamma, beta = randn(2, 8, 6, 4), randn(5, 8, 1, 1), randn(8), randn(8)

    def layer(t: torch.Tensor) -> torch.Tensor:
        return F.silu(F.conv2d(F.group_norm(t, 1, gamma, beta), weight))

    assert_exact(reference.unfold_patches(layer(x)), layer(reference.unfold_patches(x)))


@pytest.mark.parametrize("ratio", [0.0, 3.0, 30.0, 100.0])
@pytest.mark.parametrize("patch", [None, (2, 2)])
def test_block_without_keys_query_bias_or_norm_pass(ratio: float, patch: tuple[int, int] | None) -> None:
    dim = 12
    x = randn(3, dim, 4, 10) + ratio
    weights = [randn(dim), randn(dim), randn(1 + 2 * dim, dim), randn(1 + 2 * dim), randn(dim, dim), randn(dim)]
    expected = reference.separable_attention_block(x, *weights, patch_size=patch)
    assert_exact(reference.separable_attention_block_reduced(x, *weights, patch_size=patch), expected)
    weights[3][0] += 7.0  # the query bias cancels
    assert_exact(reference.separable_attention_block(x, *weights, patch_size=patch), expected)


@pytest.mark.parametrize("ratio", [0.0, 3.0, 100.0])
@pytest.mark.parametrize(("size", "patch"), [((3, 7, 4, 10), None), ((3, 7, 4, 10), (2, 2)), ((2, 1, 1, 1), None)])
def test_gradients_of_the_block_without_keys_query_bias_or_norm_pass(ratio: float, size: tuple[int, ...], patch) -> None:
    dim = size[1]
    weights = [randn(dim), randn(dim), randn(1 + 2 * dim, dim, 1, 1), randn(1 + 2 * dim), randn(dim, dim, 1, 1), randn(dim)]
    leaves = [each.requires_grad_() for each in (randn(*size) + ratio, *weights)]
    dy = randn(*size)
    expected = torch.autograd.grad(reference.separable_attention_block(*leaves, patch_size=patch), leaves, dy)
    with torch.no_grad():
        actual = reference.separable_attention_block_reduced_backward(dy, *leaves[:-1], patch_size=patch)
    for ours, exact in zip(actual, expected, strict=True):
        assert_exact(ours, exact)


def test_norm_folds_into_the_next_weights_and_epilogue() -> None:
    x, weight, bias, gamma, beta = 30 + randn(2, 8, 5, 7), randn(6, 8, 1, 1), randn(6), randn(8), randn(8)
    expected = F.conv2d(F.group_norm(x, 1, gamma, beta, 1e-5), weight, bias)
    folded_w, folded_b = folding.fold_norm_affine(weight, bias, gamma, beta)
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    actual = F.conv2d(x - mean, folded_w) * torch.rsqrt(variance + 1e-5) + folded_b[:, None, None]
    assert_exact(actual, expected)


def test_layer_norm_folds_into_the_next_linear() -> None:
    x, weight, gamma, beta = randn(5, 9, 8), randn(6, 8), randn(8), randn(8)
    folded_w, folded_b = folding.fold_norm_affine(weight, None, gamma, beta)
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    actual = ((x - mean) @ folded_w.T) * torch.rsqrt(variance + 1e-5) + folded_b
    assert_exact(actual, F.linear(F.layer_norm(x, (8,), gamma, beta, 1e-5), weight))


def test_norm_does_not_fold_into_a_padded_convolution() -> None:
    with pytest.raises(ValueError, match=r"fold_norm_affine: weight: expected a matrix or a 1x1 convolution, got shape \(6, 8, 3, 3\)"):
        folding.fold_norm_affine(randn(6, 8, 3, 3), None, randn(8), randn(8))


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("with_bias", [True, False])
def test_batch_norm_folds_into_its_convolution(groups: int, with_bias: bool) -> None:
    x, weight = randn(2, 8, 6, 6), randn(8, 8 // groups, 3, 3)
    bias = randn(8) if with_bias else None
    gamma, beta, mean, variance = randn(8), randn(8), randn(8), randn(8).square()
    expected = F.batch_norm(F.conv2d(x, weight, bias, padding=1, groups=groups), mean, variance, gamma, beta, eps=1e-5)
    folded = folding.fold_batch_norm(weight, bias, gamma, beta, mean, variance, 1e-5)
    assert_exact(F.conv2d(x, *folded, padding=1, groups=groups), expected)


def test_adjacent_linear_convolutions_merge() -> None:
    x, first, b1, second, b2 = randn(2, 6, 4, 5), randn(9, 6, 1, 1), randn(9), randn(7, 9, 1, 1), randn(7)
    merged = folding.merge_linear(first, b1, second, b2)
    assert_exact(F.conv2d(x, *merged), F.conv2d(F.conv2d(x, first, b1), second, b2))


def test_pooling_moves_before_the_last_projection_which_joins_the_classifier() -> None:
    x, project, b1, classify, b2 = randn(2, 6, 4, 5), randn(9, 6, 1, 1), randn(9), randn(10, 9), randn(10)
    expected = F.linear(F.conv2d(x, project, b1).mean(dim=(2, 3)), classify, b2)
    weight, bias = folding.merge_linear(project.flatten(1), b1, classify, b2)
    assert_exact(F.linear(x.mean(dim=(2, 3)), weight, bias), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [1, 2, 7, 8])
@pytest.mark.parametrize("tile_rows", [1, 3, 4])
def test_inverted_residual_runs_on_row_tiles(stride: int, height: int, tile_rows: int) -> None:
    x = randn(2, 4, height, 6)
    weights = [randn(8, 4, 1, 1), randn(8), randn(8, 1, 3, 3), randn(8), randn(4, 8, 1, 1), randn(4)]
    expected = reference.inverted_residual(x, *weights, stride=stride, residual=stride == 1)
    actual = reference.inverted_residual_tiled(x, *weights, stride=stride, residual=stride == 1, tile_rows=tile_rows)
    assert_exact(actual, expected)
