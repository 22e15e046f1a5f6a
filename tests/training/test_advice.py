"""What a method says about its hyperparameters and the data, once, before a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from prefopt import get_method
from prefopt.config import make
from prefopt.training.run import train

from ..small_models import write_pairs


def advice(good: int, bad: int, **hyper: float) -> list[str]:
    return get_method("kto", **hyper).advice({"labels": {"desirable": good, "undesirable": bad}})


def test_kto_weights_fit_the_numbers_of_both_classes() -> None:
    assert (
        advice(10, 10)
        == advice(12, 9)
        == advice(10, 30, desirable_weight=4.0)
        == advice(30, 10, undesirable_weight=3.0)
        == []
    )
    for good, bad, low, high in ((10, 30, "3", "4"), (30, 10, "0.333", "0.444"), (13, 9, "0.692", "0.923")):
        (line,) = advice(good, bad)
        assert line.startswith(f"kto: {good} desirable and {bad} undesirable responses weigh as {good / bad:.3g} to 1")
        assert line.endswith(f"desirable_weight between {low} and {high}")
        assert advice(good, bad, desirable_weight=(float(low) + float(high)) / 2) == []
    assert (
        get_method("kto").advice({}) == get_method("dpo").advice({"labels": {"desirable": 1, "undesirable": 9}}) == []
    )


def test_a_wrapped_method_speaks_too() -> None:
    wrapped = get_method("self-spo", base={"name": "kto"})
    assert wrapped.advice({"labels": {"desirable": 1, "undesirable": 9}})[0].startswith("kto: 1 desirable")


@pytest.mark.parametrize("good", [3, 9])
def test_said_once_at_the_start(good: int, text_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"{i}: ", "completion": f"The film is {i}.", "label": i < good} for i in range(18)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = warnings(caplog, text_model, data, tmp_path / "run")
    assert len(said) == (good == 3)
    assert not said or said[0].startswith("kto: 3 desirable and 15 undesirable")


def test_pairs_are_as_many_of_both(text_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings(caplog, text_model, write_pairs(tmp_path / "pairs.jsonl", 6), tmp_path / "run")


def warnings(caplog: pytest.LogCaptureFixture, model: Path, data: Path, out: Path) -> list[str]:
    keys: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    config = {"method": "kto", "model": str(model), "data": str(data), "output": str(out), "train": keys}
    caplog.set_level(logging.WARNING, "prefopt")
    logger = logging.getLogger("prefopt")
    logger.addHandler(caplog.handler)
    try:
        train(make(config))
    finally:
        logger.removeHandler(caplog.handler)
    return list(dict.fromkeys(r.getMessage() for r in caplog.records if "desirable" in r.getMessage()))
