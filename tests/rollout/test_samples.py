"""A sample file goes on where a stopped run left it, and never mixes two jobs."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.errors import PrefoptError
from prefopt.rewards.load import load_reward
from prefopt.rollout import samples
from prefopt.rollout.samples import generate_file
from prefopt.rollout.text import Sampling, generate

PROMPTS = [f"w{i} w{i + 1}" for i in range(1, 12)]
SAMPLING = Sampling(max_new_tokens=6, n=2, batch_size=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "vocab_size": 64}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=2, initializer_range=0.2))


def test_a_stopped_job_goes_on(model, tokenizer, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "deep" / "parts.jsonl"
    reward = load_reward(lambda prompts, responses: [float(len(r)) for r in responses])
    assert generate_file(model, tokenizer, PROMPTS, whole, SAMPLING, reward=reward, progress=False) == 11

    real, calls = samples.generate, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(samples, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        generate_file(model, tokenizer, PROMPTS, parts, SAMPLING, reward=reward, progress=False)
    with parts.open("a") as file:
        file.write('{"prompt": "w9 w1')  # the crash cut a line
    done = parts.read_text().count("\n")
    assert 0 < done < len(PROMPTS)
    with parts.open("a") as file:  # nor does a part of a chunk stay: its batch was another
        file.write('9"}\n{"prompt": "half a chunk"}\n{"prompt": "w9')
    assert generate_file(model, tokenizer, PROMPTS, parts, SAMPLING, reward=reward, progress=False) == 11 - done
    assert parts.read_bytes() == whole.read_bytes()
    assert generate_file(model, tokenizer, PROMPTS, parts, SAMPLING, reward=reward, progress=False) == 0

    at_once = generate(model, tokenizer, PROMPTS, SAMPLING, progress=False)
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [r["prompt"] for r in rows] == PROMPTS
    assert [r["responses"] for r in rows] == [[s.text for s in group] for group in at_once]
    assert all(len(r["responses"]) == len(r["scores"]) == len(r["finished"]) == 2 for r in rows)
    assert rows[0]["scores"] == [float(len(r)) for r in rows[0]["responses"]]


@pytest.mark.parametrize(
    "change", [{"sampling": Sampling(max_new_tokens=7, n=2)}, {"prompts": PROMPTS[:3]}, {"identity": "another model"}]
)
def test_another_job_does_not_touch_the_file(model, tokenizer, tmp_path, change):
    path = tmp_path / "s.jsonl"
    generate_file(model, tokenizer, PROMPTS, path, SAMPLING, progress=False)
    before = path.read_bytes()
    job = {"prompts": PROMPTS, "sampling": SAMPLING, "identity": ""} | change
    with pytest.raises(PrefoptError, match="another job"):
        generate_file(model, tokenizer, job["prompts"], path, job["sampling"], identity=job["identity"], progress=False)
    assert path.read_bytes() == before


def test_a_file_of_unknown_origin_is_refused(model, tokenizer, tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(PrefoptError, match="another output file"):
        generate_file(model, tokenizer, PROMPTS, path, SAMPLING, progress=False)
    assert path.read_text() == "my notes\n"
