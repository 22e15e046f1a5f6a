"""KL divergence from the reference, estimated on the policy's own samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefopt.errors import PrefoptError
from prefopt.evaluation.estimate import Estimate, mean

Rows = Sequence[Sequence[float] | np.ndarray]


def kl_k1(policy: Rows, reference: Rows, groups: Sequence[int] | None = None) -> Estimate:
    """k1 = mean over responses of sum_t (log pi - log ref), in nats per response; unbiased, may be negative.

    `policy`, `reference`: one array of per-token log-probs [T_i] per response, at temperature 1, of responses that
    were sampled from the policy at temperature 1 without top-p or top-k (otherwise it is not this KL).
    """
    return mean([float(np.sum(d)) for d in _log_ratios(policy, reference)], groups)


def kl_k3(policy: Rows, reference: Rows, groups: Sequence[int] | None = None) -> Estimate:
    """k3 = mean over responses of sum_t (exp(d) - 1 - d), d = log ref - log pi; never negative, lower variance."""
    return mean([float(np.sum(np.expm1(-d) + d)) for d in _log_ratios(policy, reference)], groups)


def _log_ratios(policy: Rows, reference: Rows) -> list[np.ndarray]:
    if len(policy) != len(reference):
        raise PrefoptError(f"log-probs of {len(policy)} responses for the policy, {len(reference)} for the reference")
    ratios = []
    for i, (p, r) in enumerate(zip(policy, reference, strict=True)):
        p, r = np.asarray(p, dtype=np.float64), np.asarray(r, dtype=np.float64)
        if p.shape != r.shape:
            raise PrefoptError(f"response {i}: {p.size} policy log-probs but {r.size} of the reference")
        ratios.append(p - r)
    return ratios
