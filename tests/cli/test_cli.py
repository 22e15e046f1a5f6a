"""The command line: verbs, JSON, dry runs, run files; all in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt import cli, get_method

VERBS = [
    "train",
    "methods",
    "papers",
    "data",
    "data check",
    "data show",
    "generate",
    "merge",
    "eval",
    "report",
    "study",
    "reproduce",
    "demo",
]
SMALL = ["train.max_steps=2", "train.per_device_train_batch_size=4", "train.learning_rate=1e-3", "train.save_steps=1"]


@pytest.fixture
def prefopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; answers (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefopt", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(verb: str, prefopt: Any) -> None:
    code, out, _ = prefopt(*verb.split(), "--help")
    assert code == 0
    assert "Usage:" in out


def test_help_needs_no_torch() -> None:
    code = "import sys, prefopt.cli\ntry:\n    prefopt.cli.app(['train', '--help'])\nexcept SystemExit:\n    pass\n"
    code += "assert not {'torch', 'transformers', 'pandas', 'datasets', 'diffusers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_verbs_and_options_end_with_2(prefopt: Any) -> None:
    for arguments in (["trian"], ["train"], ["train", "dpo", "--modle", "m"], ["generate", "m"], ["data", "chekc"]):
        code, out, err = prefopt(*arguments)
        assert code == 2, arguments
        assert "Traceback" not in out + err


def test_methods_as_json(prefopt: Any) -> None:
    code, out, _ = prefopt("methods", "--json")
    found = {m["name"]: m for m in json.loads(out)}
    assert code == 0
    assert {"dpo", "ipo", "kto", "simpo", "orpo", "cpo", "slic", "sft", "bt-reward", "online-dpo"} <= found.keys()
    assert {"name": "beta", "default": 0.1, "values": "number in (0, inf)"} in found["dpo"]["hyperparameters"]
    one = json.loads(prefopt("methods", "dpo", "--json")[1])
    assert one == found["dpo"] | {"parts": {"link": "", "length": "", "token_weight": "", "compare": ""}}
    assert "dpo" in prefopt("methods")[1]
    assert "label_smoothing" in prefopt("methods", "dpo")[1]


def test_methods_by_tag(prefopt: Any) -> None:
    found = {m["name"]: m for m in json.loads(prefopt("methods", "--tag", "free", "-t", "length_bias", "--json")[1])}
    assert "simpo" in found
    assert all(m["place"]["constraint.reference"] == ["free"] for m in found.values())
    assert all("length_bias" in m["place"]["model_property"] for m in found.values())
    assert "no method carries free and reference" in prefopt("methods", "-t", "free", "-t", "reference")[1]
    for arguments, says in (
        (["-t", "lenght_bias"], "did you mean 'length_bias'"),
        (["dpo", "-t", "free"], "--tag has no effect beside the name dpo"),
        (["APO"], "'APO' is the name of several methods"),
        (["none-such"], "no method 'none-such'"),
    ):
        code, out, err = prefopt("methods", *arguments)
        assert code == 2, arguments
        assert says in " ".join(err.split())
        assert "Traceback" not in out + err
    shown = " ".join(prefopt("methods", "cdpo")[1].split())
    assert "-log sigmoid(beta (h_w - h_l))" in shown
    assert "constraint.reference static" in shown
    assert "label_smoothing 0.1" in shown


def test_47_papers(prefopt: Any) -> None:
    code, out, _ = prefopt("papers", "--json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == len({r["slug"] for r in rows}) == 47
    assert all(r["title"] and r["modality"] and r["status"] for r in rows)


def test_dry_run_says_what_would_happen_and_writes_nothing(
    prefopt: Any, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    where = tmp_path / "deep" / "run"
    code, out, err = prefopt("train", "dpo", "-m", text_model, "-d", pairs_file, "-o", where, *SMALL, "--dry-run")
    assert code == 0, err
    for line in ("examples 24", "optimiser steps 2 of 4", "trainable parameters", "memory", "FLOP", "tokens"):
        assert line in " ".join(out.split()), line
    assert "(100.00%)" in out
    assert list(tmp_path.iterdir()) == []
    _, lora, _ = prefopt(
        "train", "dpo", "-m", text_model, "-d", pairs_file, "-o", where, "model.adapter.r=2", "--dry-run"
    )
    share = float(lora.split("(")[1].split("%")[0])
    assert 0 < share < 50


def test_a_run_file_with_overrides_is_the_command_with_options(
    prefopt: Any, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    options = ["method.beta=0.2", *SMALL]
    a, b = tmp_path / "a", tmp_path / "b"
    assert prefopt("train", "dpo", "-m", text_model, "-d", pairs_file, "-o", a, *options)[0] == 0
    train = {"max_steps": 7, "per_device_train_batch_size": 4, "learning_rate": "1e-3", "save_steps": 1}
    content = {"method": {"name": "dpo", "beta": 0.2}, "model": str(text_model), "data": {"path": str(pairs_file)}}
    text = yaml.safe_dump(content | {"output": "elsewhere", "train": train}).replace("'1e-3'", "1e-3")
    (tmp_path / "run.yaml").write_text(text)
    assert prefopt("train", tmp_path / "run.yaml", "train.max_steps=2", f"output={b}")[0] == 0
    configs = [yaml.safe_load((x / "config.yaml").read_text()) for x in (a, b)]
    assert [c.pop("output") for c in configs] == [str(a), str(b)]
    assert configs[0] == configs[1]
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_the_effective_configuration_can_be_trained_again(
    prefopt: Any, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    a = tmp_path / "a"
    assert prefopt("train", "simpo", "-m", text_model, "-d", pairs_file, "-o", a, *SMALL)[0] == 0
    written = yaml.safe_load((a / "config.yaml").read_text())
    assert written["method"] == get_method("simpo").record()
    assert written["train"]["warmup_steps"] == 0.1  # prefopt's own default
    assert written["data"]["max_length"] == 1024
    before = {p: p.stat().st_mtime_ns for p in a.rglob("*")}
    code, out, err = prefopt("train", a / "config.yaml")
    assert code == 0, err
    assert "finished" in out
    assert {p: p.stat().st_mtime_ns for p in a.rglob("*")} == before
    assert prefopt("train", a / "config.yaml", f"output={tmp_path / 'b'}")[0] == 0
    assert (a / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_finished_folders_load_without_prefopt(
    prefopt: Any, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    for name, more in {"whole": [], "lora": ["model.adapter.r=2"]}.items():
        code, _, err = prefopt("train", "dpo", "-m", text_model, "-d", pairs_file, "-o", tmp_path / name, *SMALL, *more)
        assert code == 0, err
    code = (
        "import sys, transformers, peft\n"
        f"transformers.AutoModelForCausalLM.from_pretrained(r'{tmp_path / 'whole'}')\n"
        f"transformers.AutoTokenizer.from_pretrained(r'{tmp_path / 'whole'}')\n"
        f"peft.AutoPeftModelForCausalLM.from_pretrained(r'{tmp_path / 'lora'}')\n"
        "assert not any(m.startswith('prefopt') for m in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_debug_shows_the_traceback(prefopt: Any) -> None:
    from prefopt import PrefoptError

    with pytest.raises(PrefoptError):
        prefopt("--debug", "train", "nowhere.yaml")
    assert prefopt("train", "nowhere.yaml")[0] == 2


def test_from_training_to_report(prefopt: Any, text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (
        prefopt("train", "kto", "-m", text_model, "-d", pairs_file, "-o", run, *SMALL, "data.eval_fraction=0.3")[0] == 0
    )
    (tmp_path / "taste.py").write_text("def short(prompts, responses):\n    return [-len(r) for r in responses]\n")
    code, out, err = prefopt(
        "eval", run, "--reward", f"{tmp_path / 'taste.py'}:short", "-n", 2, "--max-new-tokens", 4, "--limit", 3, "--json"
    )  # fmt: skip
    assert code == 0, err
    assert "preference" in json.loads(out)
    assert prefopt("report", run)[0] == 0
    assert "<html" in (run / "report.html").read_text()
    samples = tmp_path / "samples.jsonl"
    assert prefopt("generate", run, "-p", pairs_file, "-o", samples, "--limit", 3, "--max-new-tokens", 4)[0] == 0
    assert len(samples.read_text().splitlines()) == 3
    assert prefopt("data", "check", pairs_file, "--method", "dpo", "-m", text_model)[0] == 0
    code, out, _ = prefopt("data", "show", pairs_file, "-m", text_model, "-n", 1)
    assert code == 0
    assert "Tell me about" in out


def test_options_of_the_other_kind_of_model_are_refused(
    prefopt: Any, text_model: Path, image_model: Path, pairs_file: Path, image_pairs: Path, tmp_path: Path
) -> None:
    """What was given and would change nothing is said, by generate and by eval."""
    for model, data, options in (
        (text_model, pairs_file, (["--steps", "3"], ["--guidance", "2"], ["--user", "anna"], ["--grid", "0"])),
        (image_model, image_pairs, (["--max-new-tokens", "3"], ["--temperature", "0"], ["--top-k", "3"])),
    ):
        for given in options:
            code, _, err = prefopt("generate", str(model), "-p", str(data), "-o", str(tmp_path / "out"), *given)
            assert code == 2 and f"{given[0]} has no effect" in err
    run = tmp_path / "run"
    keys = ["train.max_steps=1", "train.per_device_train_batch_size=2"]
    assert prefopt("train", "dpo", "-m", str(image_model), "-d", str(image_pairs), "-o", str(run), *keys)[0] == 0
    for given in (["--judge", "x.py:f"], ["--temperature", "0"]):
        code, _, err = prefopt("eval", str(run), *given)
        assert code == 2 and f"{given[0]} has no effect" in err
    assert prefopt("eval", str(run), "--steps", "2", "--number", "3", "--limit", "1")[0] == 0
    drawn = [path.read_bytes() for path in (run / "images").glob("*-after.png")]
    assert len(drawn) == len(set(drawn)) == 3
