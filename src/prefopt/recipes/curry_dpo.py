"""Curry-DPO (2403.07230): DPO on ranked lists, from easy pairs to hard ones, with a reference that moves."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..data.curriculum import Curriculum, RankedPair, curriculum
from ..files import write_atomically
from ..methods.pairwise.dpo import dpo
from ..objectives.method import Method, require
from .stages import check_stages, in_stages, loaded, text_only
from .steps import Steps, recipe

if TYPE_CHECKING:
    from ..data.ranked import Ranked

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
    lists = _lists(steps, steps.config.data.paths, in_tokens=criterion == "logp")
    logps = _logps(steps, lists) if criterion == "logp" else None
    scores = [x.scores for x in lists]
    plan = curriculum(scores, stages, criterion=criterion, scope=scope, logps=logps, min_pairs=min_pairs)
    held_out = _held_out(steps)
    data = []
    for number, pairs in enumerate(reversed(plan.stages) if reverse else plan.stages, 1):
        file = steps.make(f"stage-{number}/pairs.jsonl", partial(_write, pairs, lists))
        data.append(steps.written(file, held_out) | {"objective": None, "system": None})
    if not steps.checking:
        _tell(plan)
    examples = [x.example for x in lists]
    return in_stages(steps, base, data, examples, update_reference=update_reference, kl_prompts=kl_prompts)


def _check(steps: Steps, base: Method) -> None:
    text_only(steps)
    needs = base.needs()
    pairs = needs.get("notes:pairs")
    require(
        pairs is not None and pairs.get("instead") != "demonstrations" and "scores:policy" in needs,
        f"method.base = {base.name}: stages hold pairs of answers, and {base.name} does not compare pairs of answers",
    )
    for key in ("pairing", "chosen_rank"):
        idle = f"data.{key} has no effect: curry-dpo pairs the best response with every other"
        require(key not in steps.config.given("data"), idle)


def _lists(steps: Steps, paths: list[str], in_tokens: bool = False) -> list[Ranked]:
    from ..data.encode import Encoder
    from ..data.ranked import read_ranked
    from ..models.text import load_tokenizer

    config = steps.config
    encoder = Encoder(load_tokenizer(config.model.path), config.data) if in_tokens else None
    return read_ranked(config.data, paths, encoder)


def _logps(steps: Steps, lists: Sequence[Ranked]) -> list[list[float]]:
    """Summed log-probabilities of all responses under the first model; zeros while only the plan is examined."""

    def score(path: Path) -> None:
        from ..rollout.numbers import token_numbers

        encoded = [x.encoded for x in lists if x.encoded is not None]
        found = token_numbers(loaded(steps, steps.config.model.path), encoded)
        sums = [[float(row.astype("float64").sum()) for row in numbers["policy"]] for numbers in found]
        write_atomically(path, json.dumps(sums) + "\n")

    path = steps.make("logps.json", score)
    return [[0.0] * len(x.scores) for x in lists] if steps.checking else json.loads(path.read_text())


def _held_out(steps: Steps) -> Path | None:
    """Held-out lists as pairs of the best and every other, once for all stages."""
    if not steps.config.data.eval_paths:
        return None
    lists = _lists(steps, steps.config.data.eval_paths)
    pairs = curriculum([x.scores for x in lists], 1).stages[0]
    return steps.make("held-out.jsonl", partial(_write, pairs, lists))


def _write(pairs: Sequence[RankedPair], lists: Sequence[Ranked], path: Path) -> None:
    from ..data.ranked import pair_row

    rows = (pair_row(lists[p.prompt], p.chosen, p.rejected, gap=p.gap) for p in pairs)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _tell(plan: Curriculum) -> None:
    sizes = ", ".join(str(len(stage)) for stage in plan.stages)
    dropped = "".join(f"; {len(found)} prompts dropped: {reason}" for reason, found in plan.dropped.items())
    log.info("pairs of the stages, easy first: %s%s", sizes, dropped)
