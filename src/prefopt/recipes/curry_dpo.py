"""Curry-DPO (2403.07230): DPO on ranked lists, from easy pairs to hard ones, with a reference that moves."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..config import RunConfig
from ..data.curriculum import TIED, Curriculum, RankedPair, curriculum
from ..data.example import Example, axes
from ..errors import PrefoptError
from ..files import write_atomically
from ..methods.pairwise.dpo import dpo
from ..objectives.method import Method, require
from .stages import check_stages, in_stages, loaded, text_only
from .steps import Steps, recipe

log = logging.getLogger("prefopt")


@recipe("curry-dpo", "2403.07230", ("ranked lists",), tags=("distinguishability", "dynamic"), surveyed=True)
def curry_dpo(
    steps: Steps,
    *,
    base: Method = dpo(),
    stages: int = 3,
    criterion: Literal["score", "logp"] = "score",
    scope: Literal["local", "global"] = "local",
    min_pairs: int = 1,
    reverse: bool = False,
    update_reference: bool = True,
    kl_prompts: int = 64,
) -> str:
    """Curry-DPO: -log sigmoid(beta (h_w - h_l)), h = log pi(y)/pi_ref(y), on the best response against every other, large
    gaps first; pi_ref of a stage = the model at the end of the stage before.

    base: any pairwise method. criterion: the gap is one of scores, or of the first model's log-probabilities (sums). scope:
    sort the pairs of each prompt, or all together. min_pairs: drop prompts with fewer; by default they fill the easy stages.
    reverse (hard first), update_reference off (always the first model): the paper's ablations.
    Optimiser and schedule restart with each stage; `train.num_train_epochs` and `max_steps` are those of one stage.
    stage-N/ hold pairs, run and the KL to the first model, measured on kl_prompts prompts.
    """
    _check(steps, base)
    check_stages(steps, base, update_reference, kl_prompts)
    lists = _read(steps.config, steps.config.data.paths, by_logp=criterion == "logp")
    logps = _logps(steps, lists) if criterion == "logp" else None
    plan = curriculum(
        [x.scores for x in lists], stages, criterion=criterion, scope=scope, logps=logps, min_pairs=min_pairs
    )
    held_out = _held_out(steps)
    data = []
    for number, pairs in enumerate(reversed(plan.stages) if reverse else plan.stages, 1):
        file = steps.make(f"stage-{number}/pairs.jsonl", partial(_write, pairs, lists))
        data.append(steps.written(file, held_out) | {"objective": None, "system": None})
    if not steps.checking:
        _tell(plan)
    examples = [x.example for x in lists]
    return in_stages(steps, base, data, examples, update_reference=update_reference, kl_prompts=kl_prompts)


class Ranked(NamedTuple):
    """A list of responses in which something beats something; scores: higher is better."""

    example: Example
    scores: list[float]
    encoded: Any = None  # in tokens, where log-probabilities are asked


def _check(steps: Steps, base: Method) -> None:
    text_only(steps)
    needs = base.needs()
    pairs = needs.get("notes:pairs")
    require(
        pairs is not None and pairs.get("instead") != "demonstrations" and "scores:policy" in needs,
        f"method.base = {base.name}: stages hold pairs of answers, and {base.name} does not compare pairs of answers",
    )
    for key in ("pairing", "chosen_rank"):
        if key in steps.config.given("data"):
            raise PrefoptError(f"data.{key} has no effect: curry-dpo pairs the best response with every other")


def _read(config: RunConfig, paths: list[str], by_logp: bool = False) -> list[Ranked]:
    """The lists of these files by the rule for rows; those whose scores all tie are dropped and counted."""
    from ..data.encode import Encoder
    from ..data.rule import Ledger
    from ..data.source import read_examples
    from ..models.text import load_tokenizer

    encoder = Encoder(load_tokenizer(config.model.path), config.data) if by_logp else None
    ledger, found = Ledger(), []
    for example in read_examples(config.data, paths, ledger):
        with ledger.row(example):
            ranked = _ranked(example, config)
            found.append(ranked if encoder is None else ranked._replace(encoded=encoder(ranked.example)))
    ledger.stop_if_unreadable()
    ledger.stop_if_too_many_dropped(config.data.max_dropped)
    ledger.report(", ".join(paths))
    return found


def _ranked(example: Example, config: RunConfig) -> Ranked:
    """The list and its scores, without repetitions of the best response."""
    from ..data.fields import TeachesNothing, Unreadable
    from ..data.messages import same
    from ..data.pairing import keep_responses, order

    values = order(example, config.data)
    if len(example.responses) < 2:
        raise Unreadable(f"has {len(example.responses)} responses, and a curriculum needs ranked lists", "missing")
    if values is None:
        raise Unreadable("has nothing that orders its responses: scores or ranks", "missing")
    if any(v != v for v in values):
        raise Unreadable("has a response without a score", "missing")
    best = max(range(len(values)), key=values.__getitem__)
    kept = [i for i, y in enumerate(example.responses) if i == best or not same(y, example.responses[best])]
    if not any(values[i] < values[best] for i in kept):
        raise TeachesNothing(TIED)
    return Ranked(keep_responses(example, kept), [values[i] for i in kept])


def _logps(steps: Steps, lists: Sequence[Ranked]) -> list[list[float]]:
    """Summed log-probabilities of all responses under the first model; zeros while only the plan is examined."""

    def score(path: Path) -> None:
        from ..rollout.numbers import token_numbers

        found = token_numbers(loaded(steps, steps.config.model.path), [x.encoded for x in lists], progress=True)
        sums = [[float(row.astype("float64").sum()) for row in numbers["policy"]] for numbers in found]
        write_atomically(path, json.dumps(sums) + "\n")

    path = steps.make("logps.json", score)
    return [[0.0] * len(x.scores) for x in lists] if steps.checking else json.loads(path.read_text())


def _held_out(steps: Steps) -> Path | None:
    """Held-out lists as pairs of the best and every other, once for all stages."""
    paths = steps.config.data.eval_paths
    if not paths:
        return None
    lists = _read(steps.config, paths)
    pairs = curriculum([x.scores for x in lists], 1).stages[0]
    return steps.make("held-out.jsonl", partial(_write, pairs, lists))


def _write(pairs: Sequence[RankedPair], lists: Sequence[Ranked], path: Path) -> None:
    """Pairs as rows, with what is known of them and where they come from."""
    write_atomically(path, "".join(json.dumps(_row(p, lists[p.prompt]), ensure_ascii=False) + "\n" for p in pairs))


def _row(pair: RankedPair, ranked: Ranked) -> dict[str, Any]:
    example = ranked.example
    row = {
        "prompt": example.prompt,
        "chosen": example.responses[pair.chosen],
        "rejected": example.responses[pair.rejected],
        "chosen_score": ranked.scores[pair.chosen],
        "rejected_score": ranked.scores[pair.rejected],
        "gap": pair.gap,
        "from": example.origin,
    }
    row |= {n: v[0] for n, v in example.notes.items() if axes(n) == "P" and len(v) == 1}
    given = {"gold": example.gold, "tools": example.tools, "chat_template_kwargs": dict(example.template_kwargs)}
    return row | {name: value for name, value in given.items() if value}


def _tell(plan: Curriculum) -> None:
    sizes = ", ".join(str(len(stage)) for stage in plan.stages)
    dropped = "".join(f"; {len(found)} prompts dropped: {reason}" for reason, found in plan.dropped.items())
    log.info("pairs of the stages, easy first: %s%s", sizes, dropped)
