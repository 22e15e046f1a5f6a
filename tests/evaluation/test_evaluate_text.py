"""The driver, on tiny models: numbers that can be computed another way, and what is left out where input lacks."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt import get_method
from prefopt.data.encode import Encoded
from prefopt.errors import PrefoptError
from prefopt.evaluation.text import evaluate_text
from prefopt.rewards.judges import load_judge
from prefopt.rewards.load import load_reward
from prefopt.rollout.numbers import answers, token_numbers
from prefopt.rollout.text import Sampling

PROMPTS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8"]
SAMPLING = Sampling(max_new_tokens=8, n=3, batch_size=8)


def tiny(seed):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=64, eos_token_id=2, initializer_range=0.15)).eval()


@pytest.fixture(scope="module")
def policy():
    return tiny(1)


@pytest.fixture(scope="module")
def start():
    return tiny(2)


@pytest.fixture(scope="module")
def pairs():
    rows = [([4, 5, 6], [[7, 8, 2], [9, 2]]), ([10], [[11, 12, 13, 2], [14, 15, 2]]), ([16, 17], [[18, 2], [19, 2]])]
    return [Encoded(p, r, [[1] * len(x) for x in r], [[0, 1]], index=i) for i, (p, r) in enumerate(rows)]


REWARD = load_reward(
    lambda prompts, texts: {"reward": [float(len(t)) for t in texts], "w9": [t.count("w9") for t in texts]}
)


def logps(model, prompt, response):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logits.gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


def test_token_numbers_equal_plain_transformers(policy):
    examples = [answers([4, 5], [[6, 7, 2], [8, 2]]), answers([9], [[10, 2]]), answers([11] * 20, [[12, 13]])]
    policy.train()
    found = token_numbers(policy, examples, ["policy", "entropy"], tokens=24, progress=False)
    assert policy.training
    policy.eval()
    for example, numbers in zip(examples, found, strict=True):
        for response, got in zip(example.response_ids, numbers["policy"], strict=True):
            assert got == pytest.approx(logps(policy, example.prompt_ids, response), abs=1e-5)
    with torch.no_grad():
        p = policy(torch.tensor([[9]])).logits[0, -1].log_softmax(-1)
    assert found[1]["entropy"][0][0] == pytest.approx(float(-(p.exp() * p).sum()), abs=1e-5)


def test_everything_against_another_way(policy, start, tokenizer, pairs):
    found = evaluate_text(policy, start, tokenizer, prompts=PROMPTS, pairs=pairs, reward=REWARD, sampling=SAMPLING,
                          progress=False)  # fmt: skip
    numbers, rows = found.numbers, found.samples
    json.dumps(numbers, allow_nan=False)
    assert len(rows) == 12
    assert [r["prompt"] for r in rows[::3]] == PROMPTS

    gain = np.mean([r["reward_after"] - r["reward_before"] for r in rows])
    assert numbers["reward"]["gain"]["value"] == pytest.approx(gain)
    assert numbers["reward"]["gain"]["n"] == 4
    assert numbers["reward"]["policy"]["value"] == pytest.approx(np.mean([len(r["after"]) for r in rows]))
    assert set(numbers["objectives"]) == {"w9"}
    outcome = [
        float(r["reward_after"] > r["reward_before"]) + 0.5 * (r["reward_after"] == r["reward_before"]) for r in rows
    ]
    assert numbers["win_rate"]["value"] == pytest.approx(np.mean(outcome))
    assert numbers["length"]["tokens"]["start"]["value"] == pytest.approx(np.mean([r["tokens_before"] for r in rows]))
    assert numbers["length"]["characters"]["policy"]["value"] == pytest.approx(np.mean([len(r["after"]) for r in rows]))
    assert "self_bleu" in numbers["diversity"]

    ratio = lambda e, i: sum(
        logps(policy, e.prompt_ids, e.response_ids[i]) - logps(start, e.prompt_ids, e.response_ids[i])
    )
    margins = [0.1 * (ratio(e, 0) - ratio(e, 1)) for e in pairs]
    assert numbers["preference"]["margin"]["value"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert numbers["preference"]["accuracy"]["value"] == pytest.approx(np.mean(np.array(margins) > 0))


def test_kl_is_that_of_the_samples(policy, start, tokenizer):
    sampling = Sampling(max_new_tokens=1, n=400, batch_size=400)
    kl = evaluate_text(policy, start, tokenizer, prompts=["w1"], sampling=sampling, progress=False).numbers["kl"]
    with torch.no_grad():
        p, q = (m(torch.tensor([[4]])).logits[0, -1].log_softmax(-1) for m in (policy, start))
    exact = float((p.exp() * (p - q)).sum())
    spread = float(((p.exp() * (p - q) ** 2).sum() - exact**2).sqrt()) / math.sqrt(400)
    assert abs(kl["k1"]["value"] - exact) < 4 * spread
    assert kl["k1"]["n"] == 1
    assert kl["k1"]["se"] is None


def test_a_model_against_itself_has_moved_nowhere(policy, tokenizer, pairs):
    numbers = evaluate_text(policy, policy, tokenizer, prompts=PROMPTS, pairs=pairs, reward=REWARD, sampling=SAMPLING,
                            progress=False).numbers  # fmt: skip
    assert numbers["kl"]["k1"]["value"] == numbers["kl"]["k3"]["value"] == 0
    assert numbers["reward"]["gain"]["value"] == 0
    assert numbers["win_rate"]["value"] == 0.5
    assert numbers["preference"]["accuracy"]["value"] == 0.5


def test_models_are_loaded_one_at_a_time(tokenizer):
    alive, most = [0], [0]

    class Counted(LlamaForCausalLM):
        def __del__(self):
            alive[0] -= 1

    def load():
        model = tiny(1)
        model.__class__ = Counted
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return model

    evaluate_text(load, load, tokenizer, prompts=PROMPTS[:1], sampling=SAMPLING, progress=False)
    assert most[0] == 1
    assert alive[0] == 0


def test_the_policy_without_its_adapter_is_the_start(tokenizer, pairs):
    from peft import LoraConfig, get_peft_model

    base = tiny(1)
    model = get_peft_model(tiny(1), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    options = {"prompts": PROMPTS, "pairs": pairs, "reward": REWARD, "sampling": SAMPLING, "progress": False}
    without = evaluate_text(model, None, tokenizer, **options)
    explicit = evaluate_text(model, base, tokenizer, **options)
    assert without.numbers["kl"]["k3"]["value"] > 0
    assert without.samples == explicit.samples
    assert without.numbers["kl"]["k1"]["value"] == pytest.approx(explicit.numbers["kl"]["k1"]["value"], abs=1e-5)
    with pytest.raises(PrefoptError, match="no adapter"):
        evaluate_text(base, None, tokenizer, **options)


def test_the_methods_own_reward_is_used_where_it_can_be(policy, start, tokenizer, pairs):
    options = {"prompts": PROMPTS[:1], "pairs": pairs, "sampling": SAMPLING, "progress": False}
    plain = evaluate_text(policy, start, tokenizer, **options).numbers
    strong = evaluate_text(policy, start, tokenizer, method=get_method("dpo", beta=0.5), **options).numbers
    assert strong["preference"]["margin"]["value"] == pytest.approx(
        5 * plain["preference"]["margin"]["value"], rel=1e-4
    )
    simpo = evaluate_text(policy, start, tokenizer, method=get_method("simpo", beta=1.0), **options).numbers
    average = [np.mean(logps(policy, e.prompt_ids, r)) for e in pairs for r in e.response_ids]
    assert simpo["preference"]["margin"]["value"] == pytest.approx(
        np.mean(average[::2]) - np.mean(average[1::2]), abs=1e-5
    )
    orpo = evaluate_text(policy, start, tokenizer, method=get_method("orpo"), **options).numbers
    assert "log-ratio" in orpo["settings"]["implicit_reward"]


def test_what_lacks_its_input_is_left_out(policy, start, tokenizer):
    numbers = evaluate_text(policy, start, tokenizer, prompts=PROMPTS[:2], sampling=SAMPLING, progress=False).numbers
    assert not {"reward", "win_rate", "preference"} & set(numbers)
    assert numbers["notes"] == []
    cold = evaluate_text(policy, start, tokenizer, prompts=PROMPTS[:2], sampling=Sampling(4, temperature=0.5),
                         judge=load_judge(lambda prompts, a, b: [1.0] * len(a)), progress=False).numbers  # fmt: skip
    assert "not the KL" in cold["notes"][0]
    assert cold["win_rate"]["value"] == 0.5
    assert cold["win_rate"]["position_bias"]["value"] == 1
    with pytest.raises(PrefoptError, match="no prompts"):
        evaluate_text(policy, start, tokenizer, prompts=[], progress=False)


def test_rewards_that_are_missing_are_dropped_with_a_count(policy, start, tokenizer):
    calls = []

    def sometimes(prompts, texts):
        calls.append(prompts)
        return [math.nan if p == PROMPTS[0] else 1.0 for p in prompts]

    found = evaluate_text(policy, start, tokenizer, prompts=[PROMPTS[0], [{"role": "user", "content": "w4"}]],
                          reward=load_reward(sometimes), sampling=SAMPLING, progress=False)  # fmt: skip
    assert found.numbers["reward"]["gain"]["n"] == 1
    assert sum(found.numbers["reward"]["gain"]["dropped"].values()) == 3
    assert calls[0][3] == "w4"  # a conversation reaches a plain reward function as text
    assert found.samples[0]["reward_after"] is None
