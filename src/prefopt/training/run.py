"""One training run, from a configuration to a finished folder."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import TrainingArguments

from ..config import RunConfig
from ..errors import PrefoptError, first_line, of_the_machine
from ..methods import load_file
from ..models.text import model_kind
from ..objectives.compose import annotated
from ..objectives.method import Method, family
from ..train_keys import TRAIN_DEFAULTS
from . import checkpoints
from .effect import refuse_missing_sources, refuse_without_effect
from .estimate import Estimate, estimate
from .export import export
from .folder import RunFolder
from .names import with_names
from .needs import how_to_give
from .processes import decided_by_main
from .properties import follow
from .rounds import Waiting
from .sampler import data_seed, micro_batches, seen
from .task import Task
from .trainer import Trainer

log = logging.getLogger("prefopt")

ADAPTER_LEARNING_RATE = 5e-6


@dataclass(frozen=True)
class Outcome:
    """Where the run is and what it has come to: "finished", "was finished", or the estimate of a dry run."""

    folder: Path
    status: str
    estimate: Estimate | None = None
    record: dict[str, Any] | None = None


def train(
    config: RunConfig,
    *,
    dry_run: bool = False,
    stop_after: int | None = None,
    callbacks: Sequence[transformers.TrainerCallback] = (),
) -> Outcome:
    """Train as configured; resumes if the output folder holds an unfinished run of the same configuration.

    dry_run: prepare the data and say what would happen; nothing is written to the output folder.
    stop_after: leave the run unfinished after this many steps more, as if it had been interrupted.
    callbacks: of transformers, added to the trainer's own.
    Raises PrefoptError before any training for every input that cannot be trained on.
    """
    method = make_method(config)
    kind = model_kind(config.model.path)
    refuse_without_effect(config, method, kind)
    refuse_missing_sources(config, method, kind)
    args = arguments(config)
    folder = RunFolder(config.output)
    if dry_run:
        task, args, per_step = _prepared(config, method, kind, args)
        with_names(method, task.record.get("data", {}))
        return Outcome(folder.path, "dry run", estimate(task, args, per_step, method.needs()), task.record)
    whole = effective(config, method)
    state = decided_by_main(args, lambda: folder.claim(whole))
    try:
        if state == "finished":
            return Outcome(folder.path, "was finished", record=folder.record)
        extra = [*callbacks, *([] if stop_after is None else [_StopAfter(stop_after)])]
        return _train(config, whole, method, kind, args, folder, state, extra)
    finally:
        folder.release()


def _train(
    config: RunConfig,
    whole: RunConfig,
    method: Method,
    kind: str,
    args: TrainingArguments,
    folder: RunFolder,
    state: str,
    callbacks: Sequence[transformers.TrainerCallback],
) -> Outcome:
    task, args, per_step = _prepared(config, method, kind, args)
    method = with_names(method, task.record.get("data", {}))
    for line in method.advice(task.record.get("data", {})) if args.process_index == 0 and state != "unfinished" else ():
        log.warning(line)
    cost = estimate(task, args, per_step)
    record = {"method": method.record(), "modality": kind, **task.record}
    main = args.process_index == 0

    def look() -> None:
        kept = 0 if args.save_strategy == "no" else (args.save_total_limit or 3) + 1
        folder.check_space(cost.checkpoint * kept + cost.parameters * 4)
        if state == "unfinished":
            _refuse_other_data(folder.record, task.record)

    with _words_for_a_full_disk(f"output {folder.path}"):
        trainer = Trainer(task, method, args, per_step)
        if trainer.sharded and kind == "diffusion":
            raise PrefoptError("image models cannot be sharded (FSDP, ZeRO-3) here: launch with configs/multi_gpu.yaml")
        if trainer.sharded and task.moving:
            raise PrefoptError(
                "a reference that moves (reference.mixup_alpha, reference.sync_steps) needs the whole weights on every "
                "process: launch with configs/multi_gpu.yaml, or train an adapter without sharding"
            )
        decided_by_main(args, look)
        drawn = seen(trainer.get_train_dataloader().sampler_of_steps, args.max_steps)
        task.prepare(drawn)
        following = follow(trainer, config.diagnostics, drawn) if config.diagnostics.every else None
        decided_by_main(args, lambda: folder.start(whole, record))  # whatever can be refused has been
        for callback in callbacks:
            trainer.add_callback(callback)
        resume = checkpoints.latest(folder.path, remove_halves=main) if state == "unfinished" else None
        if resume is not None:
            log.info("going on from %s", resume)
            trainer.restore_method(resume)
        if following is not None:
            following.gather_unseen(folder.path, resume is not None)
            trainer.add_callback(following)
        try:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        except Waiting as w:
            return Outcome(folder.path, str(w), cost, record)
        if trainer.state.global_step < trainer.state.max_steps:
            return Outcome(folder.path, "interrupted", cost, record)
        exported = export(trainer, drawn, folder.path)
        weights = trainer.gathered_weights()
        if main:
            task.save(trainer.accelerator.unwrap_model(trainer.model), folder.path, weights)
            trainer.state.save_to_json(str(folder.path / "trainer_state.json"))
            folder.finish(steps=trainer.state.global_step, learnt=trainer.learnt(), exported=exported)
    return Outcome(folder.path, "finished", cost, folder.record)


def make_method(config: RunConfig) -> Method:
    """The configured method; a name that ends in .py is a file of the user's own."""
    given = dict(config.method)
    name = str(given.pop("name"))
    kind = load_file(Path(name)) if name.endswith(".py") else family(name)
    return annotated(kind(**given), config.data.use)


def effective(config: RunConfig, method: Method) -> RunConfig:
    """The configuration with every value that it leaves to a default written out; trained again, it is the same run."""
    named = method.record() | {"name": config.method["name"]}  # a file's name stays its path
    return config.model_copy(update={"method": named, "train": train_defaults(config) | config.train})


def train_defaults(config: RunConfig) -> dict[str, Any]:
    """What `train` is where the user says nothing."""
    defaults = dict(TRAIN_DEFAULTS)
    if config.model.adapter is not None:
        defaults["learning_rate"] = ADAPTER_LEARNING_RATE
    if config.data.eval_path or config.data.eval_fraction:
        defaults["eval_strategy"] = "steps" if "eval_steps" in config.train else "epoch"
    else:
        del defaults["per_device_eval_batch_size"]
    return defaults


def arguments(config: RunConfig) -> TrainingArguments:
    """transformers' arguments with prefopt's defaults; PrefoptError where they contradict each other."""
    given = {k: v for k, v in config.train.items() if k != "token_budget"}
    defaults = train_defaults(config)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available():
        defaults |= {"use_cpu": True, "ddp_backend": "gloo"}  # else every process would take itself for the only one
    fixed = {"output_dir": config.output, "remove_unused_columns": False, "logging_nan_inf_filter": False}
    _check_launchers(given)
    try:
        args = TrainingArguments(**(defaults | given | fixed))
    except (ValueError, TypeError, ImportError, OSError) as e:
        why = first_line(e)
        keys = [k for k, v in given.items() if isinstance(v, str) and v in why]
        raise PrefoptError(f"{', '.join(f'train.{k}' for k in keys) or 'train'}: {why}") from None
    _check_loggers(args)
    return args


def _check_launchers(given: dict[str, Any]) -> None:
    """Before transformers looks: it leaves half a DeepSpeed configuration behind in the process."""
    for key in ("deepspeed", "fsdp_config"):
        path = given.get(key)
        if isinstance(path, str) and not Path(path).is_file():
            raise PrefoptError(f"train.{key} = {path}: there is no such file")
    if given.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        raise PrefoptError("train.deepspeed: the package is not installed (pip install deepspeed)")


def _check_loggers(args: TrainingArguments) -> None:
    from transformers.integrations import get_available_reporting_integrations

    here = get_available_reporting_integrations()
    for name in args.report_to or []:
        if name not in here:
            raise PrefoptError(
                f"train.report_to = {name}: there is no such logger, or its package is not installed; "
                f"installed are {', '.join(here) or 'none'}, and metrics.jsonl is always written"
            )


def _prepared(
    config: RunConfig, method: Method, kind: str, args: TrainingArguments
) -> tuple[Task, TrainingArguments, int]:
    """The task, and the arguments with the micro-batches that the token budget asks for."""
    transformers.set_seed(args.seed)
    cache = "the cache (its folder is $PREFOPT_CACHE, by default ~/.cache/prefopt)"
    with args.main_process_first(desc="preparing data"), _words_for_a_full_disk(cache):
        task = _task(config, method, kind)
    unmet = method.missing(task.scorer.offers())
    if unmet:
        words = "; ".join(how_to_give(need, kind) for need in unmet)
        raise PrefoptError(f"{method.name} on a {kind} model with this data lacks {words}")
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if task.rounds is not None:
        task.rounds.settle(config.train, args, per_step)
    if budget := config.train.get("token_budget"):
        epochs = 1 if args.max_steps > 0 else int(-(-args.num_train_epochs // 1))
        micro = micro_batches(task.train.tokens, per_step, budget, args.world_size, data_seed(args), epochs)
        args.gradient_accumulation_steps = micro
    return task, args, per_step


def _task(config: RunConfig, method: Method, kind: str) -> Task:
    if kind == "diffusion":
        from .tasks.denoising import diffusion_task

        return diffusion_task(config, method)
    if kind == "clip":
        from .tasks.preference import preference_task

        return preference_task(config, method)
    from .tasks.text import text_task

    return text_task(config, method)


def _refuse_other_data(old: dict[str, Any], new: dict[str, Any]) -> None:
    for what in ("data", "model", "sources"):
        a, b = (r.get(what, {}).get("fingerprint") for r in (old, new))
        if a is not None and a != b:
            verb = "are" if what == "sources" else "is"
            raise PrefoptError(
                f"the {what} {verb} not what this run was started with (fingerprint {b}, was {a}): "
                "restore it, or give a new output folder"
            )


class _StopAfter(transformers.TrainerCallback):
    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.steps -= 1
        if self.steps <= 0:
            control.should_training_stop = True
            control.should_save = True
        return control


@contextlib.contextmanager
def _words_for_a_full_disk(place: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise PrefoptError(
            "the device is out of memory. Lower train.per_device_train_batch_size and raise "
            "train.gradient_accumulation_steps, or set train.token_budget: the step stays the same"
        ) from e
    except (OSError, RuntimeError, SafetensorError) as e:
        if (said := of_the_machine(e)) is None:
            raise
        raise PrefoptError(f"{place}: {said}") from e
