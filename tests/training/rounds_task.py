"""A tiny text task whose data the policy makes itself, round by round, in one process or several."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from prefopt import PrefoptError, get_method
from prefopt.data.encode import Encoded
from prefopt.scoring.entry import install
from prefopt.scoring.text import TextScorer
from prefopt.training.rounds import Made, Rounds
from prefopt.training.task import Task
from prefopt.training.trainer import Trainer
from tests.training.small import VOCABULARY, model, weights

PROMPTS, LENGTH = 8, 4


class Answers:
    """Pairs of two answers of the policy: the one with the larger sum of token ids is preferred, ties are left out."""

    def __init__(self, pieces: int = 4, keep: float = 1.0):
        self.pieces, self.most, self.together, self.cost = pieces, PROMPTS, 1, 2 * LENGTH
        self.kept = int(PROMPTS * keep)
        self.made_pieces: list[tuple[int, int]] = []
        self.blank = Encoded([1, 2], [[3] * LENGTH] * 2, [[1] * LENGTH] * 2, [[0, 1]], {}, index=0)

    def piece(self, policy: nn.Module, number: int, piece: int, folder: Path) -> Mapping[str, Tensor]:
        self.made_pieces.append((number, piece))
        size = PROMPTS // self.pieces
        g = [torch.Generator().manual_seed(1000 * number + size * piece + i) for i in range(size)]
        prompts = torch.stack([torch.randint(1, VOCABULARY, (3,), generator=x) for x in g])
        ids = prompts.repeat_interleave(2, 0)
        for _ in range(LENGTH):
            p = policy(input_ids=ids).logits[:, -1].softmax(-1)
            next_ = [torch.multinomial(p[2 * i : 2 * i + 2], 1, generator=x) for i, x in enumerate(g)]
            ids = torch.cat([ids, torch.cat(next_)], 1)
        return {"prompts": prompts, "answers": ids[:, 3:].view(size, 2, LENGTH)}

    def made(self, number: int, pieces: Sequence[Mapping[str, Tensor]], folder: Path) -> Made:
        prompts, answers = (torch.cat([p[k] for p in pieces]) for k in ("prompts", "answers"))
        examples = []
        for i, (prompt, two) in enumerate(zip(prompts.tolist(), answers.tolist(), strict=True)):
            two = sorted(two, key=sum, reverse=True)
            examples.append(Encoded(prompt, two, [[1] * LENGTH] * 2, [[0, 1]], {}, index=i))
        if not examples[: self.kept]:
            raise PrefoptError("no pair")
        return Made(examples[: self.kept], {"sum": float(answers.sum(-1).double().mean())})


def trainer(
    output: Path, maker: Answers | None = None, rounds: int = 3, passes: int = 1, batch: int = 2, accumulate: int = 1,
    given: dict[str, Any] | None = None, keep: bool = False, **more: Any,
) -> Trainer:  # fmt: skip
    method = get_method("cpo")
    defaults = {
        "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "seed": 0,
        "remove_unused_columns": False, "logging_nan_inf_filter": False, "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    args = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        **(defaults | more),
    )
    output.mkdir(parents=True, exist_ok=True)
    per_step = batch * accumulate * args.world_size
    data = Rounds(maker or Answers(), output, rounds, passes, keep)
    data.settle(given or {}, args, per_step)
    scorer = TextScorer(method.needs(), None, notes=["pairs"])
    task = Task(install(model()), data, None, scorer, lambda m, f, _: m.save_pretrained(f), rounds=data)
    return Trainer(task, method, args, per_step)


def main(folder: str, batch: str, accumulate: str) -> None:
    """What each of several processes does."""
    maker, output = Answers(), Path(folder)
    t = trainer(output, maker, batch=int(batch), accumulate=int(accumulate), optim="sgd",
                **({"ddp_backend": "gloo"} if "RANK" in os.environ else {}))  # fmt: skip
    t.train()
    (output / f"pieces-{t.args.process_index}.json").write_text(json.dumps(maker.made_pieces))
    if t.args.process_index == 0:
        torch.save(weights(t.model), output / "weights.pt")
        (output / "logs.json").write_text(json.dumps([r for r in t.state.log_history if "train_loss" not in r]))
