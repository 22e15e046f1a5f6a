"""The three properties of 2406.07327, followed while any pairwise method trains: drop, degradation, dispersion.

A fixed set of training pairs, and answers that belong to no pair, are scored every `diagnostics.every` steps without
gradient; each look is a row of metrics.jsonl:

    properties/chosen, rejected, unseen   change of the mean score of an answer since the start (text: nats)
    properties/chosen/on-off, ...         the same by scenario, where the data tells whose samples the two sides are
    properties/margin                     mean difference of the implicit rewards
    properties/drop_ratio                 |change of rejected| / |change of chosen| since the last look
    properties/degrading                  1 while chosen has fallen for `patience` looks in a row and margin has risen
  and for text
    properties/log10_rejected             log10 of the mean probability of a rejected answer
    properties/log_gradient_chosen, _rejected   mean log |dloss/dpi| of a pair (the probabilities' own gradients overflow)
    properties/entropy                    entropy per token along the unseen answers

They are kept nowhere but in the log, which a checkpoint holds: a resumed run goes on with them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from ..config import DiagnosticsConfig
from ..errors import PrefoptError
from ..files import write_atomically
from ..objectives.loss import Loss
from ..objectives.responses import Responses
from ..scoring.base import Batch, Draw
from ..scoring.batch import Collator
from ..scoring.modes import inference
from .engine import Plan
from .processes import decided_by_main
from .sampler import Drawn, data_seed
from .task import Examples
from .trainer import Trainer

log = logging.getLogger("prefopt")

AT_ONCE = 16  # examples in one forward, at most
UNSEEN = "unseen.json"


def follow(trainer: Trainer, config: DiagnosticsConfig, seen: np.ndarray) -> Properties:
    """The callback that looks. seen: the examples of `train` that the run draws (only these have a stored reference).

    PrefoptError where they hold no pairs.
    """
    draw = np.random.default_rng((trainer.args.seed, 2))
    chosen = np.sort(draw.permutation(seen)[: config.pairs])
    followed = _cut(trainer, [_drawn(trainer, trainer.task.train).draw(int(i)) for i in chosen])
    followed = [batch for batch in followed if "pairs" in batch.notes]
    if not followed:
        raise PrefoptError("diagnostics.every: the data holds no pairs of a chosen and a rejected response to follow")
    return Properties(trainer, config, chosen, followed)


def _drawn(trainer: Trainer, examples: Examples) -> Drawn:
    return Drawn(examples, "extras:mismatched" in trainer.needs, data_seed(trainer.args))


def _cut(trainer: Trainer, draws: Sequence[Draw], collate: Callable[..., Any] | None = None) -> list[Any]:
    size = min(AT_ONCE, trainer.args.per_device_train_batch_size)
    return [(collate or trainer.scorer.collate)(draws[i : i + size]) for i in range(0, len(draws), size)]


class Properties(transformers.TrainerCallback):
    """Looks before the first step, every `every` steps, and at the end."""

    def __init__(self, trainer: Trainer, config: DiagnosticsConfig, chosen: np.ndarray, followed: list[Batch]):
        self.trainer, self.config = trainer, config
        self.chosen, self.followed = chosen, followed
        self.unseen: list[Batch] = []
        self.text = trainer.task.unit == "tokens"

    def gather_unseen(self, folder: Path, resumed: bool) -> None:
        """Answers of the starting model, drawn once and kept in `folder`; else the held-out data, if there are any.

        PrefoptError where a resumed run does not find the answers that it followed.
        """
        task = self.trainer.task
        if task.answer is not None and self.config.samples:
            answered = [Draw(e) for e in self._answered(folder / UNSEEN, resumed)]
            self.unseen = _cut(self.trainer, answered, Collator())
        elif task.eval is not None:
            held_out = _drawn(self.trainer, task.eval)
            few = range(min(self.config.pairs, len(task.eval)))
            self.unseen = _cut(self.trainer, [held_out.draw(i) for i in few])

    def _answered(self, path: Path, resumed: bool) -> list[Any]:
        """The followed examples with answers of the starting model in place of their own."""
        examples = [self.trainer.task.train[int(i)] for i in self.chosen]
        answer, config = self.trainer.task.answer, self.config
        assert answer is not None

        def drawn() -> None:
            if not path.exists() and resumed:
                raise PrefoptError(
                    f"{path} is gone: the answers of the starting model that this run follows. Put it back, or start "
                    "again in another folder"
                )
            if not path.exists():
                made = answer(examples, config.samples, config.max_new_tokens, self.trainer.args.seed)
                write_atomically(path, json.dumps({"examples": self.chosen.tolist(), "answers": made}) + "\n")

        decided_by_main(self.trainer.args, drawn)
        try:
            told = json.loads(path.read_text())["answers"]
        except (ValueError, KeyError):
            raise PrefoptError(f"{path} is damaged; put it back, or start again in another folder") from None
        bare: dict[str, Any] = {"pairs": [], "notes": {}, "gold_ids": None, "gold_mask": None}
        return [
            dataclasses.replace(e, response_ids=a, response_mask=[[1] * len(x) for x in a], **bare)
            for e, a in zip(examples, told, strict=True)
        ]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._write(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.config.every == 0 or state.global_step >= state.max_steps:
            self._write(state, control)

    def _write(self, state: Any, control: Any) -> None:
        before = [row for row in state.log_history if "properties/logps_chosen" in row]
        now = {f"properties/{k}": v for k, v in self.look().items()}
        now |= judged(before, now, self.config.patience)
        if now["properties/degrading"] and not any(row["properties/degrading"] for row in before):
            log.warning(
                "step %d: the chosen responses have become less likely %d looks in a row while the margin rose "
                "(degradation): a smaller learning rate, or the method 3d-properties with beta_rejected below "
                "beta_chosen or sft_gamma, counters it",
                state.global_step,
                self.config.patience,
            )
        asked = control.should_log
        self.trainer.log({k: v for k, v in now.items() if math.isfinite(v)})
        control.should_log = asked  # a log resets it, and this one is not the step's own

    def look(self) -> dict[str, float]:
        """All that one look measures, means over the followed pairs and over the unseen answers."""
        trainer, device = self.trainer, self.trainer.args.device
        with inference(trainer.model_wrapped), torch.no_grad(), trainer.compute_loss_context_manager():
            step = trainer._plan([batch.to(device) for batch in self.followed])
            pairs = sum(len(b.notes["pairs"]) for b in self.followed) * trainer.args.world_size
            seen = []
            for batch, known, _ in step.ready:
                r, loss = trainer._run(trainer.model_wrapped, batch, known, step)
                seen.append(_pair_numbers(r, loss, self._slopes(r, step, pairs)))
            found = self._of_pairs({k: torch.cat([s[k] for s in seen]).double().cpu() for k in seen[0]})
            return found | (self._of_unseen() if self.unseen else {})

    def _slopes(self, r: Responses, step: Plan, pairs: int) -> Tensor:
        """[R] d(loss of a pair)/d(score of its response), the change spread evenly over the response's positions."""
        policy = r.scores["policy"]
        leaf = policy.values.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(leaf.device.type, enabled=False):
            loss = self.trainer.method(r.replace(scores={**r.scores, "policy": policy.like(leaf)}))
            total = torch.stack([t.values.sum() / step.totals[k].clamp(min=1) for k, t in loss.terms.items()]).sum()
        slope = torch.autograd.grad(total, leaf)[0] * pairs
        return slope.sum(-1) / (policy.count > 0).sum(-1)

    def _of_pairs(self, x: dict[str, Tensor]) -> dict[str, float]:
        found = {
            "logps_chosen": x["chosen"].mean(),
            "logps_rejected": x["rejected"].mean(),
            "margin": x["margin"].mean(),
        }
        if self.text:
            found["log10_rejected"] = (x["rejected"].logsumexp(0) - math.log(len(x["rejected"]))) / math.log(10)
            for side in ("chosen", "rejected"):
                slope, score = x[f"slope_{side}"], x[side]
                pulls = slope != 0
                found[f"log_gradient_{side}"] = (slope.abs().log() - score)[pulls].mean()  # NaN where none does
        for number, name in enumerate(
            (self.trainer.task.record.get("data") or {}).get("names", {}).get("scenario", [])
        ):
            if (there := x["scenario"] == number).any():
                found |= {f"logps_{side}/{name}": x[side][there].mean() for side in ("chosen", "rejected")}
        return {k: float(v) for k, v in found.items()}

    def _of_unseen(self) -> dict[str, float]:
        needs: dict[str, Any] = {"scores:policy": {}} | ({"scores:entropy": {}} if self.text else {})
        scores = []
        for batch in self.unseen:
            on = batch.to(self.trainer.args.device)
            scores.append(self.trainer.scorer.score(self.trainer.model_wrapped, on, needs)["responses"])
        found = {"logps_unseen": float(torch.cat([s["policy"].sum() for s in scores]).double().mean())}
        if self.text:
            total, tokens = (sum(float(getattr(s["entropy"], a).sum()) for s in scores) for a in ("values", "length"))
            found["entropy"] = total / tokens
        return found


def _pair_numbers(r: Responses, loss: Loss, slopes: Tensor) -> dict[str, Tensor]:
    """Numbers of each pair [P]: scores of both sides, slopes of the loss along them, the implicit reward margin."""
    w, l = r.notes["pairs"].T
    score = r.scores["policy"].sum()
    gap = score[w] - score[l]
    if isinstance(loss.rewards, tuple):
        gap = loss.rewards[0] - loss.rewards[1]
    elif loss.rewards is not None:
        gap = loss.rewards[w] - loss.rewards[l]
    sides = {"chosen": score[w], "rejected": score[l], "slope_chosen": slopes[w], "slope_rejected": slopes[l]}
    return sides | {"margin": gap.detach(), "scenario": r.notes.get("scenario", torch.full_like(w, -1))}


def judged(before: Sequence[dict[str, float]], now: dict[str, float], patience: int) -> dict[str, float]:
    """What needs the looks before: changes since the start, the ratio of the drops, and whether it degrades."""
    looks = [*before, now]
    out: dict[str, float] = {}
    for key in now:
        if key.startswith("properties/logps_"):
            out[key.replace("logps_", "", 1)] = now[key] - looks[0].get(key, math.nan)
    steps = [
        {k: b[f"properties/{k}"] - a[f"properties/{k}"] for k in ("logps_chosen", "logps_rejected", "margin")}
        for a, b in itertools.pairwise(looks)
    ]
    if steps and steps[-1]["logps_chosen"]:
        out["properties/drop_ratio"] = abs(steps[-1]["logps_rejected"] / steps[-1]["logps_chosen"])
    last = steps[-patience:]
    falls = len(last) == patience and all(s["logps_chosen"] < 0 < s["margin"] for s in last)
    return out | {"properties/degrading": float(falls)}
