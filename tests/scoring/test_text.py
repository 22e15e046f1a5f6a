"""The scoring entry: rows, extras and wrappers, and that nothing but the tokens decides about a log-probability."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from prefopt import PrefoptError, Responses, get_method
from prefopt.scoring import entry
from prefopt.scoring.base import Draw
from prefopt.scoring.batch import Collator
from prefopt.scoring.reference import FrozenReference
from prefopt.scoring.text import TextScorer, install

from .tiny_text import LLAMA_LIKE, example, examples, make, plain_logps, sequence_logps

ALL_EXTRAS = frozenset({"prompt", "gold", "mismatched"})


def logps(model: nn.Module, some: list, **collate: object) -> list[Tensor]:
    """[len] for every response."""
    batch = Collator(**collate)([Draw(e, 0) for e in some])
    values = model(tree=batch.layout, rows=batch.rows)["responses"]["logps"]
    return [v[:n] for v, n in zip(values, batch.rows["responses"].lengths, strict=True)]


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_batch_composition_changes_nothing(name: str) -> None:
    model = install(make(name))
    some = examples()
    together = logps(model, some)
    alone = [row for e in some for row in logps(model, [e])]
    turned = logps(model, some[::-1])
    order = [row for e in reversed(range(len(some))) for row in _rows_of(some, e)]
    for i, row in enumerate(together):
        torch.testing.assert_close(alone[i], row, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(turned[order.index(i)], row, atol=1e-5, rtol=1e-5)


def _rows_of(some: list, e: int) -> range:
    start = sum(len(x.response_ids) for x in some[:e])
    return range(start, start + len(some[e].response_ids))


def test_sharing_a_prompt_changes_nothing() -> None:
    model = install(make("qwen2 window"))
    e = example(14, 6, 9, 3)
    split = []
    for r in e.response_ids:
        split.append(example(14, 1, prompt_ids=e.prompt_ids, response_ids=[r], response_mask=[[1] * len(r)]))
    for shared, own in zip(logps(model, [e]), logps(model, split), strict=True):
        torch.testing.assert_close(shared, own, atol=1e-5, rtol=1e-5)


def test_extras_are_scored_on_the_right_tokens() -> None:
    plain = make("mistral window")
    policy = install(copy.deepcopy(plain))
    some = [example(9, 5, 8, gold=4), example(1, 3, 2, gold=7, seed=1)]
    batch = Collator(ALL_EXTRAS)([Draw(e, 0) for e in some])
    scored = policy(tree=batch.layout, rows=batch.rows)
    for i, e in enumerate(some):
        expect = {"gold": sequence_logps(plain, e.prompt_ids, e.gold_ids)}
        if len(e.prompt_ids) > 1:
            expect["prompt"] = sequence_logps(plain, e.prompt_ids[:1], e.prompt_ids[1:])
        else:
            assert not batch.rows["prompt"].mask[i].any()
        for name, values in expect.items():
            torch.testing.assert_close(scored[name]["logps"][i, : len(values)], values, atol=1e-5, rtol=1e-5)
    apart = batch.apart["mismatched"]
    values = policy(tree=apart.layout, rows=apart.rows)["responses"]["logps"]
    expected = [sequence_logps(plain, e.prompt_ids, r) for e, f in zip(some, some[::-1]) for r in f.response_ids]
    for row, x in zip(values, expected, strict=True):
        torch.testing.assert_close(row[: len(x)], x, atol=1e-5, rtol=1e-5)


def test_only_masked_tokens_are_scored() -> None:
    plain = make("llama")
    policy = install(copy.deepcopy(plain))
    e = example(5, 6, 4)
    e.response_mask[0] = [1, 1, 0, 0, 1, 1]  # a user's turn inside a response
    batch = Collator()([Draw(e, 0)])
    values = policy(tree=batch.layout, rows=batch.rows)["responses"]["logps"]
    expected = plain_logps(plain, [e])[0] * torch.tensor([1, 1, 0, 0, 1, 1])
    torch.testing.assert_close(values[0], expected, atol=1e-5, rtol=1e-5)
    assert batch.counts()["responses"].sum(-1).tolist() == [4, 4]


def test_gradient_checkpointing_changes_nothing() -> None:
    for name in ("llama", "gemma3_text", "qwen3_moe", "bloom"):
        grads = []
        for recompute in (False, True):
            model = install(make(name))
            if recompute:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            torch.cat(logps(model, examples())).sum().backward()
            grads.append([p.grad for p in model.parameters() if p.grad is not None])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_last_mlp_sees_needed_tokens_only() -> None:
    model = install(make("llama"))
    seen: list[int] = []
    model.model.layers[-1].mlp.gate_proj.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    e = example(20, 3, 2)
    logps(model, [e])
    # of 25 tokens: the prompt's last and all of the responses (their last ones for a reward head)
    assert seen == [6]
    ids = torch.tensor([e.prompt_ids])
    model(input_ids=ids)
    assert seen == [6, 20]


def test_without_a_tree_the_model_is_what_it_was() -> None:
    for name in ("llama", "gemma2", "gpt2", "bloom"):
        plain = make(name).eval()
        policy = install(copy.deepcopy(plain))
        assert install(policy) is policy
        ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
        torch.testing.assert_close(
            policy(ids, attention_mask=mask).logits[1], plain(ids, attention_mask=mask).logits[1]
        )
        options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(policy.generate(ids, **options), plain.generate(ids, **options))


def test_a_copy_is_a_model_of_its_own() -> None:
    model = install(make("llama"))
    before = torch.cat(logps(model, examples())).detach()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.testing.assert_close(torch.cat(logps(twin, examples())).detach(), before)


def test_saved_folders_know_nothing_of_scoring(tmp_path) -> None:
    install(make("llama")).save_pretrained(tmp_path)
    assert "prefopt" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("extra", ["none", "lora head", "saved head"])
def test_adapters(when: str, extra: str) -> None:
    targets = ["q_proj", "v_proj", "down_proj"] + (["lm_head"] if extra == "lora head" else [])
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    if extra == "saved head":
        config.modules_to_save = ["lm_head"]
    model = make("llama")
    if when == "before":
        install(model)
    model = get_peft_model(model, config)
    if extra == "saved head":
        with torch.no_grad():
            model.base_model.model.lm_head.modules_to_save.default.weight.mul_(1.5)
    if when == "after":
        install(model)
    expected = plain_logps(model, examples())
    got = logps(model, examples())
    grads = []
    for rows in (got, expected):
        model.zero_grad()
        torch.cat([r.square() for r in rows]).sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(torch.cat(got), torch.cat(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-4)


def test_bfloat16_is_near() -> None:
    model = install(make("llama"))
    exact = torch.cat(logps(model, examples())).detach()
    with torch.autocast("cpu", torch.bfloat16):
        near = torch.cat(logps(model, examples()))
    assert near.dtype == torch.float32
    assert (near - exact).abs().mean() < 0.1
    near.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_reward_is_read_at_the_last_token() -> None:
    config = AutoConfig.for_model("llama", **LLAMA_LIKE, num_labels=1)
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(config)
    model = install(copy.deepcopy(plain))
    scorer = TextScorer(reward=True)
    some = examples()
    batch = scorer.collate([Draw(e, 0) for e in some])
    scored = scorer.score(model, batch, {"scores:reward": {"grad": True}})["responses"]["reward"]
    expected = [plain(torch.tensor([e.prompt_ids + r])).logits[0] for e in some for r in e.response_ids]
    torch.testing.assert_close(scored.values, torch.stack(expected), atol=1e-5, rtol=1e-5)
    scored.sum().sum().backward()
    assert model.score.weight.grad.abs().sum() > 0
    with pytest.raises(PrefoptError, match="no language-model head"):
        model(tree=batch.layout, rows=batch.rows)
    with pytest.raises(PrefoptError, match="num_labels=1"):
        install(make("llama"))(tree=batch.layout, rows=batch.rows, want=("reward",))


def test_scores_of_a_method_with_everything() -> None:
    """KL, entropy and a reference on two row sets, against whole distributions."""
    plain, other = make("llama"), make("llama", seed=1)
    scorer = TextScorer(["extras:gold", "extras:mismatched"], FrozenReference(copy.deepcopy(other)))
    some = [example(9, 5, 8, gold=4), example(3, 3, 2, gold=7, seed=1)]
    batch = scorer.collate([Draw(e, 0) for e in some])
    asked = {"scores:policy": {"grad": True}, "scores:reference": {}}
    kl = {"scores:token_kl": {"grad": True}, "scores:entropy": {}}
    needs = asked | kl | {"extras:gold": {"grad": True, "asked": asked}, "extras:mismatched": {"asked": asked}}
    policy = install(copy.deepcopy(plain))
    scored = scorer.score(policy, batch, needs)
    assert {k: set(v) for k, v in scored.items()} == {
        "responses": {"policy", "reference", "token_kl", "entropy"},
        "gold": {"policy", "reference"},
    }
    ungraded = scorer.score(policy, batch, needs, grad=False)
    assert list(ungraded) == ["mismatched"]
    assert not ungraded["mismatched"]["policy"].values.requires_grad
    assert not scored["responses"]["reference"].values.requires_grad
    e, r = some[0], some[0].response_ids[1]
    at = slice(len(e.prompt_ids) - 1, -1)
    p, q = (torch.log_softmax(m(torch.tensor([e.prompt_ids + r])).logits[0, at], -1) for m in (plain, other))
    s = {name: scores.values[1, : len(r)] for name, scores in scored["responses"].items()}
    torch.testing.assert_close(s["token_kl"], (q.exp() * (q - p)).sum(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(s["entropy"], -(p.exp() * p).sum(-1), atol=1e-4, rtol=1e-4)
    expected = plain_logps(other, some)
    torch.testing.assert_close(s["reference"], expected[1], atol=1e-5, rtol=1e-5)


def test_methods_run_on_what_is_scored() -> None:
    policy = install(make("llama"))
    some = [example(9, 5, 8, notes={"margin": [0.5]}), example(3, 3, 2, seed=1, notes={"margin": [1.0]})]
    for name in ("dpo", "simpo", "orpo", "kto"):
        method = get_method(name)
        needs = method.needs()
        if name == "kto":
            some = [example(5, 4, seed=i, notes={"label": [bool(i % 2)]}) for i in range(4)]
        scorer = TextScorer(needs, FrozenReference.copy_of(policy))
        batch = scorer.collate([Draw(e, 0) for e in some])
        scored = {**scorer.score(policy, batch, needs, grad=False), **scorer.score(policy, batch, needs)}
        extras = {k: Responses(v) for k, v in scored.items() if k != "responses"}
        loss = method(Responses(scored["responses"], batch.notes, extras)).scalar
        loss.backward()
        assert torch.isfinite(loss)
        if name == "dpo":
            assert loss.item() == pytest.approx(0.693147, abs=1e-6)


def test_unproven_families_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    entry._told.clear()
    with caplog.at_level(logging.WARNING, "prefopt"):
        install(make("bloom"))
        install(make("bloom"))
        install(make("llama"))
    assert [r.getMessage().count("'bloom'") for r in caplog.records] == [1]


def test_a_family_with_unknown_logits_is_refused() -> None:
    model = make("bloom")
    known = type(model)

    class Scaled(known):
        def forward(self, *args: object, **kwargs: object) -> object:
            out = known.forward(self, *args, **kwargs)
            out.logits = out.logits * 0.5
            return out

    model.__class__ = Scaled
    with pytest.raises(PrefoptError, match="'bloom' changes logits after its head"):
        install(model)


def test_what_is_missing_is_named() -> None:
    model = install(make("llama"))
    bare = example(3, 2, 2, file="pairs.jsonl", row=7)
    with pytest.raises(PrefoptError, match=r"pairs.jsonl row 7.*gold"):
        Collator(frozenset({"gold"}))([Draw(bare, 0)])
    with pytest.raises(PrefoptError, match="at least two examples"):
        Collator(frozenset({"mismatched"}))([Draw(bare, 0)])
    scorer = TextScorer()
    batch = scorer.collate([Draw(bare, 0)])
    with pytest.raises(PrefoptError, match="without 'gold'"):
        scorer.score(model, batch, {"scores:policy": {}, "extras:gold": {"grad": True, "asked": {"scores:policy": {}}}})
    with pytest.raises(PrefoptError, match="made without one"):
        scorer.score(model, batch, {"scores:reference": {}})
