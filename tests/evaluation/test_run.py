"""`prefopt eval` on run folders: which models, which data, what is written."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoder
from prefopt.errors import PrefoptError
from prefopt.evaluation.heldout import held_out
from prefopt.evaluation.run import evaluate, evaluate_run
from prefopt.reporting.report import write_report
from prefopt.rollout.text import Sampling

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
SAMPLING = Sampling(max_new_tokens=6, n=2, batch_size=16)
QUICK = {"sampling": SAMPLING, "progress": False}


def length(prompts, responses):
    return [float(len(r)) for r in responses]


def save(folder, seed, tokenizer):
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**SHAPE, eos_token_id=2, pad_token_id=0, initializer_range=0.15)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)


def rows(first, many):
    return [{"prompt": f"w{first + i}", "chosen": f" w{i + 1} w9", "rejected": f" w{i + 20}"} for i in range(many)]


@pytest.fixture
def run(tmp_path, tokenizer):
    save(tmp_path / "start", 1, tokenizer)
    save(tmp_path / "run", 2, tokenizer)
    for name, first, many in (("train", 1, 30), ("heldout", 40, 10)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows(first, many)))
    configure(tmp_path)
    return tmp_path / "run"


def configure(place, method="dpo", **data):
    config = {
        "method": {"name": method},
        "model": {"path": str(place / "start")},
        "data": {"path": str(place / "train.jsonl"), "eval_path": str(place / "heldout.jsonl")} | data,
        "output": str(place / "run"),
    }
    (place / "run" / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_run_is_evaluated_on_its_held_out_data_and_reported(run):
    numbers = evaluate_run(run, reward=length, **QUICK)
    assert json.loads((run / "evaluation.json").read_text()) == numbers
    assert numbers["settings"]["prompts"] == 10
    assert numbers["settings"]["pairs"] == 10
    assert numbers["settings"]["implicit_reward"] == "that of dpo"
    assert numbers["notes"] == []
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [s["prompt"] for s in samples[::2]] == [f"w{i}" for i in range(40, 50)]
    assert "DPO" in write_report(run).read_text(encoding="utf-8")


def test_other_data_other_start_and_a_limit(run, tmp_path):
    numbers = evaluate_run(run, against=str(run), data=str(tmp_path / "train.jsonl"), limit=4, **QUICK)
    assert numbers["kl"]["k1"]["value"] == 0
    assert numbers["settings"]["prompts"] == numbers["settings"]["pairs"] == 4


def test_a_judge_is_asked_once(run):
    asked = []

    def judge(prompts, a, b):
        asked.append(len(prompts))
        return [0.75] * len(prompts)

    first = evaluate_run(run, judge=judge, **QUICK)
    again = evaluate_run(run, judge=judge, **QUICK)
    assert len(asked) == 2
    assert first["win_rate"] == again["win_rate"]
    assert first["win_rate"]["value"] == 0.5


def test_checkpoints_belong_to_their_run(run, tokenizer):
    save(run / "checkpoint-5", 3, tokenizer)
    evaluate_run(run / "checkpoint-5", reward=length, **QUICK)
    evaluate_run(run, reward=length, **QUICK)
    page = write_report(run).read_text(encoding="utf-8")
    assert "step 5" in page
    assert "this model" in page


def test_an_adapter_is_evaluated_on_its_base(run, tmp_path, tokenizer):
    from peft import LoraConfig, get_peft_model

    adapter = run / "checkpoint-7"
    base = LlamaForCausalLM.from_pretrained(tmp_path / "start")
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, lora).save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    numbers = evaluate_run(adapter, **QUICK)
    assert numbers["kl"]["k3"]["value"] > 0
    assert numbers["settings"]["start"] == str(tmp_path / "start")


def test_a_reward_model_is_measured_by_pairs(run, tmp_path, tokenizer):
    configure(tmp_path, method="bt-reward")
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_labels=1, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(run)
    numbers = evaluate_run(run, **QUICK)
    assert numbers["preference"]["accuracy"]["n"] == 10
    assert "kl" not in numbers
    assert not (run / "samples.jsonl").exists()


def test_any_two_models(run, tmp_path):
    data, out = str(tmp_path / "heldout.jsonl"), tmp_path / "out"
    numbers = evaluate(run, tmp_path / "start", data, out, reward=length, **QUICK)
    assert numbers["settings"]["implicit_reward"].startswith("0.1")
    assert (tmp_path / "out" / "samples.jsonl").exists()


def test_folders_and_data_that_do_not_fit(run, tmp_path):
    with pytest.raises(PrefoptError, match=r"no config\.yaml"):
        evaluate_run(tmp_path / "start", **QUICK)
    with pytest.raises(PrefoptError, match="neither a folder"):
        evaluate_run(run, reward="no-such-thing", **QUICK)
    (run / "model.safetensors").unlink()
    (run / "config.json").unlink()
    with pytest.raises(PrefoptError, match="no trained model yet"):
        evaluate_run(run, **QUICK)
    assert not (run / "evaluation.json").exists()


def test_held_out_prompts_are_those_that_training_never_saw(run, tmp_path, tokenizer):
    from prefopt.data.prepare import prepare_text

    data = DataConfig(path=str(tmp_path / "train.jsonl"), eval_fraction=0.4)
    source = held_out(data, Encoder(tokenizer, data))
    prepared = prepare_text(data, tokenizer, needs={"pairs"}, cache=tmp_path / "cache", progress=False)
    inside = {tuple(prepared.eval[i].prompt_ids) for i in range(len(prepared.eval))}
    assert {tuple(p.prompt_ids) for p in source.pairs} == inside
    assert len(source.prompts) == len(inside) < 30
    assert source.notes == []
    flattering = DataConfig(path=str(tmp_path / "train.jsonl"))
    assert "held-out" in held_out(flattering, Encoder(tokenizer, flattering)).notes[0]


def test_prompts_alone_are_enough(run, tmp_path, tokenizer):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"w{i % 4 + 1}"}) + "\n" for i in range(8)))
    data = DataConfig(path=str(path), eval_path=str(path))
    source = held_out(data, Encoder(tokenizer, data))
    assert [e.prompt for e in source.prompts] == ["w1", "w2", "w3", "w4"]
    assert source.pairs == []
