"""Finite response spaces: a policy is logits over whole responses, so losses, optima and theorems are checked exactly.

A response is one position, its score the log-probability of the whole: sums and means agree, and every method, the
engine and the trainer run on it as they do on text. A policy is any module whose `forward()` answers logits
[prompts, responses]: `Table` (free logits), a log-linear model, a small network that shares parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from ..objectives.loss import Loss
from ..objectives.method import Method
from ..objectives.responses import Responses
from ..objectives.scores import Scores
from .base import Draw, Needs, Shapes, asked_of
from .batch import collate_notes

SCORES = ("policy", "reference", "entropy", "log_collision", "token_kl")


class Table(nn.Module):
    """A policy of free logits [prompts, responses]: every distribution, nothing shared."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.detach().clone())

    def forward(self) -> Tensor:
        return self.logits


@dataclass(frozen=True)
class Choice:
    """A prompt by its number with some of its responses: what `Encoded` is for text."""

    prompt: int
    response_ids: Sequence[int]
    pairs: Sequence[Sequence[int]] = ()
    notes: Mapping[str, list[Any]] = field(default_factory=dict)
    file: str = ""
    row: int = 0


@dataclass(frozen=True)
class TabularBatch:
    """Row sets of (prompt [R], response [R]) numbers, "responses" among them, and what is known about them."""

    rows: Mapping[str, tuple[Tensor, Tensor]]
    notes: Mapping[str, Tensor]
    filler: bool = False

    @property
    def size(self) -> int:
        return len(self.rows["responses"][0])

    def to(self, device: torch.device | str) -> TabularBatch:
        rows = {name: (x.to(device), y.to(device)) for name, (x, y) in self.rows.items()}
        return replace(self, rows=rows, notes={k: v.to(device) for k, v in self.notes.items()})

    def counts(self) -> dict[str, Tensor]:
        return {name: torch.ones(len(x), 1) for name, (x, _) in self.rows.items()}


def pairs_of(prompts: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], **notes: Tensor) -> TabularBatch:
    """P pairs as a batch: rows 0 .. P-1 are the chosen. notes keep their precision (data files are float32).

    PrefoptError where a pair prefers a response to itself, or the three lists differ in length.
    """
    x, w, l = (torch.as_tensor(v, dtype=torch.long) for v in (prompts, chosen, rejected))
    if not len(x) == len(w) == len(l):
        raise PrefoptError(
            f"{len(x)} prompts, {len(w)} chosen and {len(l)} rejected responses: give one of each a pair"
        )
    if (same := (w == l).nonzero()).numel():
        raise PrefoptError(f"pair {int(same[0])}: response {int(w[same[0]])} is both chosen and rejected")
    pairs = torch.arange(2 * len(x)).view(2, -1).T
    return TabularBatch(
        {"responses": (x.repeat(2), torch.cat([w, l]))}, {"pairs": pairs, "group": x.repeat(2), **notes}
    )


class TabularScorer:
    """Answers a method's questions about a finite policy (`base.Scorer`).

    reference: probabilities [prompts, responses] as rows that sum to 1, without zeros. others: further models by name,
    the same way, or any table of numbers per response (`reward=`): a module is asked anew, a tensor is taken as it is.
    token_kl is KL(reference || policy) over the whole row of the response's prompt, entropy and
    log_collision (log of the sum of squares) those of the policy's row.
    """

    def __init__(self, reference: Tensor | None = None, **others: Tensor | nn.Module):
        self.reference = None if reference is None else probabilities(reference).log()
        self.others = others

    def shapes(self, needs: Needs) -> Shapes:
        """A table has no features."""
        return {}

    def offers(self) -> set[str]:
        own = {"policy", "entropy", "log_collision"} if self.reference is None else set(SCORES)
        return {f"scores:{s}" for s in own | set(self.others)} | {"notes:pairs", "notes:group"}

    def collate(self, draws: Sequence[Draw]) -> TabularBatch:
        examples: list[Choice] = [draw[0] for draw in draws]
        x = torch.tensor([e.prompt for e in examples for _ in e.response_ids])
        y = torch.tensor([r for e in examples for r in e.response_ids])
        return TabularBatch({"responses": (x, y)}, collate_notes(examples))

    def score(
        self, model: nn.Module, batch: TabularBatch, needs: Needs, grad: bool = True
    ) -> dict[str, dict[str, Scores]]:
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            logp = torch.log_softmax(model(), -1)
            asked = asked_of(needs, grad)
            return {s: {n: self._answer(n, logp, *batch.rows[s]) for n in names} for s, names in asked.items()}

    def _answer(self, name: str, logp: Tensor, x: Tensor, y: Tensor) -> Scores:
        if name in self.others:
            other = self.others[name]
            values = (other() if isinstance(other, nn.Module) else other)[x, y]
        elif name == "entropy":
            values = -(logp.exp() * logp).sum(-1)[x]
        elif name == "log_collision":
            values = (2 * logp).logsumexp(-1)[x]
        elif name == "policy":
            values = logp[x, y]
        elif self.reference is None or name not in SCORES:
            raise PrefoptError(f"there are no scores '{name}': give TabularScorer({name}=[prompts, responses])")
        elif name == "reference":
            values = self.reference[x, y]
        else:
            values = (self.reference.exp() * (self.reference - logp)).sum(-1)[x]
        return Scores(values[:, None], torch.ones_like(values)[:, None])

    def responses(self, model: nn.Module, batch: TabularBatch, method: Method) -> Responses:
        """The batch as the method sees it, with gradient into the model."""
        needs = method.needs()
        scored = self.score(model, batch, needs, grad=False)
        scored = {**scored, **self.score(model, batch, needs)}
        extras = {name: Responses(scores=s) for name, s in scored.items() if name != "responses"}
        return Responses(scored.get("responses", {}), batch.notes, extras)


def probabilities(rows: Tensor) -> Tensor:
    """`rows` [prompts, responses] as they are, or PrefoptError: each must sum to 1 and hold no zero."""
    if rows.dim() != 2 or not bool((rows > 0).all()):
        raise PrefoptError("a table of probabilities is [prompts, responses], every entry above 0")
    if (off := ((rows.sum(-1) - 1).abs() > 1e-6).nonzero()).numel():
        raise PrefoptError(
            f"the probabilities of prompt {int(off[0])} sum to {float(rows[off[0]].sum()):.6g}, not to 1"
        )
    return rows


def tilted(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """[prompts, responses] reference * exp(reward / beta), normalised: the optimum of reward - beta KL(pi || ref)."""
    return torch.softmax(reference.log() + reward / beta, -1)


@dataclass(frozen=True)
class Step:
    """What a full-batch fit shows before its update number `index`."""

    index: int
    logp: Tensor  # [prompts, responses]
    loss: Loss
    responses: Responses


def fit(
    method: Method,
    model: nn.Module,
    scorer: TabularScorer,
    batch: TabularBatch,
    steps: int,
    optimiser: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    watch: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """Full-batch training; `watch` sees steps 0 .. `steps`, each before its update. Returns log pi at the end.

    The method's states advance once a step, its own parameters train beside the model's.
    """
    owned = method.init(scorer.responses(model, batch, method))
    states, modules = dict(owned.states), owned.modules
    optimise = optimiser(itertools.chain(model.parameters(), *(m.parameters() for m in modules.values())))
    for index in range(steps + 1):
        r = scorer.responses(model, batch, method).replace(states=states, modules=modules)
        loss = method(r)
        logp = torch.log_softmax(model(), -1).detach()
        watch(Step(index, logp, loss, r))
        if index < steps:
            optimise.zero_grad()
            loss.scalar.backward()
            optimise.step()
            states = states | {k: u.advance(states[k], u.sum, u.count).detach() for k, u in loss.updates.items()}
    return logp
