"""The configurations of docs/composition.md, as they stand there, trained by the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from prefopt.cli import app
from prefopt.objectives.method import get_method
from tests.small_models import save_text_model, write_pairs

PAGE = (Path(__file__).parents[2] / "docs" / "composition.md").read_text()
BLOCKS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]
WHOLE = [block for block in BLOCKS if "output" in block]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("composition")
    pairs = [json.loads(line) for line in write_pairs(folder / "pairs.jsonl").read_text().splitlines()]
    rows = [
        {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
        for p in pairs
        for side in ("chosen", "rejected")
    ]
    (folder / "unpaired.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {
        "MODEL": str(save_text_model(folder / "model")),
        "PAIRS": str(folder / "pairs.jsonl"),
        "UNPAIRED": str(folder / "unpaired.jsonl"),
    }


def test_there_are_three():
    assert len(WHOLE) == 3


@pytest.mark.parametrize("block", BLOCKS, ids=[b["method"]["name"] for b in BLOCKS])
def test_every_block_of_the_page_is_a_method(block):
    assert get_method(**block["method"]).needs()


@pytest.mark.parametrize("number", range(len(WHOLE)))
def test_a_combination_trains_from_its_page(number, places, tmp_path):
    block = WHOLE[number]
    content = {k: places.get(v, v) if isinstance(v, str) else v for k, v in block.items()} | {
        "output": str(tmp_path / "o")
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    train = ["train.max_steps=12", "train.learning_rate=0.002", "train.logging_steps=1", "train.warmup_steps=0"]
    done = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml"), *train, "train.disable_tqdm=true"])
    assert done.exit_code == 0, done.output
    logs = [json.loads(line) for line in (tmp_path / "o" / "metrics.jsonl").open()]
    losses = [x["loss"] for x in logs if "loss" in x]
    assert len(losses) == 12
    assert all(x == x and abs(x) < 100 for x in losses)
    assert min(losses[6:]) < losses[0]
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    assert get_method(**record["method"]).record() == record["method"]
    start, after = (AutoModelForCausalLM.from_pretrained(p) for p in (places["MODEL"], tmp_path / "o"))
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), after.parameters(), strict=True))


def test_a_part_set_on_the_command_line_and_one_that_is_refused(places, tmp_path):
    base = ["train", "dpo", "--model", places["MODEL"], "--data", places["PAIRS"], "--output", str(tmp_path / "o")]
    done = CliRunner().invoke(app, [*base, "method.length.name=ld", "method.length.alpha=0.5", "--dry-run"])
    assert done.exit_code == 0, done.output
    refused = CliRunner().invoke(app, [*base, "method.length=sum", "--dry-run"])
    assert "dpo.length = sum has no effect" in str(refused.exception)
