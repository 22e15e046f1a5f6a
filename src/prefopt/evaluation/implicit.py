"""Implicit rewards of held-out pairs, from log-probabilities of policy and start model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prefopt.data.encode import Encoded
from prefopt.objectives.method import Method
from prefopt.objectives.responses import Responses
from prefopt.rollout.numbers import Numbers

BETA = 0.1
PLAIN_NEEDS = frozenset({"scores:policy", "scores:reference", "notes:pairs"})


@dataclass(frozen=True)
class Implicit:
    """Rewards of the preferred and of the other response, one of each per pair, and which reward it is."""

    better: np.ndarray
    worse: np.ndarray
    kind: str


def implicit_rewards(
    pairs: Sequence[Encoded], policy: Sequence[Numbers], start: Sequence[Numbers], method: Method | None = None
) -> Implicit:
    """The method's own rewards if log-probs of policy and reference are all it asks for (`start` is the reference).

    Otherwise, or without a method, beta = 0.1 times the log-ratio of whole responses, as in DPO.
    """
    index: list[tuple[int, int]] = []
    new: list[np.ndarray] = []
    old: list[np.ndarray] = []
    for example, p, s in zip(pairs, policy, start, strict=True):
        index += [(len(new) + a, len(new) + b) for a, b in example.pairs]
        new += p["policy"]
        old += s["policy"]
    rows = np.array(index, dtype=int).reshape(-1, 2)
    if method is not None and len(rows) and set(method.needs()) <= PLAIN_NEEDS:
        found = _of_method(method, new, old, rows)
        if found is not None:
            return Implicit(*found, f"that of {method.name}")
    ratio = BETA * np.array([n.sum(dtype=np.float64) - o.sum(dtype=np.float64) for n, o in zip(new, old, strict=True)])
    return Implicit(ratio[rows[:, 0]], ratio[rows[:, 1]], f"{BETA} × log-ratio to the start")


def _of_method(
    method: Method, new: list[np.ndarray], old: list[np.ndarray], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    def padded(values: list[np.ndarray]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(v).double() for v in values], batch_first=True)

    mask = padded([np.ones_like(v) for v in new])
    pairs = torch.from_numpy(rows)
    with torch.no_grad():
        rewards = method(Responses.of(padded(new), padded(old), mask, pairs)).rewards
    if rewards is None:
        return None
    better, worse = rewards if isinstance(rewards, tuple) else (rewards[pairs[:, 0]], rewards[pairs[:, 1]])
    return better.numpy(), worse.numpy()
