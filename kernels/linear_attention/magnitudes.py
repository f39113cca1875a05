"""How large the summands of linear attention and of its gradients are.

A sum of products a_i b_i has errors of the size of sum |a_i b_i|, however small it is itself.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import reference


def magnitudes(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, feature_map: str, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sum |a_i b_i| of each element of o and of the gradients of q, k and v, in float64.

    Args:
        q: queries [B, D, N].
        k: keys [B, D, M].
        v: values [B, E, M], or their magnitudes.
        grad: gradient of o [B, E, N], or its magnitudes.
        feature_map: one of reference.FEATURE_MAPS.
        eps: as in reference.linear.
    """
    q, k, v, grad = (x.double() for x in (q, k, v, grad))
    shift = reference.query_shift(q, feature_map)
    phi_q = reference.query_features(q, shift, feature_map)
    state = reference.state(k, v, feature_map)
    total, inverse, _ = reference._denominator(phi_q, state, feature_map, eps)
    phi_q, phi_k = phi_q.abs(), reference.features(k, feature_map).abs()
    v, grad, inverse, total = v.abs(), grad.abs(), inverse.abs(), total.abs()

    def slope(g: Tensor, x: Tensor, backward: Callable[[Tensor], Tensor]) -> Tensor:
        if feature_map != "taylor":
            return backward(g)
        lengths = x.square().sum(-2, keepdim=True).sqrt().clamp(min=reference.SMALLEST_NORM)
        return 2 * g[:, :-1].sum(-2, keepdim=True) / lengths

    sums = phi_k @ v.mT  # [B, R, E]
    along = sums @ grad  # [B, R, N]
    numerator = (phi_q * along).sum(-2, keepdim=True)
    grad_q = slope(
        along * inverse + numerator * inverse.square() * total,
        q,
        lambda g: reference.query_features_backward(g, q, shift, feature_map),
    )
    grad_sums = (phi_q * inverse) @ grad.mT
    grad_ones = (phi_q * numerator * inverse.square()).sum(-1, keepdim=True)
    grad_k = slope(
        grad_sums @ v + grad_ones, k, lambda g: reference.features_backward(g, k, feature_map)
    )
    return (
        (sums.mT @ phi_q) * inverse,
        grad_q.expand_as(q),
        grad_k.expand_as(k),
        grad_sums.mT @ phi_k,
    )
