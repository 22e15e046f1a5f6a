"""Online DPO (2402.04792): rounds of sampling from the policy, scoring, pairing and training.

Each round samples several answers to fresh prompts from the policy of the moment, has a reward function (or a judge)
order them, makes a pair of the best and the worst of each prompt, and trains one pass of any pairwise method on the
pairs. The reference is the first start, or moves to each round's start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RolloutConfig
from ..errors import PrefoptError
from ..files import write_atomically
from ..methods.pairwise.dpo import dpo
from ..objectives.method import Method, require
from .steps import Steps, recipe

log = logging.getLogger("prefopt")


@recipe("online-dpo", "2402.04792", ("prompts", "rollout.reward or rollout.judge"), ("rollout",), tags=("online",))
def online_dpo(steps: Steps, *, base: Method = dpo()) -> str:
    """Online DPO: rounds of sampling from the policy of the moment, scoring, pairing and training.

    base: the pairwise method of every round, with its hyperparameters.
    round-N/ hold each round's samples, pairs and run.
    """
    _check(steps, base)
    prompts, score = ([], None) if steps.checking else _loaded(steps)
    start = steps.config.model.path
    for number in range(steps.config.rollout.rounds):
        start = _round(steps, number, base, start, prompts, score)
    if steps.checking:  # last, because it may take long
        _loaded(steps)
    return start


def _round(steps: Steps, number: int, base: Method, start: str, prompts: Sequence[Any], score: Any) -> str:
    """Sample, pair, train; returns the folder of the trained model."""
    rollout, place = steps.config.rollout, f"round-{number + 1}"
    pairs = steps.make(f"{place}/pairs.jsonl", lambda path: _pairs(steps, number, start, prompts, score, path))
    reference = steps.config.model.path if rollout.reference == "start" else start
    return steps.train(f"{place}/run", base, model=start, data=steps.written(pairs), reference=reference)


def _pairs(steps: Steps, number: int, start: str, prompts: Sequence[Any], score: Any, path: Path) -> None:
    """One round's samples beside its pairs. (What samples is imported late: the catalogue lists recipes without it.)"""
    from ..models.text import load_text_model
    from ..rollout.samples import generate_file
    from ..rollout.text import Sampling, prompt_encoder
    from ..scoring.identity import identity_of

    rollout, seed = steps.config.rollout, steps.config.data.seed
    chosen = np.random.default_rng((seed, number)).choice(len(prompts), rollout.prompts_per_round, replace=False)
    policy = load_text_model(steps.config.model.model_copy(update={"path": start}), trainable=False)
    sampling = Sampling(
        rollout.max_new_tokens, rollout.temperature, rollout.top_p, 0,
        rollout.samples_per_prompt, seed + number, rollout.batch_size,
    )  # fmt: skip
    samples = path.with_name("samples.jsonl")
    generate_file(
        policy.model, policy.tokenizer, [prompts[i] for i in chosen], samples, sampling,
        encoder=prompt_encoder(policy.tokenizer, steps.config.data), identity=identity_of(policy.model),
    )  # fmt: skip
    _write_pairs(samples, path, score)


def _check(steps: Steps, base: Method) -> None:
    """What the configuration alone shows to be wrong."""
    from ..models.text import model_kind

    config, rollout = steps.config, steps.config.rollout
    require(
        "notes:pairs" in base.needs(),
        f"method.base = {base.name}: online rounds make pairs, and {base.name} does not compare pairs",
    )
    require(model_kind(config.model.path) == "text", "online-dpo samples text; the model is a diffusion pipeline")
    require(
        config.reference.kind != "adapter_off",
        "reference.kind = adapter_off: from the second round on the adapter is where the round starts; take auto",
    )
    require(
        (rollout.reward is None) != (rollout.judge is None),
        "rollout.reward or rollout.judge says which answer is better: set one of them",
    )
    for key in ("use", "pairing", "objective", "soft_labels"):
        require(
            key not in config.given("data"),
            f"data.{key} has no effect: every round pairs its best answers with its worst",
        )
    require(
        config.reference.path is None,
        "reference.path has no effect: rollout.reference says what the rounds are measured against",
    )
    require(
        rollout.reference == "start" or "scores:reference" in base.needs(),
        f"rollout.reference has no effect: {base.name} uses no reference model",
    )


def _loaded(steps: Steps) -> tuple[list[Any], Any]:
    """Prompts, and what scores the answers to them."""
    from ..data.source import read_prompts

    rollout = steps.config.rollout
    prompts, score = [e.prompt for e in read_prompts(steps.config.data)[0]], _scorer(rollout)
    require(
        len(prompts) >= rollout.prompts_per_round,
        f"rollout.prompts_per_round = {rollout.prompts_per_round}, and the data has {len(prompts)} prompts: lower it",
    )
    return prompts, score


def _scorer(rollout: RolloutConfig) -> Any:
    """(prompts, lists of responses) -> lists of scores. A judge gives each answer its mean win rate over the others."""
    from ..rewards.judges import load_judge
    from ..rewards.load import load_reward

    if rollout.reward is not None:
        reward = load_reward(rollout.reward)

        def by_reward(prompts: Sequence[Any], lists: Sequence[Sequence[str]]) -> list[list[float]]:
            flat = reward([p for p, x in zip(prompts, lists, strict=True) for _ in x], [y for x in lists for y in x])
            values = iter(flat)
            return [[next(values) for _ in x] for x in lists]

        return by_reward
    judge = load_judge(str(rollout.judge))
    return lambda prompts, lists: [_tournament(judge, p, x) for p, x in zip(prompts, lists, strict=True)]


def _tournament(judge: Any, prompt: Any, answers: Sequence[str]) -> list[float]:
    """Mean probability of beating another answer to the same prompt, both orders averaged."""
    n = len(answers)
    games = [(i, j) for i in range(n) for j in range(i + 1, n)]
    first, second = judge.both_orders(
        [prompt] * len(games), [answers[i] for i, _ in games], [answers[j] for _, j in games]
    )
    won = np.zeros(n)
    for (i, j), a, b in zip(games, first, second, strict=True):
        p = (a + b) / 2  # both are the probability that the first answer is better
        won[i] += p
        won[j] += 1 - p
    return (won / (n - 1)).tolist()


def _write_pairs(samples: Path, pairs: Path, score: Any) -> None:
    """Best against worst of every prompt, with where each side comes from; ties make no pair, no pair at all is an error."""
    rows = [json.loads(line) for line in samples.read_text().splitlines() if '"responses"' in line]
    scores = score([r["prompt"] for r in rows], [r["responses"] for r in rows])
    lines, ties = [], 0
    for row, values in zip(rows, scores, strict=True):
        best, worst = int(np.argmax(values)), int(np.argmin(values))
        if values[best] == values[worst] or not _said(row["responses"], best, worst):
            ties += 1
            continue
        made: Mapping[str, Any] = {
            "prompt": row["prompt"],
            "chosen": row["responses"][best],
            "rejected": row["responses"][worst],
            "chosen_score": values[best],
            "rejected_score": values[worst],
        }
        lines.append(json.dumps(made, ensure_ascii=False) + "\n")
    if not lines:
        raise PrefoptError(
            f"{samples}: no pair could be made, all {ties} prompts were ties or empty; raise rollout.temperature, or give "
            "another reward"
        )
    log.info("%d pairs, %d prompts without a preference", len(lines), ties)
    write_atomically(pairs, "".join(lines))


def _said(answers: Sequence[str], *which: int) -> bool:
    return all(answers[i].strip() for i in which)
