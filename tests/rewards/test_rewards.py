"""Rewards and judges: named by a specification, checked at the door."""

import math

import pytest
import torch

from prefopt.errors import PrefoptError
from prefopt.rewards.judges import JudgeCache, judge_from_reward, load_judge
from prefopt.rewards.load import load_reward

FILE = """
def length(prompts, responses):
    return [len(r) for r in responses]

def many(prompts, responses):
    return {"reward": [1.0] * len(responses), "brevity": [-len(r) for r in responses]}

def unnamed(prompts, responses):
    return {"a": [1.0] * len(responses), "b": [2.0] * len(responses)}

def judge(prompts, a, b):
    return [1.0 if len(x) > len(y) else 0.0 if len(x) < len(y) else 0.5 for x, y in zip(a, b)]

def first(prompts, a, b):
    return [1.0] * len(a)

def one(x): return [0.0]
def short(prompts, responses): return [0.0]
def hole(prompts, responses): return [float("nan")] * len(responses)
def words(prompts, responses): return ["good"] * len(responses)
def breaks(prompts, responses): raise KeyError("no such topic")
def sure(prompts, a, b): return [2.0] * len(a)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_reward_from_file_and_module(file):
    assert load_reward(f"{file}:length")(["p", "p"], ["a", "abc"]) == [1.0, 3.0]
    assert load_reward("operator:eq").name == "operator:eq"
    assert load_reward(lambda prompts, responses: [7] * len(responses))(["p"], ["r"]) == [7.0]


def test_objectives(file):
    many = load_reward(f"{file}:many")
    assert many(["p"], ["abc"]) == [1.0]
    assert many.objectives(["p"], ["abc"]) == {"reward": [1.0], "brevity": [-3.0]}
    assert load_reward(f"{file}:many#brevity")(["p"], ["abc"]) == [-3.0]
    with pytest.raises(PrefoptError, match="choose one"):
        load_reward(f"{file}:unnamed")(["p"], ["r"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "neither a folder"),
        ("no_such_module:f", "no Python module 'no_such_module'"),
        ("json:nothing", "has no function 'nothing'"),
        ("absent.py:f", "there is no file"),
        ("FILE:absent", "it has: breaks"),
        ("FILE:one", r"signature \(x\); it is called as f\(prompts, responses\)"),
    ],
)
def test_specifications_that_name_nothing(file, spec, message):
    with pytest.raises(PrefoptError, match=message):
        load_reward(spec.replace("FILE", str(file)))


@pytest.mark.parametrize(
    ("name", "message"),
    [("short", "1 values for 2"), ("hole", "nan for response 0"), ("words", "list of numbers"), ("breaks", "KeyError")],
)
def test_answers_that_are_no_rewards(file, name, message):
    with pytest.raises(PrefoptError, match=message):
        load_reward(f"{file}:{name}")(["p", "q"], ["a", "b"])
    with pytest.raises(PrefoptError, match="give one each"):
        load_reward(f"{file}:length")(["p"], ["a", "b"])


def test_missing_values_pass_only_where_allowed(file):
    assert math.isnan(load_reward(f"{file}:hole")(["p"], ["a"], missing=True)[0])


def test_a_file_that_fails_names_itself(tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_thing_at_all")
    with pytest.raises(PrefoptError, match="no_such_thing_at_all"):
        load_reward(f"{tmp_path}/bad.py:f")


def test_judge_from_reward_is_asked_once_and_has_ties(file):
    judge = judge_from_reward(load_reward(f"{file}:length"), tie=1)
    assert judge.both_orders(["p"] * 3, ["aaaa", "a", "aaa"], ["a", "aaaa", "aa"])[0] == [1.0, 0.0, 0.5]
    assert math.isnan(load_judge(f"{file}:hole")(["p"], ["a"], ["b"])[0])


def test_judge_in_both_orders(file):
    first, second = load_judge(f"{file}:first").both_orders(["p"], ["a"], ["b"])
    assert (first, second) == ([1.0], [0.0])
    first, second = load_judge(f"{file}:judge").both_orders(["p"], ["aa"], ["b"])
    assert (first, second) == ([1.0], [1.0])
    assert load_judge(f"{file}:length").fair
    assert load_judge(f"{file}:many#brevity").fair


@pytest.mark.parametrize(("name", "message"), [("one", "must take"), ("sure", "returned 2.0")])
def test_wrong_judges(file, name, message):
    with pytest.raises(PrefoptError, match=message):
        load_judge(f"{file}:{name}")(["p"], ["a"], ["b"])


def test_judge_cache_asks_once_per_order_and_not_for_a_changed_judge(tmp_path):
    calls = []

    def judge(prompts, a, b):
        calls.append(len(prompts))
        return [math.nan if x == "lost" else 0.75 for x in a]

    cache = JudgeCache(tmp_path / "judge.sqlite")
    loaded = load_judge(judge)
    question = (["p", "p", "q"], ["x", "x", "lost"], ["y", "y", "z"])
    first, second = loaded.both_orders(*question, cache)
    assert first[:2] == [0.75, 0.75]
    assert math.isnan(first[2])
    assert second[0] == 0.25
    assert calls == [2, 2]  # the repeated question is asked once in each order
    JudgeCache(tmp_path / "judge.sqlite")
    loaded.both_orders(*question, cache)
    assert calls == [2, 2, 1]  # only the judgment that was missing
    from dataclasses import replace

    replace(loaded, identity="another").both_orders(*question, cache)
    assert calls == [2, 2, 1, 2, 2]


def test_reward_model_folder(tmp_path, tokenizer):
    from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "vocab_size": 64}  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(**shape, num_labels=1, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    reward = load_reward(str(tmp_path / "rm"), progress=False)
    prompts, responses = ["w1 w2", "w3", "w1"], [" w4", " w5 w6 w7 w8", ""]
    together = reward(prompts, responses)
    alone = [reward([p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    ids = tokenizer("w1 w2 w4")["input_ids"] + [tokenizer.eos_token_id]
    assert together[0] == pytest.approx(model(torch.tensor([ids])).logits.item(), abs=1e-5)

    AutoModelForSequenceClassification.from_config(LlamaConfig(**shape, num_labels=3)).save_pretrained(
        tmp_path / "three"
    )
    with pytest.raises(PrefoptError, match="3 labels"):
        load_reward(str(tmp_path / "three"))
    LlamaForCausalLM(config).save_pretrained(tmp_path / "headless")
    tokenizer.save_pretrained(tmp_path / "headless")
    with pytest.raises(PrefoptError, match="no trained reward head"):
        load_reward(str(tmp_path / "headless"))
