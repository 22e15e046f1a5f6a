"""Every template family: the boundary that generation sees, one BOS, one end token, masks; held in golden files.

PREFOPT_UPDATE_GOLDEN=1 writes the golden files anew; read the difference before committing it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoded, Encoder
from prefopt.data.example import Example
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.errors import PrefoptError
from tests.data.families import FAMILIES, R1, make_tokenizer, tokenizer

GOLDEN = Path(__file__).parent / "golden"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def u(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def a(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


ASK = [u("What is the capital of France?")]
NORWAY = u("And of Norway?")
CASES: dict[str, Example] = {
    "a pair of answers": Example(ASK, ([a("Paris.")], [a("It is not known.")]), ((0, 1),)),
    "string prompt": Example("What is the capital of France?", (" Paris.", " It is Lyon."), ((0, 1),)),
    "system and history": Example(
        [{"role": "system", "content": "Answer with one word."}, u("hello"), a("hello there"), *ASK],
        ([a("Paris.")], [a("Lyon.")]), ((0, 1),)),
    "answers over several turns": Example(
        ASK, ([a("Paris."), NORWAY, a("Oslo.")], [a("Lyon."), NORWAY, a("Bergen.")]), ((0, 1),)),
    "an unscored turn": Example(ASK, ([a("Rome.", train=False), u("No."), a("Paris.")],)),
    "tool calls": Example(
        [u("How is the weather?")],
        ([a("", tool_calls=[CALL]), {"role": "tool", "content": "cold"}, a("Cold.")], [a("I do not know.")]), ((0, 1),),
        tools=[WEATHER]),
    "thinking on one side": Example(ASK, ([a("Paris.", reasoning_content="France: Paris.")], [a("Lyon.")]), ((0, 1),)),
    "thinking inside the content": Example(ASK, ([a("<think>\nFrance.\n</think>\n\nParis.")], [a("Lyon.")]), ((0, 1),)),
}  # fmt: skip


def encoder(family: str, **options: Any) -> Encoder:
    return Encoder(tokenizer(family), DataConfig(path="none", **options))


def picture(encoder: Encoder, example: Example) -> str:
    """An encoded example, readable: prompt, then stretches of each response marked + (scored) and - (not scored)."""
    try:
        encoded = encoder(example)
    except (Unreadable, TeachesNothing) as error:
        return f"refused: {error}\n"
    decode = encoder.tokenizer.decode
    lines = [f"prompt     {decode(encoded.prompt_ids)!r}"]
    for i, (ids, mask) in enumerate(zip(encoded.response_ids, encoded.response_mask)):
        for scored, run in groupby(zip(ids, mask), key=lambda x: x[1]):
            lines.append(f"response {i} {'+' if scored else '-'} {decode([t for t, _ in run])!r}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_golden(family: str) -> None:
    drawn = ""
    for title, example in CASES.items():
        drawn += f"# {title}\n{picture(encoder(family), example)}\n"
    for rule in ("strip", "mask"):
        drawn += f"# thinking on one side, thinking: {rule}\n"
        drawn += picture(encoder(family, thinking=rule), CASES["thinking on one side"]) + "\n"
    file = GOLDEN / f"{family}.txt"
    if os.environ.get("PREFOPT_UPDATE_GOLDEN"):
        file.write_text(drawn, encoding="utf-8")
    assert drawn == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_is_what_generation_is_fed_with(family: str) -> None:
    encode, tok = encoder(family), tokenizer(family)
    prompt = CASES["a pair of answers"].prompt
    encoded = encode(CASES["a pair of answers"])
    if tok.chat_template:
        fed = tok.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, enable_thinking=False)[
            "input_ids"
        ]
    else:
        fed = tok("\n\nHuman: What is the capital of France?\n\nAssistant:")["input_ids"]
    assert encoded.prompt_ids == fed
    assert encode.prompt_ids(Example(prompt, ())) in (
        fed, tok.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True,
                                     chat_template=encode.templates.template)["input_ids"], fed[:1] + fed)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ["a pair of answers", "string prompt"])
def test_one_bos_one_end_token_and_the_answer_between(family: str, case: str) -> None:
    tok, (_, bos, eos, end, _) = tokenizer(family), FAMILIES[family]
    end_id = tok.convert_tokens_to_ids(eos if case == "string prompt" and family == "plain" else end)
    encoded = encoder(family)(CASES[case])
    for ids, mask, text in zip(encoded.response_ids, encoded.response_mask, ("Paris.", None)):
        whole = encoded.prompt_ids + ids
        if bos:
            assert [i for i, t in enumerate(whole) if t == tok.bos_token_id] == [0]
        assert ids[-1] == end_id
        assert mask[-1] == 1
        assert sum(t in (end_id, tok.eos_token_id) for t in ids) == 1
        if text:
            assert tok.decode(ids[:-1]).strip() == text
            assert all(mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_scored_tokens_are_the_assistants_words_and_end_tokens(family: str) -> None:
    tok, end = tokenizer(family), FAMILIES[family][3]
    encoded = encoder(family)(CASES["answers over several turns"])
    scored = tok.decode([t for t, m in zip(encoded.response_ids[0], encoded.response_mask[0]) if m])
    assert scored.replace(end, "|").replace(" ", "") == ("Paris.Oslo.|" if family == "plain" else "Paris.|Oslo.|")


def test_answers_that_bring_their_end_token_keep_one() -> None:
    for family in ("llama3", "plain"):
        end = FAMILIES[family][3]
        encoded = encoder(family)(Example(ASK, ([a(f"Paris.{end}")], [a("Lyon.")]), ((0, 1),)))
        assert encoded.response_ids[0].count(tokenizer(family).convert_tokens_to_ids(end)) == 1


def test_string_prompts_by_rule() -> None:
    example = CASES["string prompt"]
    tok = tokenizer("llama3")
    text = lambda e: tok.decode(e.prompt_ids)
    assert "start_header" in text(encoder("llama3")(example))
    assert text(encoder("llama3", strings="plain")(example)) == "<|begin_of_text|>What is the capital of France?"
    ready = Example("<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>", ("yes", "no"), ((0, 1),))
    assert text(encoder("llama3")(ready)).count("start_header") == 1
    assert "Human" in tokenizer("plain").decode(encoder("plain", strings="chat")(example).prompt_ids)


def test_a_bos_that_the_text_brings_is_not_doubled() -> None:
    ids = encoder("plain")(Example("<s>hello", (" there",))).prompt_ids
    assert ids.count(tokenizer("plain").bos_token_id) == 1


def test_a_template_without_bos_gets_the_familys() -> None:
    ids = encoder("llama3", chat_template=FAMILIES["chatml"][0])(CASES["a pair of answers"]).prompt_ids
    assert ids[0] == tokenizer("llama3").bos_token_id
    assert ids.count(ids[0]) == 1


def test_seam_merges_keep_generations_prompt_and_are_counted() -> None:
    encode, tok = encoder("plain"), tokenizer("plain")
    encoded = encode(Example("the cap", ("ital of France", " it"), ((0, 1),)))
    assert encoded.prompt_ids == tok("the cap")["input_ids"]
    assert tok.decode(encoded.response_ids[0]) == "ital of France</s>"
    assert encode.counts["seam merges"] == 1


def test_a_template_that_breaks_the_prefix_falls_back_to_the_common_beginning() -> None:
    tok = make_tokenizer(R1, "<s>", "</s>", ["<|User|>", "<|Assistant|>"])
    encode = Encoder(tok, DataConfig(path="none"))
    encoded = encode(CASES["a pair of answers"])
    assert tok.decode(encoded.prompt_ids) == "<s><|User|>What is the capital of France?<|Assistant|>"
    assert tok.decode(encoded.response_ids[0]) == "Paris.</s>"
    assert encode.counts["moved boundaries"] == 1
    alike = encode(Example(ASK, ([a("<thinner")], [a("Lyon.")]), ((0, 1),)))  # begins like the <think> of the prompt
    assert alike.prompt_ids == encoded.prompt_ids
    alone = encode(Example(ASK, ([a("<thinner")],)))
    assert alone.prompt_ids == encoded.prompt_ids


def test_prompts_alone_ask_for_thinking_unless_it_is_stripped() -> None:
    for rule, blocks in (("keep", 0), ("strip", 1)):
        ids = encoder("qwen3", thinking=rule).prompt_ids(Example(ASK, ()))
        assert tokenizer("qwen3").decode(ids).count("</think>") == blocks


def test_row_options_reach_the_template() -> None:
    example = Example(ASK, ([a("Paris.")], [a("Lyon.")]), ((0, 1),), template_kwargs={"enable_thinking": True})
    assert "think" not in tokenizer("qwen3").decode(encoder("qwen3")(example).prompt_ids)


def test_system_option_and_configured_templates(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    encode = encoder("plain", chat_template=str(tmp_path / "mine.jinja"))
    encoded = encode(CASES["a pair of answers"])
    assert tokenizer("plain").decode(encoded.prompt_ids) == "<s><user>What is the capital of France?<assistant>"
    assert tokenizer("plain").decode(encoded.response_ids[0]) == "Paris.</s>"
    with pytest.raises(PrefoptError, match="expected `plain`, a Jinja file"):
        encoder("plain", chat_template="nowhere.jinja")(CASES["a pair of answers"])


def test_what_templates_lose_is_refused() -> None:
    with pytest.raises(Unreadable, match="leaves out tool calls"):
        encoder("chatml")(replace(CASES["tool calls"], tools=None))
    with pytest.raises(Unreadable, match="leaves out tools;"):
        encoder("chatml")(CASES["tool calls"])
    with pytest.raises(Unreadable, match="System role not supported"):
        encoder("gemma")(CASES["system and history"])
    mute = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(PrefoptError, match="does not write the assistant's content"):
        encoder("plain", chat_template=mute)(CASES["a pair of answers"])
    cut = "{% for m in messages %}{{ m.role }}{{ m.content[:12] }}{% endfor %}"
    with pytest.raises(Unreadable, match="does not reproduce the answer"):
        encoder("plain", chat_template=cut)(Example(ASK, ([a("It is a longer answer.")],)))


def test_no_end_token_is_an_error() -> None:
    tok = make_tokenizer(None, "<s>", None, [])
    with pytest.raises(PrefoptError, match="no end token"):
        Encoder(tok, DataConfig(path="none"))(CASES["string prompt"])


def encoded_steps(family: str) -> tuple[Encoded, Any]:
    steps = ("The capital is asked.\n", "So the answer is Paris.")
    return encoder(family)(Example("hello", ("".join(steps),), steps=(steps,))), tokenizer(family)


@pytest.mark.parametrize("family", ["plain", "llama3", "qwen3"])
def test_step_index_follows_the_tokens(family: str) -> None:
    encoded, tok = encoded_steps(family)
    ids, (index,) = encoded.response_ids[0], encoded.notes["step_index"]
    assert len(index) == len(ids)
    assert tok.decode([t for t, s in zip(ids, index) if s == 1]).strip() == "The capital is asked."
    assert tok.decode([t for t, s in zip(ids, index) if s == 2][:-1]).strip() == "So the answer is Paris."
    assert index[-1] == 2
