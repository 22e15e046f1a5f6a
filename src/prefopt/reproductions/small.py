"""Runs of seconds on the worlds of letters, through the ordinary trainer, and exact numbers of what came out.

world = language.build(seed=bench.seed)
found = run(bench, "dpo", language, world, {"name": "dpo", "beta": 0.1}, steps=300, learning_rate=2e-3, batch=64)
start = bench.once("start", lambda: measure(world.model, language, world, seed=bench.seed))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..files import read_jsonl
from .bench import Bench, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..rollout.text import Sample
    from ..worlds.cache import World
    from ..worlds.letters import Truth

SAMPLES = 1536
PAIRS = 1000  # of `train`, on which the drift of chosen and rejected answers is measured
STREAM = 7  # of evaluation: prompts and random numbers are other ones than those that the world was built with
CONSTANT_RATE: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "max_grad_norm": 0,  # no clipping
    "save_strategy": "no",
    "logging_first_step": False,
    "disable_tqdm": True,
}


class Letters(Protocol):
    """A module of `prefopt.worlds` whose texts are letters: `language` or `copying`."""

    @property
    def DATA(self) -> dict[str, Any]: ...
    @property
    def TOKENS(self) -> int: ...
    @property
    def TRUTHS(self) -> Mapping[str, Truth]: ...
    def prompts(self, count: int, seed: int = 0) -> list[str]: ...


def bench_at(folder: Path, seed: int = 0) -> Bench:
    """A silent bench of its own, for pilots and tests."""
    return Bench(seed, folder, Progress("pilot", 1, shown=False))


def configuration(
    on: Letters,
    world: World,
    method: Mapping[str, Any],
    *,
    steps: int,
    learning_rate: float,
    batch: int,
    seed: int,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """An ordinary run (less `output`): AdamW with decay 0.01 and a constant rate, no clipping, from the world's model.

    batch: examples of an optimiser step; pairs, or single answers for methods that take those. sections: whatever
    else the configuration needs, section by section ({"reference": {"kind": "frozen"}}); it wins.
    """
    train = CONSTANT_RATE | {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch,
        "logging_steps": max(1, steps // 10),
        "seed": seed,
    }
    content: dict[str, Any] = {
        "method": dict(method),
        "model": {"path": str(world.model)},
        "data": {"path": str(world.train), **on.DATA},
        "train": train,
    }
    for name, values in (sections or {}).items():
        content[name] = content.get(name, {}) | dict(values)
    return content


def run(
    bench: Bench,
    name: str,
    on: Letters,
    world: World,
    method: Mapping[str, Any],
    *,
    steps: int = 300,
    learning_rate: float = 2e-3,
    batch: int = 64,
    samples: int = SAMPLES,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, float]:
    """Train once under `name` (on this bench) and measure; done before, it is read. See `configuration`, `measure`."""

    def work() -> dict[str, float]:
        numbers = {"steps": steps, "learning_rate": learning_rate, "batch": batch, "seed": bench.seed}
        folder = bench.train(name, configuration(on, world, method, sections=sections, **numbers))  # type: ignore[arg-type]
        return measure(folder, on, world, seed=bench.seed, samples=samples)

    return bench.once(name, work)


def measure(folder: Path, on: Letters, world: World, *, seed: int = 0, samples: int = SAMPLES) -> dict[str, float]:
    """What a model does, against the world's own model; nats throughout.

    On fresh samples at temperature 1, one to each of `samples` prompts: the mean of every truth of the world under its
    name; `length` (tokens, the end token too); `finished` (share that ended by itself); `kl`, KL(policy || start)
    summed over an answer's tokens and exact over the vocabulary; `entropy` per token and `entropy_sum` per answer.
    On the first 1000 pairs of `train`: `chosen_change` and `rejected_change`, summed log-probability against the start;
    `seq_kl_chosen` and `seq_kl_rejected`, KL(start || policy) summed along them. On `heldout`: `accuracy`, how often
    the log-ratio of the better answer is the higher.
    """
    model, tokenizer = load_model(folder)
    start, _ = load_model(world.model)
    asked = on.prompts(samples, 10 * seed + STREAM)
    said = sample(model, tokenizer, on, asked, seed)
    texts = [s.text for s in said]
    found = {name: float(np.mean(truth(asked, texts))) for name, truth in on.TRUTHS.items()}
    seen = look(model, start, [(prompt_ids(tokenizer, p), s.token_ids) for p, s in zip(asked, said, strict=True)])
    train = on_pairs(model, start, tokenizer, on, world.train, PAIRS)
    heldout = on_pairs(model, start, tokenizer, on, world.heldout)
    ratio = {side: heldout[side].policy - heldout[side].start for side in heldout}
    return found | {
        "length": float(seen.length.mean()),
        "finished": float(np.mean([s.finished for s in said])),
        "kl": float(seen.kl.mean()),
        "entropy": float(seen.entropy.sum() / seen.length.sum()),
        "entropy_sum": float(seen.entropy.mean()),
        **{f"{side}_change": float((x.policy - x.start).mean()) for side, x in train.items()},
        **{f"seq_kl_{side}": float(x.reverse_kl.mean()) for side, x in train.items()},
        "accuracy": float(np.mean(ratio["chosen"] > ratio["rejected"])),
    }


def sample(model: Any, tokenizer: Any, on: Letters, asked: Sequence[str], seed: int) -> list[Sample]:
    """One plain sample to each prompt; equal seeds see equal random numbers, whatever the model."""
    from ..worlds.letters import answers

    return [group[0] for group in answers(model, tokenizer, asked, 1, on.TOKENS, seed=10 * seed + STREAM)]


def distinct(folder: Path, on: Letters, *, each: int = 256, prompts: int = 4, seed: int = 0) -> float:
    """Different answers among `each` samples of one prompt, averaged over prompts."""
    from ..worlds.letters import answers

    groups = answers(*load_model(folder), on.prompts(prompts, 10 * seed + STREAM), each, on.TOKENS, seed=seed)
    return float(np.mean([len({s.text for s in group}) for group in groups]))


@dataclass(frozen=True)
class Seen:
    """One number for each answer [N], sums over its tokens: log-probabilities, exact KL both ways, entropy, tokens."""

    policy: np.ndarray
    start: np.ndarray
    kl: np.ndarray  # KL(policy || start)
    reverse_kl: np.ndarray  # KL(start || policy)
    entropy: np.ndarray  # of the policy
    length: np.ndarray


def look(policy: Any, start: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], at_once: int = 1024) -> Seen:
    """Both models along (prompt ids, answer ids), whole distributions in double precision."""
    import torch

    parts = []
    with torch.inference_mode():
        for begin in range(0, len(rows), at_once):
            ids, mask = _padded(rows[begin : begin + at_once])
            lp, lq = (_log_probs(m, ids) for m in (policy, start))
            target = ids[:, 1:, None]
            numbers = (
                lp.gather(2, target)[..., 0],
                lq.gather(2, target)[..., 0],
                (lp.exp() * (lp - lq)).sum(-1),
                (lq.exp() * (lq - lp)).sum(-1),
                -(lp.exp() * lp).sum(-1),
                torch.ones(mask.shape, dtype=torch.float64),
            )
            parts.append(torch.stack([(x * mask).sum(1) for x in numbers]))
    return Seen(*torch.cat(parts, 1).numpy())


def on_pairs(
    policy: Any, start: Any, tokenizer: Any, on: Letters, file: Path, limit: int | None = None
) -> dict[str, Seen]:
    """`chosen` and `rejected` of the first `limit` pairs of a file, encoded as training encodes them."""
    encoded = encode_pairs(tokenizer, on, file, limit)
    sides = ("chosen", "rejected")
    return {side: look(policy, start, [(p, r[i]) for p, r in encoded]) for i, side in enumerate(sides)}


def encode_pairs(
    tokenizer: Any, on: Letters, file: Path, limit: int | None = None
) -> list[tuple[list[int], list[list[int]]]]:
    """(prompt ids, [chosen ids, rejected ids]) of the first `limit` pairs, as training encodes them."""
    from ..data.config import DataConfig
    from ..data.encode import Encoder
    from ..data.example import Example

    encoder = Encoder(tokenizer, DataConfig(path=str(file), **on.DATA))
    rows = read_jsonl(file)[:limit]
    made = [encoder(Example(r["prompt"], (r["chosen"], r["rejected"]), pairs=((0, 1),))) for r in rows]
    return [(e.prompt_ids, e.response_ids) for e in made]


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt as the model is fed with it."""
    return list(tokenizer(prompt)["input_ids"])


def load_model(folder: Path) -> tuple[Any, Any]:
    """A finished run's model (an adapter on its base) or a world's, to be read, and its tokenizer."""
    from ..config import ModelConfig
    from ..models.text import load_text_model

    loaded = load_text_model(ModelConfig(path=str(folder)), trainable=False)  # type: ignore[call-arg]
    return loaded.model, loaded.tokenizer


def history(bench: Bench, name: str) -> list[dict[str, Any]]:
    """The log lines of a run on this bench, one for each `logging_steps`."""
    lines = (bench.folder / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def _padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Ids [N, T] padded on the right, where a causal model does not look, and which of [N, T - 1] predict answers."""
    import torch

    width = max(len(p) + len(r) for p, r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.float64)
    for i, (p, r) in enumerate(rows):
        ids[i, : len(p) + len(r)] = torch.tensor([*p, *r])
        mask[i, len(p) : len(p) + len(r)] = 1
    return ids, mask[:, 1:]


def _log_probs(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids[:, :-1]).logits.double().log_softmax(-1)
