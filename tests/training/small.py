"""A tiny text task without files: what the trainer's tests train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from prefopt import get_method
from prefopt.data.encode import Encoded
from prefopt.scoring.entry import install
from prefopt.scoring.reference import StoredReference
from prefopt.scoring.text import TextScorer
from prefopt.training.sampler import Drawn
from prefopt.training.task import Task
from prefopt.training.trainer import Trainer

VOCABULARY = 60


class Listed:
    """Examples in a list."""

    def __init__(self, examples: list[Encoded]):
        self.examples = examples
        self.tokens = np.array([e.tokens for e in examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Encoded:
        return self.examples[i]


def examples(n: int, seed: int = 0, labels: bool = False, gold: bool = False) -> Listed:
    """Pairs with prompts of 2 to 9 and answers of 1 to 7 tokens; gold answers of 1 to 19."""
    g = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return g.integers(1, VOCABULARY, g.integers(low, high)).tolist()

    made = []
    for i in range(n):
        answers = [ids(1, 8), ids(1, 8)]
        notes = {"label": [True, False]} if labels else {}
        masks = [[1] * len(a) for a in answers]
        made.append(Encoded(ids(2, 10), answers, masks, [[0, 1]], notes, index=i))
        if gold:
            made[-1].gold_ids = ids(1, 20)
            made[-1].gold_mask = [1] * len(made[-1].gold_ids)
    return Listed(made)


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def task(method: Any, n: int, cache: Path, policy: Any = None, held_out: int = 0) -> Task:
    needs = method.needs()
    policy = install(policy if policy is not None else model())
    kinds = {"labels": "notes:label" in needs, "gold": "extras:gold" in needs}
    train, held = examples(n, **kinds), examples(held_out, 1, **kinds) if held_out else None
    reference = StoredReference(policy, cache) if "scores:reference" in needs else None
    scorer = TextScorer(needs, reference, notes=["pairs", "label"])
    if reference is not None:
        sets = [Drawn(s, "extras:mismatched" in needs) for s in (train, held) if s is not None]
        reference.prepare(policy, scorer.collate, sets, progress=False)
    return Task(policy, train, held, scorer, lambda m, f, _: m.save_pretrained(f), {"reference_is_start": True})


def trainer(
    output: Path,
    name: str = "dpo",
    n: int = 24,
    batch: int = 4,
    accumulate: int = 1,
    policy: Any = None,
    held_out: int = 0,
    hyper: dict[str, Any] | None = None,
    **given: Any,
) -> Trainer:
    method = get_method(name, **(hyper or {}))
    defaults: dict[str, Any] = {
        "learning_rate": 1e-2,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    args = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        **(defaults | given),
    )
    output.mkdir(parents=True, exist_ok=True)
    made = task(method, n, output.parent / "cache", policy, held_out)
    return Trainer(made, method, args, batch * accumulate * args.world_size)


def weights(m: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in m.parameters()])
