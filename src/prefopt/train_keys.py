"""The keys of the section `train`: transformers.TrainingArguments' own, those without effect here, types and defaults."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any

from .errors import PrefoptError

# keys of transformers.TrainingArguments that would do nothing here, and what does their work
WITHOUT_EFFECT = {
    "output_dir": "set `output`",
    "do_train": "the verb says it",
    "do_eval": "set train.eval_strategy",
    "do_predict": "use `prefopt eval`",
    "label_smoothing_factor": "set method.label_smoothing",
    "remove_unused_columns": "columns are chosen by what the method asks for",
    "group_by_length": "batches are always formed by length",
    "train_sampling_strategy": "batches are always formed by length",
    "length_column_name": "batches are always formed by length",
    "dataloader_drop_last": "every example is used; the last step is weighted by what it holds",
    "resume_from_checkpoint": "a run resumes by itself when its output folder is given again",
    "overwrite_output_dir": "nothing is ever overwritten; give another `output`",
    "label_names": "prefopt batches have no labels column",
    "prediction_loss_only": "evaluation reports metrics, not predictions",
    "include_for_metrics": "evaluation reports metrics, not predictions",
    "average_tokens_across_devices": "counts are always summed over processes",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "auto_find_batch_size": "set train.token_budget",
    "neftune_noise_alpha": "noise on the policy alone would make the reference meaningless",
    "include_num_input_tokens_seen": "tokens_per_second is always logged",
    "past_index": "it is not used by preference training",
    "hub_always_push": "push the finished folder",
    "push_to_hub": "push the finished folder with huggingface-cli upload",
    "save_only_model": "checkpoints must allow an exact resume",
    "ignore_data_skip": "checkpoints must allow an exact resume",
    "use_liger_kernel": "log-probs are fused here already",
    "torch_compile": "packed batches change shape at every step",
    "use_cpu_offload": "use a DeepSpeed or FSDP configuration",
}
OWN_TRAIN_KEYS = {"token_budget": int}
BETAS = {"adam_beta1", "adam_beta2"}

# what differs from transformers' defaults, and belongs to preference training
TRAIN_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "logging_steps": 10,
    "logging_first_step": True,
    "save_steps": 500,
    "save_total_limit": 2,
    "report_to": "none",
    "seed": 0,
}

POSITIVE_TRAIN_KEYS = {
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "token_budget",
    "save_total_limit",
    "save_steps",
    "logging_steps",
    "eval_steps",
}


@functools.cache
def train_types() -> dict[str, Any]:
    """Every key of `train` and its type. (Imported late: transformers takes seconds.)"""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return {f.name: hints[f.name] for f in dataclasses.fields(TrainingArguments)} | OWN_TRAIN_KEYS


def train_value(key: str, value: Any) -> Any:
    """The value as training takes it: Adam's betas as floats, because torch wants both of one type.

    PrefoptError for a value of a plain type that cannot be: transformers reports it long after, or never.
    """
    hint = train_types()[key]
    allowed = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    plain = {bool, int, float, str, type(None)}
    if not set(allowed) <= plain:
        return value
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and float in allowed
    if not numeric and type(value) not in allowed:
        names = " or ".join(t.__name__ for t in allowed if t is not type(None))
        raise PrefoptError(f"train.{key} = {value!r}: must be {names}")
    positive = key in POSITIVE_TRAIN_KEYS
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (value != value or (positive and value <= 0))
    ):
        raise PrefoptError(f"train.{key} = {value!r}: must be greater than 0")
    if key == "max_steps" and value < 1 and value != -1:
        raise PrefoptError(f"train.max_steps = {value!r}: must be at least 1, or -1 for whole epochs")
    return float(value) if key in BETAS else value
