"""A one-step generator of the ring (`worlds.ring`), trained by the ordinary trainer under exact reference scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAMPLES = 4000
BATCH = 256


def networks(seed: int) -> dict[str, Any]:
    """Generator and assistant before training."""
    from ..worlds import ring

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"generator": ring.Net(), "assistant": ring.Net()}


def load(path: Path, seed: int) -> dict[str, Any]:
    """As `fit` left them."""
    found = networks(seed)
    for name, state in torch.load(path, weights_only=True).items():
        found[name].load_state_dict(state)
    return found


def fit(
    nets: Mapping[str, Any], method: Mapping[str, Any], rounds: int, rate: float, seed: int, folder: Path, stream: int
) -> None:
    """`rounds` updates of the generator, with those of its assistant before each; weights go to `folder`/weights.pt.

    stream: draws are those of this number and the seed.
    """
    from transformers import TrainingArguments

    from ..objectives.method import get_method
    from ..scoring.one_step import OneStep, OneStepScorer
    from ..scoring.schedules import Level
    from ..training.task import Task
    from ..training.trainer import Trainer
    from ..training.turns import Turns
    from ..worlds import ring

    made = get_method(**method)
    needs = made.needs()
    steps = rounds * Turns.of(needs).round
    last = Level(*(torch.tensor([x], dtype=torch.float64) for x in (0.0, 1.0, ring.STEPS - 1.0)))  # it reads z alone
    asked: dict[str, Any] = {"assistant": nets["assistant"], "reference": ring.Exact()}
    scorer: Any = OneStepScorer(
        "sd",
        ring.schedule(),
        (last, "sample"),
        asked,
        ring.SHAPE,
        ring.NO_CAPTION,
        how=OneStep(**needs["generation:one_step"]["how"]),
        seed=10 * seed + stream,
        reward=ring.reward,
    )
    trained = {"assistant": nets["assistant"].requires_grad_(True)}
    task = Task(nets["generator"], ring.Points(steps * BATCH), None, scorer, lambda *_: None, {}, networks=trained)
    folder.mkdir(parents=True, exist_ok=True)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        adam_beta1=0.0,
        adam_beta2=0.99,
        max_grad_norm=0,
        save_strategy="no",
        logging_steps=200,
        report_to="none",
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        seed=seed,
    )
    Trainer(task, made, args, BATCH * args.world_size).train()
    torch.save({name: net.cpu().state_dict() for name, net in nets.items()}, folder / "weights.pt")


@torch.no_grad()
def sample(generator: Any, seed: int, count: int = SAMPLES) -> Tensor:
    """Points [count, 2]; equal seeds see equal noise, whatever the generator."""
    from ..worlds import ring

    z = torch.randn(count, *ring.SHAPE, generator=torch.Generator().manual_seed(1000 + seed))
    return generator(z, torch.full((count,), ring.STEPS - 1))[0].flatten(1)
