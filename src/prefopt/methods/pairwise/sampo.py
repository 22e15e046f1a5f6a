from typing import Literal

import torch
from torch import Tensor

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.scores import Scores


@method(
    "sampo",
    paper="2406.10957",
    beta="sum of log-ratios of as many tokens on both sides",
    tags=("length_bias",),
    surveyed=True,
)
def sampo(r: Responses, *, beta: Positive = 0.1, tokens: Literal["sampled", "expected"] = "sampled") -> Loss:
    """SamPO (eq. 9): both sides sum the log-ratios of min(|y_w|, |y_l|) of their tokens, drawn at random.

    sampled: a token's place in the draw is a hash of where it stands and of the two lengths, so that a draw does not
    depend on the batch and a resumed run repeats it. expected: the mean over all draws, min(|y_w|, |y_l|) times the
    mean log-ratio.
    """
    require(not r.given("length"), "has a length rule of its own; put length on dpo")
    w, l = r.pairs()
    m = torch.minimum(w.policy.length, l.policy.length)

    def reward(y: Responses, other: Responses) -> Tensor:
        if tokens == "expected":
            return beta * m * y.log_ratio.mean()
        drawn = lottery(y.policy, other.policy.length).argsort(-1).argsort(-1) < m[:, None]
        return beta * y.log_ratio.where(drawn).sum()

    return prefer(reward(w, l), reward(l, w))


def lottery(s: Scores, seed: Tensor) -> Tensor:
    """[R, T] a number in [0, 1) for every scored position, 2 for the others; seed [R]."""
    mixed = torch.sin(s.position * 12.9898 + (seed * 78.233 + s.length * 37.719)[:, None]) * 43758.5453
    return torch.where(s.count > 0, mixed - mixed.floor(), 2.0)
