"""TDPO from the command line's configuration: a reference that runs in the step, with weights of its own or without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt import PrefoptError
from prefopt.config import make, override
from prefopt.training.run import train


def configured(text_model: Path, pairs_file: Path, folder: Path, *overrides: str) -> Any:
    content: dict[str, Any] = {
        "method": {"name": "tdpo"},
        "model": {"path": str(text_model)},
        "data": {"path": str(pairs_file)},
        "train": {"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
                  "warmup_steps": 0, "disable_tqdm": True},
        "output": str(folder),
    }  # fmt: skip
    return make(override(content, overrides))


@pytest.mark.parametrize("overrides", [[], ["method.variant=tdpo1"], ["model.adapter.r=4"]], ids=str)
def test_the_kl_starts_at_zero_and_grows(overrides, text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    train(configured(text_model, pairs_file, tmp_path / "run", *overrides))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [r for r in rows if "loss" in r]
    for side in ("chosen", "rejected"):
        course = [r[f"seq_kl/{side}"] for r in rows]
        assert course[0] == pytest.approx(0, abs=1e-5)
        assert course[-1] > 1e-3
        assert all(k > -1e-6 for k in course)
    assert all(r["seq_kl/margin"] == pytest.approx(r["seq_kl/rejected"] - r["seq_kl/chosen"], abs=1e-5) for r in rows)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["reference"]["kind"] == ("adapter_off" if "model.adapter.r=4" in overrides else "frozen")


def test_a_stored_reference_is_refused(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PrefoptError, match="reference.kind = store: .*whole distributions.*frozen, or train an adapter"
    ):
        train(configured(text_model, pairs_file, tmp_path / "run", "reference.kind=store"))
    assert not (tmp_path / "run").exists()


def test_a_reference_with_other_words_is_refused(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(text_model)
    words = other.config.vocab_size
    other.resize_token_embeddings(words + 8)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(text_model).save_pretrained(tmp_path / "other")
    reference = f"reference.path={tmp_path / 'other'}"
    with pytest.raises(PrefoptError, match=f"its head knows {words + 8} words, the policy's {words}"):
        train(configured(text_model, pairs_file, tmp_path / "run", reference))
    assert not (tmp_path / "run").exists()
    train(
        configured(text_model, pairs_file, tmp_path / "dpo", "method.name=dpo", reference)
    )  # sums of labels may differ
