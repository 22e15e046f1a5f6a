"""`prefopt generate` feeds a model as its run did, unless told otherwise."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from prefopt import cli
from prefopt.data.example import Example
from prefopt.rollout import verb
from tests.small_models import save_text_model, write_pairs

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a sampled model is fed for the first prompt, once for each call of the verb."""
    seen: list[str] = []

    def note(model: Any, tokenizer: Any, prompts: Any, output: Path, sampling: Any, *, encoder: Any, **_: Any) -> int:
        seen.append(tokenizer.decode(encoder.prompt_ids(Example(prompts[0], ()))))
        return len(prompts)

    monkeypatch.setattr(verb, "generate_file", note)
    return seen


def test_a_run_brings_its_template_keys_and_the_command_line_overrides_them(
    fed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = save_text_model(tmp_path / "model"), write_pairs(tmp_path / "pairs.jsonl")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT}))

    def generate(*more: str) -> None:
        line = ["prefopt", "generate", str(model), "-p", str(rows), "-o", str(tmp_path / "out.jsonl"), *more]
        monkeypatch.setattr(sys, "argv", line)
        with contextlib.suppress(SystemExit):
            cli.main()

    generate()
    (model / "config.yaml").write_text("data: {path: x, system: about rivers, max_length: 9, eval_fraction: 0.1}\n")
    generate()
    generate("system=about trains")
    assert ["rivers" in text for text in fed] == [False, True, False]
    assert "trains" in fed[2]
    assert verb.template_keys(model) == ['system="about rivers"']
    assert verb.template_keys(tmp_path) == []
