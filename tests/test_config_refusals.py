"""A key of the configuration that could change nothing in a run is refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt import PrefoptError, get_method
from prefopt.config import check_train
from prefopt.training.effect import refuse_without_effect
from tests.small_models import run_config

REFUSED = {  # key -> (method, kind of model, value); none of these could change anything
    "reference.kind": ("simpo", "text", "frozen"),
    "reference.path": ("sft", "text", "elsewhere"),
    "denoising.resolution": ("dpo", "text", 64),
    "denoising.flow_shift": ("dpo", "text", 2.0),
    "rollout.rounds": ("dpo", "text", 2),
    "rollout.reward": ("kto", "text", "a:b"),
    "data.max_length": ("dpo", "diffusion", 64),
    "data.chat_template": ("dpo", "diffusion", "plain"),
    "data.thinking": ("dpo", "diffusion", "strip"),
    "data.split": ("dpo", "text", "test"),
    "data.subset": ("dpo", "text", "en"),
    "data.seed": ("dpo", "text", 7),
    "data.soft_labels": ("dpo", "text", "logistic"),
    "model.attention": ("dpo", "diffusion", "eager"),
    "model.disable_dropout": ("dpo", "diffusion", False),
    "model.revision": ("dpo", "text", "v2"),
    "model.adapter.use_dora": ("dpo", "diffusion", True),
    "model.adapter.use_rslora": ("dpo", "diffusion", True),
    "train.eval_steps": ("dpo", "text", 5),
    "train.per_device_eval_batch_size": ("dpo", "text", 5),
    "train.metric_for_best_model": ("dpo", "text", "loss"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_without_effect_is_refused(key: str, text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    method, kind, value = REFUSED[key]
    section, *rest = key.split(".")
    inner = {rest[-1]: value} if len(rest) == 1 else {rest[0]: {rest[1]: value}}
    paths = {"model": {"path": str(text_model)}, "data": {"path": str(pairs_file)}}
    config = run_config(text_model, pairs_file, tmp_path, **{section: paths.get(section, {}) | inner})
    with pytest.raises(PrefoptError, match=f"{key} has no effect"):
        refuse_without_effect(config, get_method(method), kind)
    refuse_without_effect(run_config(text_model, pairs_file, tmp_path), get_method(method), kind)


def test_lists_for_a_pointwise_method_may_say_how_they_are_paired(
    text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    config = run_config(text_model, pairs_file, tmp_path, data={"path": str(pairs_file), "pairing": "best_worst"})
    refuse_without_effect(config, get_method("kto"), "text")


def test_adams_betas_are_of_one_type() -> None:
    given = check_train({"adam_beta1": 0, "adam_beta2": 0.99, "max_steps": 3})
    assert {k: type(v) for k, v in given.items()} == {"adam_beta1": float, "adam_beta2": float, "max_steps": int}
    assert check_train({}) == {}
