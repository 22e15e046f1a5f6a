"""Diff-Instruct* on points of the plane: two tiny networks in turn, without files, in one process or several."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from prefopt import get_method
from prefopt.scoring.one_step import OneStep, OneStepScorer
from prefopt.scoring.schedules import Level
from prefopt.training.task import Task
from prefopt.training.trainer import Trainer
from prefopt.worlds import ring

LAST = Level(*(torch.tensor([x]) for x in (0.0, 1.0, 999.0)))
METHOD: dict[str, Any] = {"alpha_rew": 2.0, "alpha_cfg": 0.0, "assistant_steps": 2, "assistant_rate": 3.0}


def networks(seed: int = 0) -> tuple[ring.Net, ring.Net]:
    """Generator and assistant."""
    torch.manual_seed(seed)
    return ring.Net(8, 1), ring.Net(8, 1)


def trainer(
    output: Path,
    examples: int = 26,
    batch: int = 4,
    accumulate: int = 1,
    hyper: dict[str, Any] | None = None,
    **given: Any,
) -> Trainer:
    """Rounds of two steps of the assistant and one of the generator."""
    generator, assistant = networks()
    method = get_method("diff-instruct-star", **(METHOD | (hyper or {})))
    nets = {"assistant": assistant, "reference": ring.Exact()}
    scorer: Any = OneStepScorer(
        "sd", ring.schedule(), (LAST, "sample"), nets, ring.SHAPE, ring.NO_CAPTION, how=OneStep(), reward=ring.reward
    )
    task = Task(
        generator, ring.Points(examples), ring.Points(5), scorer, lambda *_: None, {}, networks={"assistant": assistant}
    )
    defaults: dict[str, Any] = {
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    args = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        **(defaults | given),
    )
    output.mkdir(parents=True, exist_ok=True)
    return Trainer(task, method, args, batch * accumulate * args.world_size)


def weights(t: Trainer) -> dict[str, torch.Tensor]:
    """Of both networks, as one vector each."""
    both = {"": t.task.model, "assistant": t.networks["assistant"]}
    return {name: torch.cat([p.detach().flatten() for p in net.parameters()]) for name, net in both.items()}


def main(folder: str, batch: str, accumulate: str) -> None:
    """What each of several processes does."""
    out = Path(folder)
    more: dict[str, Any] = {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    t = trainer(out, batch=int(batch), accumulate=int(accumulate), optim="sgd", max_grad_norm=0.5, **more)
    t.train()
    found = t.evaluate()
    if t.args.process_index == 0:
        torch.save(weights(t), out / "weights.pt")
        rows = [r for r in t.state.log_history if "loss" in r]
        (out / "logs.json").write_text(json.dumps({"train": rows, "eval": found}))
