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

from ..config import RolloutConfig, RunConfig
from ..data.source import read_prompts
from ..errors import PrefoptError
from ..files import write_atomically
from ..models.text import load_text_model, model_kind
from ..objectives.method import get_method
from ..rewards.judges import Judge, load_judge
from ..rewards.load import load_reward
from ..rollout.samples import generate_file
from ..rollout.text import Sampling, prompt_encoder
from ..scoring.identity import identity_of
from ..training.effect import refuse_without_effect
from ..training.folder import RunFolder
from ..training.run import Outcome, arguments, train

NAME, PAPER = "online-dpo", "2402.04792"
NEEDS = ("prompts", "rollout.reward or rollout.judge")
log = logging.getLogger("prefopt")


def hyperparameters() -> list[dict[str, Any]]:
    rows = [
        {"name": "base", "default": "dpo", "values": "the pairwise method of every round, with its hyperparameters"}
    ]
    for key, field in RolloutConfig.model_fields.items():
        rows.append({"name": f"rollout.{key}", "default": field.default, "values": field.description or ""})
    return rows


def run(config: RunConfig, *, dry_run: bool = False) -> Outcome:
    """Train online as configured. Every finished step (samples, pairs, a round's model) is on disk: a run that was
    stopped goes on where it stopped, and ends as if it had not been.

    The final model is in the output folder itself; round-N/ hold each round's samples, pairs and run.
    """
    _check(config)
    score = _scorer(config.rollout)
    prompts = [e.prompt for e in read_prompts(config.data)[0]]
    if len(prompts) < config.rollout.prompts_per_round:
        raise PrefoptError(
            f"rollout.prompts_per_round = {config.rollout.prompts_per_round}, and the data has {len(prompts)} prompts: lower it"
        )
    folder = RunFolder(config.output)
    if dry_run:
        return Outcome(folder.path, "dry run, nothing else to estimate before the first samples")
    state = folder.claim(config)
    try:
        if state == "finished":
            return Outcome(folder.path, "was finished", record=folder.record)
        folder.start(config, {"method": dict(config.method), "modality": "text", "rounds": config.rollout.rounds})
        start = config.model.path
        for number in range(config.rollout.rounds):
            start = _round(config, folder.path / f"round-{number + 1}", number, start, prompts, score)
        last = load_text_model(config.model.model_copy(update={"path": start, "adapter": None}), trainable=False)
        last.model.save_pretrained(folder.path)
        last.tokenizer.save_pretrained(folder.path)
        _collect_metrics(folder.path, config.rollout.rounds)
        folder.finish()
        return Outcome(folder.path, "finished", record=folder.record)
    finally:
        folder.release()


def _round(config: RunConfig, place: Path, number: int, start: str, prompts: Sequence[Any], score: Any) -> str:
    """Sample, pair, train; returns the folder of the trained model. Steps that are finished are not done again."""
    place.mkdir(exist_ok=True)
    rollout = config.rollout
    chosen = np.random.default_rng((config.data.seed, number)).choice(
        len(prompts), rollout.prompts_per_round, replace=False
    )
    pairs = place / "pairs.jsonl"
    if not pairs.exists():
        policy = load_text_model(config.model.model_copy(update={"path": start, "adapter": None}), trainable=False)
        sampling = Sampling(
            rollout.max_new_tokens, rollout.temperature, rollout.top_p, 0,
            rollout.samples_per_prompt, config.data.seed + number, rollout.batch_size,
        )  # fmt: skip
        encoder = prompt_encoder(policy.tokenizer)
        texts = [prompts[i] for i in chosen]
        generate_file(
            policy.model, policy.tokenizer, texts, place / "samples.jsonl", sampling,
            encoder=encoder, identity=identity_of(policy.model),
        )  # fmt: skip
        _write_pairs(place / "samples.jsonl", pairs, score)
    child = _child(config, place, start, pairs)
    outcome = train(child)
    if outcome.status not in ("finished", "was finished"):
        raise PrefoptError(f"round {number + 1} did not finish; start the same command again")
    return str(outcome.folder)


def _child(config: RunConfig, place: Path, start: str, pairs: Path) -> RunConfig:
    """One round as an ordinary run: the base method, from the last round's model, on this round's pairs."""
    base = config.method.get("base", "dpo")
    base = {"name": base} if isinstance(base, str) else dict(base)
    data = config.data.model_copy(
        update={
            "path": str(pairs),
            "columns": {},
            "layout": "auto",
            "limit": None,
            "split": "train",
            "subset": None,
            "seed": config.data.seed if config.data.eval_fraction else 0,
        }
    )
    moved: dict[str, Any] = {}
    uses_reference = "scores:reference" in get_method(**base).needs()
    if uses_reference and config.rollout.reference == "start" and start != config.model.path:
        moved["reference"] = config.reference.model_copy(update={"path": config.model.path})
    content = config.model_copy(
        update={
            "method": base,
            "model": config.model.model_copy(update={"path": start}),
            "data": data,
            "output": str(place / "run"),
            "rollout": RolloutConfig(),
            **moved,
        }
    )
    content.model_fields_set.discard("rollout")
    return content


def _check(config: RunConfig) -> None:
    """Everything that can be wrong before the first sample."""
    extra = set(config.method) - {"name", "base"}
    if extra:
        raise PrefoptError(f"method.{min(extra)}: online-dpo has only `base`, a method with its hyperparameters")
    base = config.method.get("base", "dpo")
    method = get_method(base) if isinstance(base, str) else get_method(**base)
    if "notes:pairs" not in method.needs():
        raise PrefoptError(
            f"method.base = {method.name}: online rounds make pairs, and {method.name} does not compare pairs"
        )
    if model_kind(config.model.path) != "text":
        raise PrefoptError("online-dpo samples text; the model is a diffusion pipeline")
    if config.model.adapter is not None:
        raise PrefoptError(
            "model.adapter: rounds start from whole models; merge the adapter of a round, or train all weights"
        )
    if (config.rollout.reward is None) == (config.rollout.judge is None):
        raise PrefoptError("rollout.reward or rollout.judge says which answer is better: set one of them")
    for key in ("use", "pairing", "objective", "soft_labels"):
        if key in config.given("data"):
            raise PrefoptError(f"data.{key} has no effect: every round pairs its best answers with its worst")
    if config.reference.path is not None:
        raise PrefoptError("reference.path has no effect: rollout.reference says what the rounds are measured against")
    if config.rollout.reference == "round" and "scores:reference" not in method.needs():
        raise PrefoptError(f"rollout.reference has no effect: {method.name} uses no reference model")
    place = Path(config.output) / "round-1"
    child = _child(config, place, config.model.path, place / "pairs.jsonl")
    refuse_without_effect(child, method, "text")
    arguments(child)


def _scorer(rollout: RolloutConfig) -> Any:
    """(prompts, lists of responses) -> lists of scores. A judge gives each answer its mean win rate over the others."""
    if rollout.reward is not None:
        reward = load_reward(rollout.reward)

        def by_reward(prompts: Sequence[Any], lists: Sequence[Sequence[str]]) -> list[list[float]]:
            flat = reward([p for p, x in zip(prompts, lists, strict=True) for _ in x], [y for x in lists for y in x])
            values = iter(flat)
            return [[next(values) for _ in x] for x in lists]

        return by_reward
    judge = load_judge(str(rollout.judge))
    return lambda prompts, lists: [_tournament(judge, p, x) for p, x in zip(prompts, lists, strict=True)]


def _tournament(judge: Judge, prompt: Any, answers: Sequence[str]) -> list[float]:
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


def _collect_metrics(folder: Path, rounds: int) -> None:
    """All rounds' logs in one file, steps counted on."""
    lines, before = [], 0
    for number in range(1, rounds + 1):
        rows = [json.loads(x) for x in (folder / f"round-{number}" / "run" / "metrics.jsonl").read_text().splitlines()]
        lines += [json.dumps(row | {"step": row["step"] + before, "round": number}) + "\n" for row in rows]
        before += max((row["step"] for row in rows), default=0)
    write_atomically(folder / "metrics.jsonl", "".join(lines))
