"""Generation: the same samples whatever the batching, the right distribution, nothing left changed."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.errors import PrefoptError
from prefopt.rollout.text import Sampling, encode_prompt, generate, prompt_encoder, prompt_text

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w1 w2", "w4"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64,
        eos_token_id=2, bos_token_id=1, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def ids(answers):
    return [[s.token_ids for s in group] for group in answers]


def test_samples_do_not_depend_on_batching_or_position_in_the_batch(model, tokenizer):
    s = Sampling(max_new_tokens=12, n=3, seed=5, batch_size=32)
    whole = ids(generate(model, tokenizer, PROMPTS, s, progress=False))
    for size in (1, 4):
        again = generate(model, tokenizer, PROMPTS, Sampling(12, n=3, seed=5, batch_size=size), progress=False)
        assert ids(again) == whole
    part = generate(model, tokenizer, PROMPTS[2:], s, first=2, progress=False)
    assert ids(part) == whole[2:]
    assert whole[0][0] != whole[0][1]  # samples of a prompt differ
    assert whole[1] != whole[4]  # so do those of an equal prompt elsewhere
    assert ids(generate(model, tokenizer, PROMPTS, Sampling(12, n=3, seed=6), progress=False)) != whole


def test_nothing_is_left_changed(model, tokenizer):
    model.train()
    model.model.layers[0].eval()
    config, state = model.generation_config.to_dict(), torch.random.get_rng_state()
    generate(model, tokenizer, PROMPTS[:1], Sampling(4), progress=False)
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].training
    assert model.generation_config.to_dict() == config
    assert torch.equal(state, torch.random.get_rng_state())
    model.eval()


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}])
def test_samples_follow_the_models_distribution(model, tokenizer, filters):
    prompt = encode_prompt(prompt_encoder(tokenizer), PROMPTS[0])
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt])).logits[0, -1].double() / filters.get("temperature", 1.0)
    p = logits.softmax(-1)
    if "top_k" in filters:
        p = p * (p >= p.topk(3).values[-1])
    if "top_p" in filters:
        order = p.argsort(descending=True)
        keep = order[: int((p[order].cumsum(0) < 0.5).sum()) + 1]
        p = torch.zeros_like(p).index_copy(0, keep, p[keep])
    p = (p / p.sum()).numpy()
    n = 4000
    (answers,) = generate(model, tokenizer, PROMPTS[:1], Sampling(1, n=n, batch_size=2000, **filters), progress=False)
    seen = np.bincount([s.token_ids[0] for s in answers], minlength=64)
    assert seen[p == 0].sum() == 0
    assert (np.abs(seen - n * p) < 5 * np.sqrt(n * p * (1 - p)) + 1e-6).all()


def test_greedy_equals_plain_transformers(model, tokenizer):
    prompt = torch.tensor([encode_prompt(prompt_encoder(tokenizer), PROMPTS[0])])
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    (answers,) = generate(model, tokenizer, PROMPTS[:1], Sampling(8, temperature=0), progress=False)
    assert answers[0].token_ids == expected[0, prompt.shape[1] :].tolist()[: len(answers[0].token_ids)]


def test_the_models_own_generation_settings_do_not_bend_the_samples(model, tokenizer):
    plain = ids(generate(model, tokenizer, PROMPTS, Sampling(12), progress=False))
    before = model.generation_config
    model.generation_config = type(before)(repetition_penalty=5.0, temperature=0.1, top_k=1, do_sample=True)
    try:
        assert ids(generate(model, tokenizer, PROMPTS, Sampling(12), progress=False)) == plain
    finally:
        model.generation_config = before


def test_finished_answers_keep_their_end_token_and_hide_it_in_the_text(model, tokenizer):
    answers = [s for g in generate(model, tokenizer, PROMPTS, Sampling(60, n=8), progress=False) for s in g]
    ended = [s for s in answers if s.finished]
    assert ended
    assert all(s.token_ids[-1] == 2 and s.token_ids.count(2) == 1 for s in ended)
    assert all("</s>" not in s.text for s in answers)
    cut = [s for g in generate(model, tokenizer, PROMPTS, Sampling(1, n=8), progress=False) for s in g]
    assert all(s.finished == (s.token_ids == [2]) for s in cut)


def test_chat_prompts_end_where_the_answer_begins(model, tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w1 ' if m.role == 'user' else 'w2 ' }}{{ m.content }} w3 {% endfor %}"
        "{% if add_generation_prompt %}w2{% endif %}"
    )
    try:
        got = encode_prompt(prompt_encoder(tokenizer), [{"role": "user", "content": "w9"}])
    finally:
        tokenizer.chat_template = None
    assert got == tokenizer("w1 w9 w3 w2")["input_ids"]
    with pytest.raises(PrefoptError, match="no tokens"):
        encode_prompt(prompt_encoder(tokenizer), "")


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"), ({"n": 0}, "n must"), ({"top_k": -2}, "top_k"),
     ({"max_new_tokens": 1.5}, "whole number"), ({"batch_size": True}, "batch_size")],
)  # fmt: skip
def test_wrong_settings(setting, message):
    with pytest.raises(PrefoptError, match=message):
        Sampling(**setting)


def test_prompts_as_text():
    assert prompt_text("Hi") == "Hi"
    assert prompt_text([{"role": "user", "content": "Hi"}]) == "Hi"
    assert prompt_text([{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]) == "system: S\nuser: Hi"
    assert prompt_text([{"role": "user", "content": [{"type": "image"}]}]) == '[{"type": "image"}]'
