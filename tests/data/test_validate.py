"""The doctor finds what was planted, and the view shows what the model will see."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefopt.data.config import DataConfig
from prefopt.data.show import MASKED, PROMPT, SCORED, show_encoded, show_examples
from prefopt.data.validate import Report, check_data
from prefopt.data.validate_view import render_report
from prefopt.errors import PrefoptError
from tests.data.families import tokenizer
from tests.data.test_layouts import write
from tests.data.test_prepare import rows
from tests.data.test_templates import CASES, encoder


def check(path: Path, **options: Any) -> Report:
    mine = {k: options.pop(k) for k in ("needs", "tokenizer", "modality") if k in options}
    return check_data(DataConfig(path=str(path), **options), progress=False, **mine)


def found(report: Report) -> dict[str, tuple[str, int, list[str]]]:
    return {f.title: (f.severity, f.count, f.rows) for f in report.findings}


def test_clean_data_is_sound(tmp_path: Path) -> None:
    report = check(write(tmp_path / "d.jsonl", rows(20)[::2]), needs={"pairs"})
    assert (report.sound, report.rows, report.usable, report.layout) == (True, 10, 10, "pairs")
    assert not report.findings


@pytest.mark.parametrize(("row", "title"), [
    ({"prompt": "q", "chosen": None, "rejected": "x"}, "missing or null fields: 'chosen' is null"),
    ({"prompt": "q", "rejected": "x"}, "missing or null fields: 'chosen' is missing"),
    ({"prompt": 3, "chosen": "y", "rejected": "x"}, "fields of the wrong type"),
    ({"prompt": [{"role": "king"}], "chosen": "y", "rejected": "x"}, "malformed messages"),
    ({"prompt": "q", "chosen": "y", "rejected": "x", "image": "none.png"}, "images that cannot be decoded"),
    ("text", "rows that cannot be parsed"),
])  # fmt: skip
def test_errors_make_it_unsound(tmp_path: Path, row: Any, title: str) -> None:
    data = rows()
    data.insert(4, row)
    report = check(write(tmp_path / "d.jsonl", data))
    assert not report.sound
    assert found(report)[title] == ("error", 1, ["5"])
    assert (report.rows, report.usable) == (41, 40)


def test_warnings_leave_it_sound_up_to_the_limit(tmp_path: Path) -> None:
    data = rows(100)
    data[2] = {"prompt": "p", "chosen": "same", "rejected": "same"}
    data[3] = {"prompt": "p", "chosen": "x", "rejected": " "}
    data[4] = data[5]
    data[6] = {"prompt": data[7]["prompt"], "chosen": data[7]["rejected"], "rejected": data[7]["chosen"]}
    path = write(tmp_path / "d.jsonl", data)
    report = check(path)
    titles = found(report)
    assert report.sound
    assert titles["identical answers"] == ("warn", 1, ["3"])
    assert titles["an empty answer"] == ("warn", 1, ["4"])
    assert titles["duplicate pairs"] == ("warn", 1, ["6"])
    assert titles["pairs that contradict others"] == ("warn", 1, ["8"])
    assert titles["duplicate prompts"][0] == "info"
    strict = check(path, max_dropped=0.01)
    assert not strict.sound
    assert found(strict)["too many rows teach nothing"][:2] == ("error", 2)


def test_mixed_types_and_incomplete_annotations(tmp_path: Path) -> None:
    data = rows(10)
    data[3]["margin"] = 1
    data[4]["chosen"] = [{"role": "assistant", "content": "good"}]
    report = check(write(tmp_path / "d.jsonl", data))
    assert found(report)["mixed types"] == ("warn", 1, ["5"])
    assert found(report)["annotations that only some rows have"][1] == 9
    assert "'chosen' is text (9), list (1)" in next(f.detail for f in report.findings if f.title == "mixed types")


def test_length_bias(tmp_path: Path) -> None:
    data = [
        {"prompt": f"q{i}", "chosen": "long " * (2 + i % 3), "rejected": "short" if i % 5 else "long " * 9}
        for i in range(60)
    ]
    report = check(write(tmp_path / "d.jsonl", data))
    bias = next(f for f in report.findings if f.title == "length bias")
    assert bias.severity == "warn"
    assert "longer in 80.0% of the pairs" in bias.detail
    assert report.statistics["pairs"] == 60
    assert not check(write(tmp_path / "e.jsonl", rows(60))).statistics["length p-value"] > 0.01


def test_with_a_tokenizer_lengths_are_judged(tmp_path: Path) -> None:
    data = rows(98)
    data += [{"prompt": "hello there " * 50, "chosen": "x", "rejected": "y"}]
    data += [{"prompt": "hello there " * 6, "chosen": "x", "rejected": "hello there " * 50}]
    path = write(tmp_path / "d.jsonl", data)
    tokenizer("plain").save_pretrained(tmp_path / "tok")
    for tok in (tokenizer("plain"), tmp_path / "tok", str(tmp_path / "tok")):
        titles = found(check(path, tokenizer=tok, max_length=60))
        assert titles["a prompt over the limit"] == ("warn", 1, ["99"])
        assert titles["truncated on one side only"] == ("warn", 1, ["100"])
    assert "a prompt over the limit" not in found(check(path, max_length=60))
    with pytest.raises(PrefoptError, match="holds no tokenizer"):
        check(path, tokenizer=tmp_path / "nothing")


def test_images_are_looked_at(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    Image.new("RGB", (2, 2), "red").save(tmp_path / "b.png")
    data = [{"prompt": f"q{i}", "chosen": "a.png", "rejected": "b.png"} for i in range(5)]
    report = check(write(tmp_path / "d.jsonl", data))
    assert (report.modality, report.sound) == ("image", True)
    (tmp_path / "b.png").write_bytes(b"junk")
    report = check(tmp_path / "d.jsonl")
    assert found(report)["images that cannot be decoded"][:2] == ("error", 5)


def test_what_a_method_needs_is_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows(10))
    assert not check(path, needs={"pairs", "gold"}).sound
    assert check(path, needs={"pairs"}).sound


def test_several_files_are_told_apart(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [*rows(30), {"prompt": "q", "chosen": "x", "rejected": "x"}])
    report = check(tmp_path)
    assert found(report)["identical answers"][2] == [f"{tmp_path / n}.jsonl row 31" for n in "ab"]


def test_report_as_text_and_json(tmp_path: Path) -> None:
    report = check(write(tmp_path / "d.jsonl", [*rows(), {"prompt": "q", "chosen": None, "rejected": "[x"}]))
    stream = io.StringIO()
    Console(file=stream, width=100).print(render_report(report))
    text = stream.getvalue()
    assert "'chosen' is null" in text
    assert "not sound" in text
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["rows"] == ["41"]


def test_show_colours_by_role(tmp_path: Path) -> None:
    encoded = encoder("llama3")(CASES["answers over several turns"])
    panel: Any = show_encoded(encoded, tokenizer("llama3"))
    texts = panel.renderable.renderables

    def coloured(text: Any, colours: tuple[str, str]) -> str:
        return "".join(text.plain[s.start : s.end] for s in text.spans if s.style in colours)

    assert coloured(texts[0], PROMPT) == texts[0].plain
    assert coloured(texts[2], SCORED) == "Paris.<|eot_id|>Oslo.<|eot_id|>"
    assert "And of Norway?" in coloured(texts[2], MASKED)
    data = [{"prompt": "q", "chosen": "same", "rejected": "same"}, *rows(5)]
    shown = show_examples(DataConfig(path=str(write(tmp_path / "d.jsonl", data))), tokenizer("plain"), n=2)
    stream = io.StringIO()
    for renderable in shown:
        Console(file=stream, width=100).print(renderable)
    assert "d.jsonl row 2" in stream.getvalue()
    assert "d.jsonl row 3" in stream.getvalue()
    assert "d.jsonl row 1 " not in stream.getvalue()
    with pytest.raises(PrefoptError, match="teach nothing"):
        show_examples(DataConfig(path=str(write(tmp_path / "e.jsonl", data[:1]))), tokenizer("plain"))
