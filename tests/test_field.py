"""What hurt users of other tools (docs/field-coverage.md): the cases that no other test covers, and the page itself."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.config import make
from prefopt.training.run import train
from tests.small_models import write_pairs
from tests.training.small import trainer

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "field-coverage.md"


def test_every_row_has_an_answer_and_every_test_named_there_exists() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert [int(n) for n, *_ in rows] == list(range(1, 42))
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())
    assert len(named) > 60
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert name in {x.name for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)}, f"{file}::{name}"
    for number, _, answer in rows:
        assert "tests/" in answer or answer.startswith("Not here:"), number


def test_held_out_pairs_are_measured_against_the_start_before_and_after_training(tmp_path: Path) -> None:
    """Rows 2 and 4: the reference of evaluation is stored with that of training, and is never the trained policy."""
    t = trainer(tmp_path, n=16, held_out=6, batch=4)
    before = t.evaluate()
    assert before["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    t.train()
    after = t.evaluate()
    assert abs(after["eval_rewards/margins"]) > 1e-4
    moved = {side: after[f"eval_logps/{side}"] - before[f"eval_logps/{side}"] for side in ("chosen", "rejected")}
    for side, change in moved.items():  # beta 0.1 times how far each side has moved from the start
        assert after[f"eval_rewards/{side}"] == pytest.approx(0.1 * change, abs=1e-4)


@pytest.mark.parametrize("again", [True, False], ids=["its adapter trained on", "its adapter merged"])
def test_an_adapter_that_starts_a_run_is_part_of_the_reference(
    again: bool, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """Row 26: the reference is the starting policy with its adapter, not the base model."""
    base = AutoModelForCausalLM.from_pretrained(text_model)
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "sft")
    AutoTokenizer.from_pretrained(text_model).save_pretrained(tmp_path / "sft")
    content = {
        "method": "dpo",
        "model": {"path": str(tmp_path / "sft"), "adapter": {} if again else None},
        "data": str(pairs_file),
        "output": str(tmp_path / "run"),
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "disable_tqdm": True},
    }
    outcome = train(make(content))
    assert outcome.record is not None
    assert outcome.record["reference"]["kind"] == "store"
    assert outcome.record["reference_is_start"]
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-5)
    trained = (tmp_path / "run" / "adapter_config.json").is_file()
    assert trained == again


def test_every_key_of_truncation_and_length_survives_a_whole_run(text_model: Path, tmp_path: Path) -> None:
    """Rows 8 and 9: both sides share one prompt and one room, and no answer is ever emptied: no NaN with SimPO."""
    data = write_pairs(tmp_path / "pairs.jsonl", 8)
    long = {"prompt": "word " * 200, "chosen": "good " * 90, "rejected": "bad"}
    data.write_text(data.read_text() + json.dumps(long) + "\n")
    for mode in ("keep_end", "keep_start"):
        content = {
            "method": "simpo",
            "model": str(text_model),
            "data": {"path": str(data), "max_length": 24, "max_prompt_length": 12, "truncation": mode},
            "output": str(tmp_path / mode),
            "train": {"max_steps": 2, "per_device_train_batch_size": 9, "logging_steps": 1, "disable_tqdm": True},
        }
        outcome = train(make(content))
        assert outcome.record is not None
        assert outcome.record["data"]["encoding"]["truncated on one side only"] >= 1
        rows = [json.loads(x) for x in (tmp_path / mode / "metrics.jsonl").read_text().splitlines()]
        assert all(torch.isfinite(torch.tensor(r["loss"])) for r in rows if "loss" in r)


def test_losses_import_only_torch_and_nobody_elses_trainer() -> None:
    """Row 40: nothing moves under a method's feet."""
    code = (
        "import sys\nfrom prefopt.methods import load_all\nload_all()\n"
        "found = {'transformers', 'trl', 'peft', 'datasets', 'diffusers', 'accelerate'} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for file in (ROOT / "src" / "prefopt").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) trl\b", file.read_text(), re.MULTILINE), file


def test_a_method_costs_a_few_lines() -> None:
    """Row 41: so it never needs to be deleted."""
    files = [f for f in (ROOT / "src" / "prefopt" / "methods").rglob("*.py") if f.name != "__init__.py"]
    assert len(files) >= 9
    assert max(len(f.read_text().splitlines()) for f in files) <= 80
