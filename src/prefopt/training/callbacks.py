"""What the trainer does between its steps: states that advance, a save that waits, the metrics file and the bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers.trainer_callback import ProgressCallback

if TYPE_CHECKING:
    from .trainer import Trainer


class AfterStep(transformers.TrainerCallback):
    """Advances the method's state, and networks that follow the policy, once an optimiser step."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.method_states.advance(self.trainer._sum)
        for p in (*self.trainer.method_modules.parameters(), *self.trainer.networks.parameters()):
            p.grad = None  # transformers clears the gradients of its model alone

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for moving in self.trainer.task.moving.values():
            moving.after(state.global_step, self.trainer.task.model)


class SaveAfterRound(transformers.TrainerCallback):
    """Where people do a part of every round, it is saved when the round ends: the next start goes on from there."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        rounds = self.trainer.task.rounds
        if rounds is not None and rounds.keep and state.global_step % rounds.steps == 0:
            control.should_save = True


class SaveAfterEvaluation(transformers.TrainerCallback):
    """At the end of an epoch that is evaluated, saves after that: else a kill in between would lose the evaluation."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.waiting = trainer, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        per_epoch = -(-len(self.trainer.task.train) // self.trainer.examples_per_step)
        last = state.global_step % per_epoch == 0 or state.global_step >= state.max_steps
        if control.should_save and last and args.eval_strategy == "epoch":
            control.should_save, self.waiting = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.waiting:
            control.should_save, self.waiting = True, False


class MetricsFile(transformers.TrainerCallback):
    """metrics.jsonl in the run folder: one line a log, rewritten from the checkpoint when a run goes on."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            rows = "".join(json.dumps(row) + "\n" for row in state.log_history)
            (Path(args.output_dir) / "metrics.jsonl").write_text(rows)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            with (Path(args.output_dir) / "metrics.jsonl").open("a") as f:
                f.write(json.dumps(state.log_history[-1]) + "\n")


class Bar(ProgressCallback):
    """The progress bar, with the few numbers that one watches; all of them are in metrics.jsonl."""

    SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "eval_loss", "eval_rewards/accuracies")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        shown = {k.removeprefix("rewards/"): float(logs[k]) for k in self.SHOWN if k in logs}
        if state.is_world_process_zero and self.training_bar is not None and shown:
            self.training_bar.write(
                f"step {state.global_step}: "
                + ", ".join(f"{k.replace('rewards/', '')} {v:.4f}" for k, v in shown.items())
            )
