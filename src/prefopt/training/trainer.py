"""The one trainer: transformers.Trainer, with the step counted before it is computed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from ..errors import NotFinite, PrefoptError, first_line
from ..objectives.loss import Loss
from ..objectives.method import Method
from ..objectives.responses import Responses
from ..objectives.scores import ROUNDING
from ..scoring.base import Batch, Scored
from . import checkpoints
from .callbacks import AfterStep, Bar, MetricsFile, SaveAfterEvaluation, SaveAfterRound
from .engine import Meter, Plan, States, made_up, measures, part, plan, responses
from .names import learnt, to_log
from .rounds import RoundSampler, enter_round
from .sampler import Drawn, StepLoader, StepSampler, data_seed
from .task import Examples, Task
from .turns import Turns, act, groups, refuse_shared

START_TOLERANCE_HALF = 0.1  # how far policy and reference may differ per token before the first step; float32: ROUNDING
HALF = (torch.bfloat16, torch.float16)


class Trainer(transformers.Trainer):
    """Trains any method on any modality.

    A micro-batch's loss is `part(method(responses))`: sums divided by counts of the whole optimiser step over all
    processes, so 1 x 16, 4 x 4 and 16 x 1 (batch x accumulation), on one process or several, are one step.
    """

    def __init__(self, task: Task, method: Method, args: transformers.TrainingArguments, examples_per_step: int):
        self.task, self.method, self.scorer = task, method, task.scorer
        self.needs, self.asked = method.needs(), method.turns()
        self.turns, self.turn = Turns.of(self.needs), ""
        refuse_shared(task.networks, task.model)
        self.networks = nn.ModuleDict(task.networks).to(args.device)
        self.examples_per_step = examples_per_step
        self.method_states, self.method_modules = States(), nn.ModuleDict()
        self.meters = {"train": Meter(), "eval": Meter()}
        self._tokens, self._since = 0, time.monotonic()
        self._keep = args.save_total_limit
        args.save_total_limit = None  # rotated here, after a checkpoint is known to be whole
        super().__init__(
            model=task.model,
            args=args,
            train_dataset=task.train,
            eval_dataset=task.eval,
            processing_class=task.processing_class,
            data_collator=dict,  # never called: the loaders collate
            callbacks=[AfterStep(self), SaveAfterRound(self), SaveAfterEvaluation(self), MetricsFile()],
        )
        if self.pop_callback(ProgressCallback):
            self.add_callback(Bar)
        self.loss_is_scaled_for_ga = True  # `part` divides by counts of the whole step

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._initialise_method()
        return super().train(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            enter_round(self, kwargs["epoch"])
            super()._run_epoch(*args, **kwargs)
        else:  # resumed from the last checkpoint, in the middle of an epoch
            self.control.should_training_stop = True

    # ---- data

    def get_train_dataloader(self) -> StepLoader:
        a = self.args
        if self.task.rounds is not None:
            share = (a.gradient_accumulation_steps, a.process_index, a.world_size)
            rounds = RoundSampler(self.task.rounds, self.examples_per_step, *share, data_seed(a))
            return self._loader(self.task.train, rounds)
        sampler = self._sampler(self.task.train, self.examples_per_step, a.gradient_accumulation_steps, shuffle=True)
        return self._loader(self.task.train, sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> StepLoader:
        examples: Any = self.task.eval if eval_dataset is None else eval_dataset
        per_step = self.args.per_device_eval_batch_size * self.args.world_size
        return self._loader(examples, self._sampler(examples, per_step, 1, shuffle=False))

    def _sampler(self, examples: Examples, per_step: int, micro: int, shuffle: bool) -> StepSampler:
        a = self.args
        return StepSampler(examples.tokens, per_step, micro, a.process_index, a.world_size, data_seed(a), shuffle)

    def _loader(self, examples: Examples, sampler: StepSampler) -> StepLoader:
        drawn = Drawn(examples, "extras:mismatched" in self.needs, sampler.seed)
        return StepLoader(drawn, sampler, self.scorer.collate, self.args.dataloader_num_workers)

    def num_examples(self, dataloader: Any) -> int:
        return len(dataloader.dataset)

    def get_total_train_batch_size(self, args: Any) -> int:
        return self.examples_per_step  # a step's size is what it was told, however a token budget cuts it

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """All micro-batches of a step, on the device, counted, with extras that carry no gradient scored."""
        batches = [b.to(device) for _, b in zip(range(num_batches), epoch_iterator, strict=False)]
        self._tokens += sum(b.size for b in batches if not b.filler)
        self.turn = self.turns.at(self.state.global_step)
        act(self.networks, self.turn)
        made = self._plan(batches, self.turn)
        return made.ready, made

    def _plan(self, batches: list[Batch], turn: str = "") -> Plan:
        needs = self.asked[turn]
        shapes = self.scorer.shapes(needs)
        known = self._with_extras(batches)
        return plan(self.method, needs, known, *self._owned(), self._sum, shapes, self._ahead, self._join, turn)

    def _ahead(self, batch: Batch) -> Scored:
        """The scores of the step to come, for statistics of the policy."""
        with self.compute_loss_context_manager(), torch.no_grad():
            return self.scorer.score(self.model_wrapped, batch, self.needs, grad=True)

    def _with_extras(self, batches: list[Batch]) -> Iterator[tuple[Batch, Scored]]:
        constant = any(k.startswith("extras:") and not spec.get("grad") for k, spec in self.needs.items())
        for batch in batches:
            yield batch, self._score(self.model_wrapped, batch, grad=False) if constant else {}

    @property
    def _step_wide(self) -> bool:
        """Does the method need scores of the whole step before the first backward?"""
        return any(k.startswith("statistics:") for k in self.needs)

    def _score(self, model: nn.Module, batch: Batch, grad: bool) -> Scored:
        with self.compute_loss_context_manager(), torch.set_grad_enabled(grad):
            return self.scorer.score(model, batch, self.needs, grad)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # on the device since get_batch_samples

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # transformers' estimate assumes that every position is computed; --dry-run prints ours

    def _track_num_input_tokens(self, inputs: Any) -> None:
        pass

    # ---- the step

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        (batch, extras, counts), step = inputs, num_items_in_batch
        first = self.state.global_step == self._initial_global_step
        weight = 0.0 if batch.filler else 1.0
        r, loss = self._run(model, batch, extras, step)
        self._check_reference(r)
        share = part(self.method, loss, step.totals, counts if first else None)
        self.meters["train"].add(measures(r, loss), weight)
        if self.networks:  # the logged loss is of several turns: each term is told by itself
            self.meters["train"].add({f"loss/{name}": term for name, term in loss.terms.items()}, weight)
        self.method_states.collect(loss.updates, weight)
        return share * (weight * self.args.world_size)  # DDP takes the mean over processes, we want the sum

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:  # parameters beside the policy's are outside what DDP wraps
            for p in (self.networks[self.turn] if self.turn else self.method_modules).parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                p.grad = self._sum(p.grad) / self.args.world_size
        return loss

    def _run(self, model: nn.Module, batch: Batch, extras: Scored, step: Plan) -> tuple[Responses, Loss]:
        with_grad = self.scorer.score(model, batch, self.asked[step.turn], grad=True)
        scored = {k: {**with_grad.get(k, {}), **extras.get(k, {})} for k in {**with_grad, **extras}}
        r = responses(batch, scored, *self._owned(), step.statistics, step.turn)
        with torch.autocast(self.args.device.type, enabled=False):  # losses and the method's own networks are exact
            return r, self.method(r)

    def _owned(self) -> tuple[dict[str, Tensor], dict[str, nn.Module]]:
        return self.method_states.values, {k.replace("|", "/"): m for k, m in self.method_modules.items()}

    def _sum(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x.to(self.args.device), "sum") if self.args.world_size > 1 else x

    def _join(self, x: Tensor) -> Tensor:
        """Vectors of all processes, which may differ in length."""
        if self.args.world_size == 1:
            return x
        lengths = self.accelerator.gather(torch.tensor([len(x)], device=x.device))
        padded = x.new_zeros(int(lengths.max()))
        padded[: len(x)] = x
        parts = self.accelerator.gather(padded).view(len(lengths), -1)
        return torch.cat([part[:n] for part, n in zip(parts, lengths.tolist(), strict=True)])

    def _initialise_method(self) -> None:
        """States and parameters of the method, made once from a batch of real data, before the optimiser exists."""
        own = any(k.startswith(("states:", "modules:")) for k in self.needs)
        if not own or self.method_states.values or len(self.method_modules):
            return
        batch = next(iter(self._loader(self.task.train, self._sampler(self.task.train, 2, 1, shuffle=False))))
        batch = batch.to(self.args.device)
        torch.manual_seed(self.args.seed)
        known = made_up(batch, self.needs, {}, self.scorer.shapes(self.needs))  # shapes are all that is asked
        made = self.method.init(responses(batch, known, {}, {}, {}))
        self.method_states.values = {k: v.to(self.args.device) for k, v in made.states.items()}
        for k, m in made.modules.items():
            self.method_modules[k.replace("/", "|")] = m.to(self.args.device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        for name, module in self.method_modules.items():
            spec = self.needs[f"modules:{name.replace('|', '/')}"]
            own: dict[str, Any] = {"lr": self.args.learning_rate * spec["rate"]} if spec["rate"] != 1 else {}
            own["weight_decay"] = spec.get("weight_decay", 0.0)
            optimizer.add_param_group({"params": list(module.parameters()), **own})
        for group in groups(self.networks, self.needs, self.args):
            optimizer.add_param_group(group)
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The policy, a network in its turn, and each of the method's own networks: every one by itself."""
        norm = super()._clip_grad_norm(self.networks[self.turn] if self.turn else model)  # first: it unscales float16
        for network in () if self.turn else self.method_modules.values():
            nn.utils.clip_grad_norm_(network.parameters(), self.args.max_grad_norm)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(self.networks[self.turn] if self.turn else model, grad_norm)

    # ---- what must hold

    _initial_global_step = 0

    def _check_reference(self, r: Responses) -> None:
        """Before the first update the policy is the reference; once warm, it is not: a wrong reference shows here."""
        step, warm = self.state.global_step, self.args.get_warmup_steps(self.state.max_steps)
        if step not in (0, warm + 2) or not self.task.record.get("reference_is_start"):
            return
        if not {"reference", "policy"} <= r.scores.keys():
            return
        policy = r.scores["policy"]
        gap = (policy.values.detach() - r.scores["reference"].values).abs() / policy.count.clamp(min=1)
        half = self.args.bf16 or self.args.fp16 or next(self.task.model.parameters()).dtype in HALF
        tolerance = START_TOLERANCE_HALF if half else ROUNDING[policy.values.dtype]
        if step == 0 and not gap.max() <= tolerance:
            raise PrefoptError(
                f"before the first step policy and reference differ by {gap.max():.3g} per element (tolerance {tolerance:g}): "
                "the reference is not the starting model, or the model computes at random (dropout, noise)"
            )
        if step > 0 and gap.max() == 0 and "reference" not in self.task.moving:
            raise PrefoptError(
                f"after {step} steps the policy still equals its reference exactly: nothing is trained. Is the learning rate "
                "zero, everything frozen, or the weights bfloat16 (small updates round away: load float32 with train.bf16)?"
            )

    # ---- logs, evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.meters["train"].flush(self._sum) | to_log(self.learnt())
            tokens = self._sum(torch.tensor(float(self._tokens))).item()
            logs["tokens_per_second"] = round(tokens / max(time.monotonic() - self._since, 1e-9), 1)
            self._tokens, self._since = 0, time.monotonic()
            if not all(map(_finite, (logs["loss"], logs.get("grad_norm", 0.0)))):
                raise NotFinite(
                    f"step {self.state.global_step}: the loss or its gradient is no longer finite. Lower "
                    "train.learning_rate, or raise the method's beta; the last checkpoint is sound"
                )
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader: Any, description: str, *_: Any, **options: Any) -> EvalLoopOutput:
        """Every example once: sums and counts over processes, so that an uneven last batch weighs what it is."""
        prefix = options.get("metric_key_prefix", "eval")
        meter, terms = self.meters["eval"], Meter()
        for batch, r, loss in self.passes(dataloader):
            weight = 0.0 if batch.filler else 1.0
            meter.add(measures(r, loss), weight)
            terms.add(loss.terms, weight)
        found = terms.flush(self._sum)
        metrics = {"loss": sum(found.values())} | meter.flush(self._sum)
        named = {f"{prefix}_{k}": v for k, v in metrics.items()}
        nothing: Any = None  # predictions are not kept
        return EvalLoopOutput(nothing, nothing, metrics=named, num_samples=len(dataloader.dataset))

    def passes(self, loader: Any) -> Iterator[tuple[Batch, Responses, Loss]]:
        """The method's answers to every batch of a loader, in its order, without gradient."""
        model: Any = self.model_wrapped
        if not self.is_in_train:
            model = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        model.eval()
        on_device = (batch.to(self.args.device) for batch in loader)
        together = [list(on_device)] if self._step_wide else ([batch] for batch in on_device)
        for step in map(self._plan, together):
            for batch, known, _counts in step.ready:
                with torch.no_grad(), self.compute_loss_context_manager():
                    yield batch, *self._run(model, batch, known, step)

    def learnt(self) -> dict[str, dict[str, float]]:
        """What the method's state says about names in the data: state -> name -> number."""
        return learnt(self.method_states.values, self.needs, self.task.record.get("data", {}))

    # ---- checkpoints: whole or not there

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            checkpoints.save_method(folder, self.method_states.values, self.method_modules)
            if self.networks:
                checkpoints.save_tensors(folder / checkpoints.NETWORKS, self.networks.state_dict())
            for name, moving in self.task.moving.items():
                checkpoints.save_tensors(folder / f"{name}.safetensors", moving.state(self.task.model))
            checkpoints.mark_whole(folder)
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(self.args.output_dir), save_total_limit=self._keep, best_model_checkpoint=best)
        self.accelerator.wait_for_everyone()

    def restore_method(self, folder: Path) -> None:
        """The method's state and parameters, and networks that follow the policy, as they were at a checkpoint."""
        self._initialise_method()
        with _reading(folder):
            json.loads((folder / "trainer_state.json").read_text())  # transformers reads it later, without words
            self.method_states.values |= checkpoints.load_method(folder, self.method_modules, self.args.device)
            if self.networks:
                self.networks.load_state_dict(checkpoints.load_file(folder / checkpoints.NETWORKS))
            for name, moving in self.task.moving.items():
                moving.load(checkpoints.load_file(folder / f"{name}.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if isinstance(self.model, transformers.PreTrainedModel):
            super()._issue_warnings_after_load(load_result)
        else:
            checkpoints.check_loaded(self.task.model, load_result)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)

    @property
    def sharded(self) -> bool:
        """Does each process hold only a part of the weights?"""
        zero = self.accelerator.state.deepspeed_plugin.zero_stage if self.is_deepspeed_enabled else 0
        return bool(self.is_fsdp_enabled or zero == 3)

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """The whole weights of a sharded model (all processes must ask); None where every process has them."""
        return self.accelerator.get_state_dict(self.model_wrapped) if self.sharded else None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if isinstance(self.model, (transformers.PreTrainedModel, PeftModel)):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:  # a network of diffusers, with or without an adapter inside
            checkpoints.save_trainable(self.task.model, Path(output_dir or str(self.args.output_dir)), state_dict)


@contextlib.contextmanager
def _reading(checkpoint: Any) -> Iterator[None]:
    """Words for a checkpoint that was whole when it was written and is not any more."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as e:  # safetensors, pickle, zip, JSON: each has types of its own
        why = first_line(e)
        raise PrefoptError(
            f"{checkpoint} is damaged ({why}); remove that folder, and the run goes on from the checkpoint before it"
        ) from e


def _finite(x: float) -> bool:
    return x == x and abs(x) != float("inf")
