"""Evaluation of a language model against the one it started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prefopt.data.encode import Encoded, Encoder
from prefopt.errors import PrefoptError
from prefopt.evaluation.divergence import kl_k1, kl_k3
from prefopt.evaluation.diversity import diversity
from prefopt.evaluation.estimate import mean, paired_difference
from prefopt.evaluation.implicit import Implicit, implicit_rewards
from prefopt.evaluation.observe import Model, Observed, observe, opened
from prefopt.evaluation.preference import accuracy, calibration_error, margin
from prefopt.evaluation.winrate import win_rate
from prefopt.objectives.method import Method
from prefopt.rewards.judges import Judge, JudgeCache, judge_from_reward
from prefopt.rewards.load import Reward
from prefopt.rollout.text import Prompt, Sample, Sampling, prompt_encoder, prompt_text


@dataclass(frozen=True)
class Evaluation:
    """`numbers`: what evaluation.json holds; `samples`: one row per answer, for samples.jsonl."""

    numbers: dict[str, Any]
    samples: list[dict[str, Any]]


def evaluate_text(
    policy: Model,
    start: Model | None,
    tokenizer: Any,
    *,
    prompts: Sequence[Prompt],
    pairs: Sequence[Encoded] = (),
    reward: Reward | None = None,
    judge: Judge | None = None,
    judge_cache: JudgeCache | None = None,
    method: Method | None = None,
    sampling: Sampling | None = None,
    encoder: Encoder | None = None,
    progress: bool = True,
) -> Evaluation:
    """Compares `policy` with `start` on the same prompts (and random numbers), and on held-out `pairs`.

    Models may be given as functions that load them: then only one is in memory at a time. `start` None is the policy
    with its adapter switched off. Without `judge` the reward decides the win rate. `method` says what the implicit
    reward is (by default beta = 0.1 times the log-ratio). Numbers are {value, se, n, ci, dropped}; a group that lacks
    its input (no reward, no pairs) is left out.
    """
    sampling, encoder = sampling or Sampling(), encoder or prompt_encoder(tokenizer)
    if not prompts:
        raise PrefoptError("there are no prompts to evaluate on; give data with at least one prompt")

    def look(which: Model | None, name: str, others: Sequence[Sequence[Sample]] = ()) -> Observed:
        with opened(which, policy) as model:
            seen = observe(
                model, tokenizer, prompts, pairs, sampling, encoder, others=others, name=name, progress=progress
            )
            del model  # the last reference: its memory is free before the next model is loaded
        return seen

    after = look(policy, "policy")
    before = look(start, "start", after.samples)
    table = _Table(prompts, before, after)
    numbers: dict[str, Any] = {"settings": {"prompts": len(prompts), "sampling": asdict(sampling)}, "notes": []}
    if reward is not None:
        numbers["settings"]["reward"] = reward.name
        numbers |= table.rewards(reward)
        judge = judge or judge_from_reward(reward)
    if judge is not None:
        numbers["settings"]["judge"] = judge.name
        numbers["win_rate"] = table.win_rate(judge, judge_cache)
    numbers |= table.distance(sampling, numbers["notes"]) | table.lengths() | table.diversity()
    if pairs:
        implicit = implicit_rewards(pairs, after.pairs, before.pairs, method)
        numbers["settings"] |= {"pairs": len(implicit.better), "implicit_reward": implicit.kind}
        numbers["preference"] = _preference(implicit)
    return Evaluation(numbers, table.rows())


class _Table:
    """All answers of both models side by side: row = (prompt, sample number)."""

    def __init__(self, prompts: Sequence[Prompt], before: Observed, after: Observed):
        self.groups = [i for i, group in enumerate(after.samples) for _ in group]
        self.prompts = [prompts[i] for i in self.groups]
        self.before, self.after = before, after
        self.old = [s for group in before.samples for s in group]
        self.new = [s for group in after.samples for s in group]
        self.rated: tuple[list[float], list[float]] | None = None

    def rewards(self, reward: Reward) -> dict[str, Any]:
        """{"reward": {start, policy, gain}} and, for several objectives, {"objectives": {name: the same}}."""
        new = reward.objectives(self.prompts, [s.text for s in self.new], missing=True)
        old = reward.objectives(self.prompts, [s.text for s in self.old], missing=True)
        key = reward.headline(new)
        self.rated = (old[key], new[key])
        found = {
            name: {
                "start": mean(old[name], self.groups).to_json(),
                "policy": mean(values, self.groups).to_json(),
                "gain": paired_difference(values, old[name], self.groups).to_json(),
            }
            for name, values in new.items()
        }
        rest = {name: entry for name, entry in found.items() if name != key}
        return {"reward": found[key]} | ({"objectives": rest} if rest else {})

    def win_rate(self, judge: Judge, cache: JudgeCache | None) -> dict[str, Any]:
        first, second = judge.both_orders(self.prompts, [s.text for s in self.new], [s.text for s in self.old], cache)
        return win_rate(first, second, self.groups).to_json()

    def distance(self, sampling: Sampling, notes: list[str]) -> dict[str, Any]:
        policy, start = (_flat(n, "policy") for n in (self.after.numbers, self.before.others))
        if not sampling.plain:
            notes.append(
                "KL was estimated on answers that were not sampled at temperature 1 without top-p and top-k: "
                "it describes these answers, and is not the KL of the model."
            )
        estimators = {"k1": kl_k1, "k3": kl_k3}
        return {"kl": {name: kl(policy, start, self.groups).to_json() for name, kl in estimators.items()}}

    def lengths(self) -> dict[str, Any]:
        """Tokens (without the end token), characters, and the share of answers that end by themselves."""
        sides = (("start", self.old), ("policy", self.new))
        return {
            "length": {
                "tokens": {k: mean([_length(s) for s in side], self.groups).to_json() for k, side in sides},
                "characters": {k: mean([len(s.text) for s in side], self.groups).to_json() for k, side in sides},
            },
            "finished": {k: mean([float(s.finished) for s in side], self.groups).to_json() for k, side in sides},
        }

    def diversity(self) -> dict[str, Any]:
        """distinct-n, self-BLEU and entropy of words split at blanks; the models' own next-token entropy."""
        found: dict[str, dict[str, Any]] = {}
        for side, observed in (("start", self.before), ("policy", self.after)):
            words = [[s.text.split() for s in group] for group in observed.samples]
            measures = diversity(words) | {
                "predictive_entropy": mean([_pooled_mean(numbers["entropy"]) for numbers in observed.numbers])
            }
            for name, estimate in measures.items():
                found.setdefault(name, {})[side] = estimate.to_json()
        return {"diversity": found}

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for i, (old, new) in enumerate(zip(self.old, self.new, strict=True)):
            row: dict[str, Any] = {"prompt": prompt_text(self.prompts[i]), "before": old.text, "after": new.text}
            if self.rated is not None:
                row |= {"reward_before": _known(self.rated[0][i]), "reward_after": _known(self.rated[1][i])}
            rows.append(row | {"tokens_before": _length(old), "tokens_after": _length(new)})
        return rows


def _preference(implicit: Implicit) -> dict[str, Any]:
    measures = {"accuracy": accuracy, "margin": margin, "calibration_error": calibration_error}
    return {name: measure(implicit.better, implicit.worse).to_json() for name, measure in measures.items()}


def _flat(numbers: Sequence[dict[str, list[np.ndarray]]], name: str) -> list[np.ndarray]:
    return [row for group in numbers for row in group[name]]


def _pooled_mean(rows: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(rows).mean())


def _length(sample: Any) -> int:
    return len(sample.token_ids) - sample.finished


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
