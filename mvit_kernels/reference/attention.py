"""Multi-head softmax attention with bias and talking heads (arXiv 1706.03762, equation 1; 2003.02436), in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

Tensor = torch.Tensor
Product = Callable[[Tensor, Tensor], Tensor]


class Mixtures(NamedTuple):
    """What is done to the scores and to the weights of all heads; (H, ...) each, or None.

    bias (H, N, M) is added to the scores behind their mixture. scores (H, H): head h gets sum_g scores[h, g] of those of head g. weights
    (H, H) and shift (H,): the same of what softmax gives, and what is added to it.
    """

    bias: Tensor | None = None
    scores: Tensor | None = None
    weights: Tensor | None = None
    shift: Tensor | None = None


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mixtures: Mixtures | None = None,
    softmax: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """y[h, n] = sum_m w[h, n, m] v[h, m], w = mixed softmax over m of mixed scale q[h, n].k[h, m] + bias.

    q (B, N, H c), k (B, M, H c), v (B, M, H d), head after head; returns (B, N, H d). softmax: what is in its place, of scores (..., M).
    """
    mixtures = mixtures or Mixtures()
    _, _, _, weights = _weights(q, k, heads, scale, mixtures, softmax)
    return _together(weights @ _apart(v, heads))


def attention_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mixtures: Mixtures, product: Product = torch.matmul
) -> tuple[Tensor, Tensor, Tensor, Mixtures]:
    """The gradients with respect to q, k, v and what there is of the mixtures.

    With s the scores, l = mix(s) + bias, p = softmax(l), w = mix(p):  dv = w^T dy;  dw = dy v^T;  dp = mix^T(dw);
    dl = p (dp - sum_m p dp) = dbias;  ds = mix^T(dl);  dq = scale ds k;  dk = scale ds^T q. A mixture's own gradient is the sum over
    images, queries and keys of what goes out of it times what came in. product: of the matrices of heads.
    """
    scores, _, shares, weights = _weights(q, k, heads, scale, mixtures, product=product)
    query, key, value, grad = (_apart(each, heads) for each in (q, k, v, dy))
    dweights = product(grad, value.mT)
    dshares = dweights if mixtures.weights is None else _mixed(mixtures.weights.T, dweights)
    dlogits = shares * (dshares - (shares * dshares).sum(dim=-1, keepdim=True))
    dscores = dlogits if mixtures.scores is None else _mixed(mixtures.scores.T, dlogits)
    gradients = Mixtures(
        None if mixtures.bias is None else dlogits.sum(0),
        None if mixtures.scores is None else _all_sums(dlogits, scores),
        None if mixtures.weights is None else _all_sums(dweights, shares),
        None if mixtures.shift is None else dweights.sum((0, 2, 3)),
    )
    dscores = dscores * scale
    dquery, dkey = product(dscores, _side_by_side(key)), product(dscores.mT, query)
    return _together(dquery), _together(dkey), _together(product(weights.mT, grad)), gradients


def _weights(
    q: Tensor, k: Tensor, heads: int, scale: float, mixtures: Mixtures, softmax: Callable[[Tensor], Tensor] | None = None,
    product: Product = torch.matmul,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(B, H, N, M) each: scores, what softmax is taken of, its result, and what values are multiplied by."""
    scores = product(_apart(q, heads) * scale, _apart(k, heads).mT)
    logits = scores if mixtures.scores is None else _mixed(mixtures.scores, scores)
    if mixtures.bias is not None:
        logits = logits + mixtures.bias
    shares = logits.softmax(dim=-1) if softmax is None else softmax(logits)
    weights = shares if mixtures.weights is None else _mixed(mixtures.weights, shares)
    if mixtures.shift is not None:
        weights = weights + mixtures.shift[:, None, None]
    return scores, logits, shares, weights


def _mixed(mixture: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("hg,bgnm->bhnm", mixture, x)


def _all_sums(a: Tensor, b: Tensor) -> Tensor:
    """(H, H): of a[h] b[g] over images, queries and keys; those over keys first, as one sum of so many terms loses digits."""
    return (a.transpose(1, 2) @ _side_by_side(b.permute(0, 2, 3, 1))).sum((0, 1))


def _side_by_side(x: Tensor) -> Tensor:
    """(..., M, c), the same with the values of a channel side by side: a product over M is then as many sums as vectors have lanes, as in
    torch's own gradients. With channels side by side MKL adds up narrow matrices row after row, with 2.4 times the error at M = 300."""
    return x.mT.contiguous().mT


def _apart(x: Tensor, heads: int) -> Tensor:
    """(B, N, H c) -> (B, H, N, c)"""
    return x.unflatten(2, (heads, x.shape[2] // heads)).transpose(1, 2)


def _together(x: Tensor) -> Tensor:
    """(B, H, N, c) -> (B, N, H c)"""
    return x.transpose(1, 2).flatten(2)
