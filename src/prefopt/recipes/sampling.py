"""What recipes share that sample: prompts, samples in a file, what scores them, and rows made of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..config import RolloutConfig
from ..data.example import Example
from ..data.messages import said
from ..errors import PrefoptError
from ..files import read_jsonl, write_atomically
from ..objectives.method import Method, require
from .stages import text_only
from .steps import Steps

log = logging.getLogger("prefopt")
Scorer = Callable[[Sequence[Any], Sequence[Sequence[str]]], list[list[float]]]
"""(prompts, lists of responses) -> lists of scores."""
Given = TypeVar("Given")
Kind = TypeVar("Kind")


PAIRING = ("use", "pairing", "objective", "soft_labels")
"""Keys of the data section that say how pairs are made."""


def check_rounds(steps: Steps, base: Method) -> None:
    """Rules between the configuration and rounds of `base` on pairs that the recipe makes."""
    config = steps.config
    needs = base.needs()
    pairs = needs.get("notes:pairs")
    require(
        pairs is not None and pairs.get("instead") != "demonstrations" and "scores:policy" in needs,
        f"method.base = {base.name}: {steps.recipe.name} makes pairs, and {base.name} does not compare pairs",
    )
    text_only(steps)
    require(
        config.reference.kind != "adapter_off",
        "reference.kind = adapter_off: from the second round on the adapter is where the round starts; take auto",
    )
    require(
        config.reference.path is None,
        "reference.path has no effect: rollout.reference says what the rounds are measured against",
    )
    require(
        config.rollout.reference == "start" or "scores:reference" in needs,
        f"rollout.reference has no effect: {base.name} uses no reference model",
    )


def check_scored(steps: Steps) -> None:
    """Either a reward or a judge says which answer is better."""
    rollout = steps.config.rollout
    require(
        (rollout.reward is None) != (rollout.judge is None),
        "rollout.reward or rollout.judge says which answer is better: set one of them",
    )


def idle(steps: Steps, section: str, keys: Iterable[str], why: str) -> None:
    """PrefoptError for a key of the section that this recipe does not read."""
    for key in keys:
        require(key not in steps.config.given(section), f"{section}.{key} has no effect: {why}")


def in_rounds(
    steps: Steps,
    base: Method,
    load: Callable[[], Given],
    make: Callable[[Given, int, str, Path], None],
    *,
    file: str = "pairs.jsonl",
    moving: bool = False,
) -> str:
    """Rounds of making data with the model of the moment and training on them; returns the last model's folder.

    load(): what all rounds read, loaded once; while only the plan is examined it is loaded last, because it may take
    long. make(given, number, model, path) writes the round's rows, round-N/FILE. The reference is the first model, or
    with `moving` (or rollout.reference = round) the model at the round's start.
    """
    start = steps.config.model.path
    given = None if steps.checking else load()
    for number in range(steps.config.rollout.rounds):
        place, model = f"round-{number + 1}", start
        rows = steps.make(f"{place}/{file}", lambda path, n=number, m=model: make(given, n, m, path))  # type: ignore
        fixed = not moving and steps.config.rollout.reference == "start"
        reference = steps.config.model.path if fixed else model
        start = steps.train(f"{place}/run", base, model=model, data=steps.written(rows), reference=reference)
    if steps.checking:
        load()
    return start


def in_scored_rounds(steps: Steps, base: Method, make: Callable[[list[Any], Scorer, int, str, Path], None]) -> str:
    """As `in_rounds`, of pairs of samples that a reward or a judge orders: make(prompts, score, number, model, path), the
    prompts those of the round."""
    check_rounds(steps, base)
    check_scored(steps)
    idle(steps, "data", PAIRING, "every round makes its pairs")

    def load() -> tuple[list[Any], Scorer]:
        score = scorer(steps.config.rollout)
        return enough(steps, all_prompts(steps)), score

    def of_round(given: tuple[list[Any], Scorer], number: int, model: str, path: Path) -> None:
        prompts, score = given
        make(drawn(steps, prompts, number), score, number, model, path)

    return in_rounds(steps, base, load, of_round)


def read_answers(steps: Steps, needs: str) -> list[Example]:
    """The examples of the data as a method with these needs takes them; PrefoptError by the rule for rows."""
    from ..data.rule import Ledger
    from ..data.source import read_examples

    config, ledger = steps.config.data, Ledger()
    found = list(read_examples(config, config.paths, ledger, needs={needs}))
    ledger.stop_if_unreadable()
    ledger.stop_if_too_many_dropped(config.max_dropped)
    ledger.report(", ".join(config.paths))
    return found


def all_prompts(steps: Steps) -> list[Any]:
    from ..data.source import read_prompts

    return [e.prompt for e in read_prompts(steps.config.data)[0]]


def enough(steps: Steps, found: list[Kind]) -> list[Kind]:
    """`found`, or PrefoptError if a round draws more."""
    number = steps.config.rollout.prompts_per_round
    require(
        len(found) >= number, f"rollout.prompts_per_round = {number}, and the data has {len(found)} prompts: lower it"
    )
    return found


def drawn(steps: Steps, among: Sequence[Any], number: int) -> list[Any]:
    """Those of round `number`, by the data's seed."""
    places = np.random.default_rng((steps.config.data.seed, number)).choice(
        len(among), steps.config.rollout.prompts_per_round, replace=False
    )
    return [among[i] for i in places]


def sample(
    steps: Steps, model: str, prompts: Sequence[Any], path: Path, n: int, number: int = 0
) -> list[dict[str, Any]]:
    """`n` answers of a model to every prompt, as `rollout` says, in the file `path`: {prompt, responses, ...}.

    A file that holds a part of them is gone on with. number: of the round, which moves the seed.
    """
    from ..models.text import load_text_model
    from ..rollout.samples import generate_file
    from ..rollout.text import Sampling, prompt_encoder
    from ..scoring.identity import identity_of

    r, seed = steps.config.rollout, steps.config.data.seed + number
    loaded = load_text_model(steps.config.model.model_copy(update={"path": model}), trainable=False)
    sampling = Sampling(r.max_new_tokens, r.temperature, r.top_p, 0, n, seed, r.batch_size)
    generate_file(
        loaded.model, loaded.tokenizer, prompts, path, sampling,
        encoder=prompt_encoder(loaded.tokenizer, steps.config.data), identity=identity_of(loaded.model),
    )  # fmt: skip
    return read_jsonl(path)


def scorer(rollout: RolloutConfig) -> Scorer:
    """`rollout.reward`, or by `rollout.judge` the mean win rate of each answer over the prompt's others."""
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


def told(answer: Any) -> str:
    """A response as text: what its last turn says."""
    return answer if isinstance(answer, str) else said(answer[-1])


def pair(prompt: Any, better: Any, worse: Any, **beside: Any) -> dict[str, Any] | None:
    """A row with a preference; None where there is nothing to prefer."""
    first, second = told(better), told(worse)
    if first == second or not (first.strip() and second.strip()):
        return None
    return {"prompt": prompt, "chosen": better, "rejected": worse, **beside}


def ordered(
    prompt: Any, answers: Sequence[Any], scores: Sequence[float], **notes: Sequence[Any]
) -> dict[str, Any] | None:
    """A row of two answers, the one with the higher score chosen; notes: an entry for each answer. None for a tie."""
    if scores[0] == scores[1]:
        return None
    w, l = (0, 1) if scores[0] > scores[1] else (1, 0)
    beside = {"score": scores, **notes}
    sides = {f"{side}_{k}": v[i] for k, v in beside.items() for side, i in (("chosen", w), ("rejected", l))}
    return pair(prompt, answers[w], answers[l], **sides)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any] | None], mend: str) -> None:
    """The rows that are any; PrefoptError, with what to do about it, if none is."""
    given = list(rows)
    made = [json.dumps(row, ensure_ascii=False) + "\n" for row in given if row is not None]
    if not made:
        raise PrefoptError(f"{path}: nothing to train on, all {len(given)} prompts were ties or empty; {mend}")
    log.info("%d rows, %d without a preference", len(made), len(given) - len(made))
    write_atomically(path, "".join(made))
