"""What a run is measured by: the same prompts and the same random numbers for every run of a study."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import ModelConfig
from ..data.config import DataConfig
from ..data.encode import Encoder
from ..data.example import Example
from ..data.messages import said
from ..data.prepare import prompt_key
from ..data.rule import Ledger
from ..data.source import read_examples
from ..errors import NotFinite, PrefoptError
from ..evaluation.divergence import kl_k1
from ..evaluation.estimate import Estimate, mean, paired_difference
from ..evaluation.heldout import HeldOut, held_out
from ..evaluation.implicit import implicit_rewards
from ..evaluation.observe import observe, opened
from ..evaluation.preference import accuracy
from ..evaluation.winrate import share
from ..models.text import load_text_model, load_tokenizer
from ..objectives.method import Method
from ..rewards.judges import Judge, load_judge
from ..rewards.load import Reward, load_reward
from ..rollout.numbers import answers, token_numbers
from ..rollout.text import Sample, Sampling, encode_prompt
from .config import EvaluationConfig

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """What a model said, in the order of the prompts: answers to prompt i are those with groups[j] == i."""

    texts: list[str]
    groups: list[int]
    rewards: list[float] | None

    def to_json(self) -> dict[str, Any]:
        return {"texts": self.texts, "groups": self.groups, "rewards": self.rewards}


class Yardstick:
    """Prompts, held-out pairs, reward and judge of a study; measures start models and trained ones."""

    def __init__(self, evaluation: EvaluationConfig, data: DataConfig, start: ModelConfig):
        self.evaluation, self.data, self.start = evaluation, data, start
        self.reward: Reward | None = None
        if evaluation.reward is not None:
            self.reward = load_reward(evaluation.reward, progress=False)
        self.judge: Judge | None = None if evaluation.judge is None else load_judge(evaluation.judge)
        self.tokenizer = load_tokenizer(start.path)
        self.encoder = Encoder(self.tokenizer, data)
        self.source: HeldOut = held_out(data, self.encoder, evaluation.limit)
        self.sampling = Sampling(
            max_new_tokens=evaluation.max_new_tokens,
            temperature=evaluation.temperature,
            n=evaluation.samples,
            seed=evaluation.seed,
            batch_size=evaluation.batch_size,
        )

    def of_start(self) -> dict[str, Any]:
        """The start model's answers (kept for comparison), the rewards of the chosen ones, and its own numbers.

        PrefoptError where the reward gives no finite number: then no run could be measured.
        """
        with opened(lambda: loaded(self.start), lambda: loaded(self.start)) as model:
            seen = observe(model, self.tokenizer, self.source.prompts, (), self.sampling, self.encoder, progress=False)
        said_now = self._answers(seen.samples)
        chosen = self._chosen()
        value = {"length": _length(seen.samples), "ended": _ended(seen.samples)}
        value["win_start"] = Estimate(0.5, 0.0, len(self.source.prompts))  # against itself
        if said_now.rewards is not None:
            value["reward"] = mean(said_now.rewards, said_now.groups)
        rewards = self._rewards(
            [i for i, text in enumerate(chosen) if text is not None], [t for t in chosen if t is not None]
        )
        rated = iter(rewards or [])
        return {
            "answers": said_now.to_json(),
            "chosen": chosen,
            "chosen_rewards": None if rewards is None else [None if t is None else next(rated) for t in chosen],
            "numbers": {name: estimate.to_json() for name, estimate in value.items()},
            "notes": self.source.notes,
        }

    def of_run(self, policy: ModelConfig, start: dict[str, Any], method: Method | None) -> tuple[Numbers, list[dict]]:
        """The numbers of a trained model beside `start` (what `of_start` gave), and its answers as rows."""
        prompts, pairs = self.source.prompts, self.source.pairs
        with opened(lambda: loaded(policy), lambda: loaded(policy)) as model:
            new = observe(model, self.tokenizer, prompts, pairs, self.sampling, self.encoder, progress=False)
        ids = [encode_prompt(self.encoder, p) for p in prompts]
        told = [answers(p, [s.token_ids for s in group]) for p, group in zip(ids, new.samples, strict=True)]
        with opened(lambda: loaded(self.start), lambda: loaded(self.start)) as model:
            old_told = token_numbers(model, told, progress=False)
            old_pairs = token_numbers(model, pairs, progress=False) if pairs else []
        mine, theirs = (_flat(numbers) for numbers in (new.numbers, old_told))
        if not all(np.isfinite(row).all() for row in mine):
            raise NotFinite("the trained model gives its own answers no finite probability")
        said_now = self._answers(new.samples)
        found: Numbers = self._compared(said_now, start)
        found["kl"] = kl_k1(mine, theirs, said_now.groups)
        found["kl_per_token"] = _per_token(mine, theirs)
        found |= {"length": _length(new.samples), "ended": _ended(new.samples)}
        if pairs:
            found |= _of_pairs(pairs, new.pairs, old_pairs, method)
        return {k: v.to_json() if isinstance(v, Estimate) else v for k, v in found.items()}, self._rows(said_now, start)

    def _compared(self, now: Answers, start: dict[str, Any]) -> Numbers:
        """Reward, its gain, and win rates against the start's answers and the held-out chosen ones; ties one half."""
        before = start["answers"]
        chosen = [start["chosen"][i] for i in now.groups]
        found: Numbers = {}
        if now.rewards is not None:
            found["reward"] = mean(now.rewards, now.groups)
            found["gain"] = paired_difference(now.rewards, before["rewards"], now.groups)
        if self.judge is not None:
            found["win_start"] = share(self._judged(now, before["texts"]), now.groups)
            found["win_chosen"] = share(self._judged(now, chosen), now.groups)
        elif now.rewards is not None:
            rated = [math.nan if r is None else r for r in (start["chosen_rewards"][i] for i in now.groups)]
            found["win_start"] = share(wins(now.rewards, before["rewards"]), now.groups)
            found["win_chosen"] = share(wins(now.rewards, rated), now.groups)
        if not any(text is not None for text in chosen):
            found.pop("win_chosen", None)
        return found

    def _judged(self, now: Answers, others: Sequence[str | None]) -> np.ndarray:
        """P(now is better) in both orders, averaged; NaN where there is nothing to compare with."""
        assert self.judge is not None
        known = [i for i, text in enumerate(others) if text is not None]
        prompts = [self.source.prompts[now.groups[i]] for i in known]
        sides = [now.texts[i] for i in known], [others[i] for i in known]
        first, second = self.judge.both_orders(prompts, *sides)
        found = np.full(len(others), math.nan)
        found[known] = (np.array(first) + np.array(second)) / 2
        return found

    def _answers(self, samples: Sequence[Sequence[Sample]]) -> Answers:
        groups = [i for i, group in enumerate(samples) for _ in group]
        texts = [s.text for group in samples for s in group]
        return Answers(texts, groups, self._rewards(groups, texts))

    def _rewards(self, groups: Sequence[int], texts: Sequence[str]) -> list[float] | None:
        if self.reward is None:
            return None
        return self.reward([self.source.prompts[i] for i in groups], list(texts)) if texts else []

    def _chosen(self) -> list[str | None]:
        """The better answer of each prompt's first held-out pair; None where the file has no pair."""
        if not self.source.pairs:
            return [None] * len(self.source.prompts)
        paths = self.data.eval_paths or self.data.paths
        known: dict[int, str] = {}
        for example in read_examples(self.data, paths, Ledger(), needs={"pairs"}):
            if example.pairs:
                known.setdefault(prompt_key(example), _text(example, example.pairs[0][0]))
        return [known.get(prompt_key(prompt)) for prompt in self.source.prompts]

    def _rows(self, now: Answers, start: dict[str, Any]) -> list[dict[str, Any]]:
        before = start["answers"]
        rows = []
        for j, (i, text) in enumerate(zip(now.groups, now.texts, strict=True)):
            row = {"prompt": self.source.prompts[i].prompt, "before": before["texts"][j], "after": text}
            if now.rewards is not None:
                row |= {"reward_before": before["rewards"][j], "reward_after": now.rewards[j]}
            rows.append(row)
        return rows


def loaded(config: ModelConfig) -> torch.nn.Module:
    """A model to measure, where it computes fastest."""
    return load_text_model(config, trainable=False).model.to("cuda" if torch.cuda.is_available() else "cpu")


def wins(scores: Sequence[float], others: Sequence[float]) -> np.ndarray:
    """[N] 1 where the score is the higher one, 1/2 where both are equal, 0 where it is lower, NaN where one is missing.

    PrefoptError if there are not as many of the others: a judge that answered too little would be compared askew.
    """
    a, b = np.asarray(scores, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if a.shape != b.shape:
        raise PrefoptError(f"{len(a)} scores are to be compared with {len(b)}: give one for each answer")
    found = np.where(a > b, 1.0, np.where(a == b, 0.5, 0.0))
    return np.where(np.isnan(a) | np.isnan(b), math.nan, found)


def _of_pairs(pairs: Sequence[Any], new: Sequence[Any], old: Sequence[Any], method: Method | None) -> Numbers:
    """Accuracy by the method's own reward and by the log-ratio (which all methods share), and the chosen side's drift."""
    own, ratio = implicit_rewards(pairs, new, old, method), implicit_rewards(pairs, new, old)
    drift = [
        float(after["policy"][w].sum() - before["policy"][w].sum())
        for example, after, before in zip(pairs, new, old, strict=True)
        for w, _ in example.pairs
    ]
    return {
        "accuracy": accuracy(own.better, own.worse),
        "ratio_accuracy": accuracy(ratio.better, ratio.worse),
        "chosen_drift": mean(drift),
    }


def _per_token(policy: list[np.ndarray], start: list[np.ndarray]) -> float:
    """Total log-ratio over total tokens: not a mean of per-answer means."""
    total = sum(float(p.sum(dtype=np.float64) - s.sum(dtype=np.float64)) for p, s in zip(policy, start, strict=True))
    return total / max(1, sum(len(p) for p in policy))


def _length(samples: Sequence[Sequence[Sample]]) -> Estimate:
    """Tokens of the answers, end token included, as training scores them."""
    return _mean_of(samples, lambda s: float(len(s.token_ids)))


def _ended(samples: Sequence[Sequence[Sample]]) -> Estimate:
    return _mean_of(samples, lambda s: float(s.finished))


def _mean_of(samples: Sequence[Sequence[Sample]], of: Callable[[Sample], float]) -> Estimate:
    return mean([of(s) for group in samples for s in group], [i for i, group in enumerate(samples) for _ in group])


def _flat(numbers: Sequence[dict[str, list[np.ndarray]]]) -> list[np.ndarray]:
    return [row for group in numbers for row in group["policy"]]


def _text(example: Example, index: int) -> str:
    response = example.responses[index]
    return response if isinstance(response, str) else said(response[-1])


def read_start(path: Path) -> dict[str, Any]:
    """What `of_start` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
