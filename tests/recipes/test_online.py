"""Online rounds on adapters: one adapter on the first model goes on from round to round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from prefopt import PrefoptError
from prefopt.recipes import load_all

from .test_steps import config

SMALL = {"rounds": 2, "prompts_per_round": 8, "samples_per_prompt": 2, "max_new_tokens": 6}


@pytest.fixture
def taste(tmp_path: Path) -> str:
    (tmp_path / "taste.py").write_text(
        "def letters(prompts, responses):\n    return [r.count('e') for r in responses]\n"
    )
    return f"{tmp_path}/taste.py:letters"


@pytest.mark.parametrize("reference", ["start", "round"])
def test_an_adapter_goes_on(reference: str, text_model: Path, pairs_file: Path, taste: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rollout = SMALL | {"reward": taste, "reference": reference}
    keys, train = {"adapter": {"r": 2}}, {"warmup_steps": 0}
    done = load_all()["online-dpo"].run(
        config("online-dpo", text_model, pairs_file, out, rollout=rollout, model_keys=keys, train=train)
    )
    assert done.status == "finished"
    child = yaml.safe_load((out / "round-2" / "run" / "config.yaml").read_text())
    assert child["model"]["path"] == str(out / "round-1" / "run")
    measured = json.loads((out / "round-2" / "run" / "run.json").read_text())["reference"]["kind"]
    assert measured == "store"  # the adapter is where the round starts, so without it is not
    said = []
    for folder in (out / "round-1" / "run", out):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(text_model), folder)
        said.append(model(torch.arange(5, 25)[None]).logits)
    assert not torch.allclose(*said)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(text_model)


def test_without_the_adapter_is_no_reference(text_model: Path, pairs_file: Path, taste: str, tmp_path: Path) -> None:
    sections = {"rollout": SMALL | {"reward": taste}, "reference": {"kind": "adapter_off"}}
    with pytest.raises(PrefoptError, match="second round"):
        load_all()["online-dpo"].run(config("online-dpo", text_model, pairs_file, tmp_path / "out", **sections))
