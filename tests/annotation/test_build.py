"""Numbers about responses made by models and functions, and written beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prefopt.annotation import build
from prefopt.annotation.build import build_scores
from prefopt.data.config import DataConfig
from prefopt.errors import PrefoptError
from tests.small_models import save_text_model

TASTE = """
def short(prompts, responses):
    return [-float(len(r)) for r in responses]

def broken(prompts, responses):
    return [float("nan") for r in responses]
"""


@pytest.fixture
def taste(tmp_path: Path) -> str:
    (tmp_path / "taste.py").write_text(TASTE)
    return f"{tmp_path}/taste.py"


@pytest.fixture(scope="session")
def word_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A model whose tokens are words, not the letters of the others."""
    folder = tmp_path_factory.mktemp("words")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> DataConfig:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return DataConfig(path=str(path))


def pairs(path: Path, n: int = 5) -> DataConfig:
    rows = [{"prompt": f"w{i + 1} w2", "chosen": " w3" * (i + 1), "rejected": " w4 w5", "id": i} for i in range(n)]
    return write(path, rows)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_transformers(folder: Path, prompt: str, response: str) -> tuple[float, int]:
    """Log-probability of the response's tokens and its end token, the plain way."""
    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    start, whole = (words(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + response))
    said = [*whole[len(start) :], words.eos_token_id]
    if words("a")["input_ids"][0] == words.bos_token_id:
        start = [words.bos_token_id, *start]
    with torch.no_grad():
        logp = model(torch.tensor([start + said])).logits.log_softmax(-1)[0]
    return sum(logp[len(start) + j - 1, t].item() for j, t in enumerate(said)), len(said)


def test_functions_beside_pairs_and_lists(tmp_path: Path, taste: str) -> None:
    data = pairs(tmp_path / "pairs.jsonl")
    add = {"reward_score": [f"{taste}:short"], "margin_rewards": [f"{taste}:short", f"{taste}:short"]}
    record = build_scores(data, add, tmp_path / "out.jsonl", progress=False)
    for before, after in zip(read(tmp_path / "pairs.jsonl"), read(tmp_path / "out.jsonl"), strict=True):
        assert {k: after[k] for k in before} == before
        assert after["chosen_reward_score"] == -len(before["chosen"])
        assert after["rejected_margin_rewards"] == [-6.0, -6.0]
    kept = json.loads((tmp_path / "out.jsonl.job").read_text())
    assert kept == record
    assert kept["statistics"]["reward_score"]["numbers"] == 10
    listed = write(tmp_path / "lists.jsonl", [{"prompt": "w1", "responses": ["w2", "w3 w4", ""], "scores": [1, 2, 0]}])
    build_scores(listed, {"reward_score": [f"{taste}:short"]}, tmp_path / "lists-out.jsonl", progress=False)
    assert read(tmp_path / "lists-out.jsonl")[0]["reward_score"] == [-2.0, -5.0, None]


def test_functions_get_what_conversations_say(tmp_path: Path, taste: str) -> None:
    row = {
        "prompt": [{"role": "user", "content": "which?"}],
        "chosen": [{"role": "assistant", "content": "good one"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    data = write(tmp_path / "chat.jsonl", [row])
    build_scores(data, {"reward_score": [f"{taste}:short"]}, tmp_path / "out.jsonl", progress=False)
    made = read(tmp_path / "out.jsonl")[0]
    assert (made["chosen_reward_score"], made["rejected_reward_score"]) == (-8.0, -3.0)
    assert {k: made[k] for k in row} == row


def test_a_model_counts_in_its_own_tokens(tmp_path: Path, word_model: Path, text_model: Path) -> None:
    data = pairs(tmp_path / "pairs.jsonl")
    add = {"sources": [str(word_model), str(text_model)]}
    build_scores(data, add, tmp_path / "out.jsonl", progress=False)
    row = read(tmp_path / "out.jsonl")[2]
    for side in ("chosen", "rejected"):
        sums, counts = row[f"{side}_source_sums"], row[f"{side}_source_counts"]
        for i, folder in enumerate((word_model, text_model)):
            want, tokens = by_transformers(folder, row["prompt"], row[side])
            assert counts[i] == tokens
            assert sums[i] == pytest.approx(want, abs=1e-3)
        assert counts[0] < counts[1]


def test_implicit_rewards_carry_their_beta(tmp_path: Path, text_model: Path) -> None:
    other = save_text_model(tmp_path / "other", num_hidden_layers=1)
    run = tmp_path / "run"
    run.mkdir()
    for file in other.iterdir():
        (run / file.name).write_bytes(file.read_bytes())
    (run / "config.yaml").write_text(
        f"method: {{name: dpo, beta: 0.3}}\nmodel: {text_model}\ndata: pairs.jsonl\noutput: {run}\n"
    )
    data = pairs(tmp_path / "pairs.jsonl", 3)
    given = f"implicit:{other},reference={text_model},beta=0.3"
    add = {"margin_rewards": [given, f"implicit:{run}"]}
    build_scores(data, add, tmp_path / "out.jsonl", progress=False)
    for row in read(tmp_path / "out.jsonl"):
        a, b = (by_transformers(f, row["prompt"], row["chosen"])[0] for f in (other, text_model))
        assert row["chosen_margin_rewards"] == pytest.approx([0.3 * (a - b)] * 2, abs=1e-3)


def test_a_stopped_build_goes_on(tmp_path: Path, taste: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CHUNK", 2)
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    data = pairs(tmp_path / "pairs.jsonl")
    from prefopt.annotation.measures import ByReward

    asked: list[int] = []
    real = ByReward.__call__

    def counted(self: Any, examples: Any) -> Any:
        asked.append(len(examples))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(self, examples)

    monkeypatch.setattr(ByReward, "__call__", counted)
    add = {"reward_score": [f"{taste}:short"]}
    with pytest.raises(KeyboardInterrupt):
        build_scores(data, add, tmp_path / "out.jsonl", progress=False)
    assert not (tmp_path / "out.jsonl").exists()
    build_scores(data, add, tmp_path / "out.jsonl", progress=False)
    assert asked == [2, 2, 2, 1]  # the first chunk was kept
    assert len(read(tmp_path / "out.jsonl")) == 5
    build_scores(data, add, tmp_path / "out.jsonl", progress=False)  # again: nothing to do
    assert asked == [2, 2, 2, 1]
    with pytest.raises(PrefoptError, match="nothing is overwritten"):
        build_scores(data, {"margin_rewards": [f"{taste}:short"]}, tmp_path / "out.jsonl", progress=False)


def test_rows_that_teach_nothing_are_written_without_numbers(tmp_path: Path, taste: str) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": other} for other in ("b", "c")]
    data = write(tmp_path / "p.jsonl", rows)
    build_scores(data, {"reward_score": [f"{taste}:short"]}, tmp_path / "out.jsonl", progress=False)
    same, other = read(tmp_path / "out.jsonl")
    assert "chosen_reward_score" not in same
    assert other["chosen_reward_score"] == -1.0


@pytest.mark.parametrize(
    ("add", "words"),
    [
        ({}, "nothing to add"),
        ({"reward_scor": ["{taste}:short"]}, "did you mean 'reward_score'"),
        ({"reward_score": ["{taste}:short", "{taste}:short"]}, "one number per response"),
        ({"reward_score": ["{taste}:long"]}, "no function 'long'"),
        ({"reward_score": ["{taste}:broken"]}, "nan"),
        ({"reward_score": ["nowhere"]}, "neither a folder"),
        ({"sources": ["./nowhere"]}, "--add sources"),
        ({"margin_rewards": ["implicit:{model}"]}, "reference and beta"),
        ({"margin_rewards": ["implicit:{model},reference={model},beta=-1"]}, "greater than 0"),
        ({"margin_rewards": ["implicit:{model},reference={model},b=1"]}, "unknown 'b'"),
        ({"margin_rewards": ["implicit:{model},reference={words},beta=1"]}, "other tokenizers"),
    ],
    ids=str,
)
def test_refusals(
    add: dict[str, list[str]], words: str, tmp_path: Path, taste: str, text_model: Path, word_model: Path
) -> None:
    places = {"taste": taste, "model": text_model, "words": word_model}
    filled = {k: [s.format(**places) for s in v] for k, v in add.items()}
    with pytest.raises(PrefoptError) as error:
        build_scores(pairs(tmp_path / "pairs.jsonl"), filled, tmp_path / "out.jsonl", progress=False)
    assert words in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_data_is_refused_before_any_model_is_asked(tmp_path: Path) -> None:
    missing = {"reward_score": ["no.such.module:f"]}
    for rows, words in (
        ([{"prompt": "a"}], "no response"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_reward_score": 1}], "'chosen_reward_score' already"),
    ):
        with pytest.raises(PrefoptError, match=words):
            build_scores(write(tmp_path / "d.jsonl", rows), missing, tmp_path / "o.jsonl", progress=False)
    with pytest.raises(PrefoptError, match=r"\.jsonl"):
        build_scores(pairs(tmp_path / "p.jsonl"), missing, tmp_path / "o.csv", progress=False)


def test_a_prompt_over_a_source_s_limit_says_what_to_do(text_model: Path, tmp_path: Path) -> None:
    data = pairs(tmp_path / "pairs.jsonl").model_copy(update={"max_length": 4})
    with pytest.raises(PrefoptError, match=r"row \d.*cannot be scored by .*max_length.*max_prompt_length"):
        build_scores(data, {"sources": [str(text_model)]}, tmp_path / "out.jsonl", progress=False)
    cut = data.model_copy(update={"max_prompt_length": 2})
    assert build_scores(cut, {"sources": [str(text_model)]}, tmp_path / "out.jsonl", progress=False)["rows"] == 5


def test_an_answer_past_a_source_s_positions_says_what_to_do(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "short"
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=4, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = pairs(tmp_path / "d.jsonl")
    with pytest.raises(
        PrefoptError, match=r"row 1: cannot be scored by .*short: .* of its tokens, and it has 4 pos.*max_l"
    ):
        build_scores(data, {"sources": [str(folder)]}, tmp_path / "out.jsonl", progress=False)
