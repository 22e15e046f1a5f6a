"""Every file format gives the same rows; broken files say so."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefopt.data.config import DataConfig
from prefopt.data.readers import content_hash, read_rows
from prefopt.data.rule import Ledger
from prefopt.data.source import read_examples
from prefopt.errors import PrefoptError
from prefopt.files import read_jsonl, write_jsonl

ROWS: list[dict[str, Any]] = [
    {"prompt": f"q{i}", "chosen": 'good, "very"\ngood', "rejected": "bad", "margin": 0.5} for i in range(5)
]
CHAT = [{"role": "user", "content": "q"}]


def save(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    lines = "".join(json.dumps(r) + "\n" for r in ROWS)
    if kind == "jsonl":
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind in ("csv", "tsv"):
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet", "folder"])
def test_formats_agree(tmp_path: Path, kind: str) -> None:
    config, ledger = DataConfig(path=str(save(tmp_path, kind))), Ledger()
    examples = list(read_examples(config, config.paths, ledger, needs={"pairs", "margin"}))
    assert [(e.prompt, e.responses, e.notes["margin"], e.row) for e in examples] == [
        (r["prompt"], (r["chosen"], r["rejected"]), [0.5], i) for i, r in enumerate(ROWS, 1)]  # fmt: skip


def test_folders_splits_several_paths_and_limit(tmp_path: Path) -> None:
    save(tmp_path, "jsonl")
    save(tmp_path, "parquet")
    rows = list(read_rows([str(tmp_path), str(tmp_path / "data.jsonl")]))
    assert [r.row for r in rows] == [1, 2, 3, 4, 5] * 3
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "dict"))
    assert len(list(read_rows([str(tmp_path / "dict")], split="test"))) == 5
    with pytest.raises(PrefoptError, match=r"no split 'train'; data\.split is one of test"):
        list(read_rows([str(tmp_path / "dict")]))
    config = DataConfig(path=str(tmp_path / "data.jsonl"), limit=2)
    assert len(list(read_examples(config, config.paths, Ledger()))) == 2


def test_csv_cells_hold_lists(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["prompt", "chosen", "rejected", "weight"], [json.dumps(CHAT), "a", "b", ""]])
    row = next(read_rows([str(path)]))
    assert row.values == {"prompt": CHAT, "chosen": "a", "rejected": "b", "weight": None}


def test_broken_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n{oops\n[1]\n\n" + json.dumps(ROWS[1]) + "\n")
    config, ledger = DataConfig(path=str(path)), Ledger()
    assert len(list(read_examples(config, config.paths, ledger))) == 2
    assert [(row, why.split(" (")[0]) for _, row, why in ledger.unreadable] == [
        (2, "is no JSON"), (3, "is list, expected an object with named columns"), (4, "is an empty line")]  # fmt: skip
    path = tmp_path / "data.csv"
    path.write_text("prompt,chosen,rejected\na,b\na,b,c\n")
    assert [r.fault for r in read_rows([str(path)])] == ["has another number of cells than the header (3)", None]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.json", b"{", "is no JSON"),
    ("a.json", b"3", "holds int, expected a list of objects"),
    ("a.parquet", b"junk", "is no Parquet file"),
    ("a.jsonl.gz", b"junk", "cannot be read"),
    ("a.jsonl.gz", gzip.compress(b'{"prompt": "q"}\n' * 999, mtime=0)[:-20], "is it complete"),
    ("a.jsonl", b"", "holds no rows"),
    ("a.doc", b"hello", "unknown data format"),
])  # fmt: skip
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    config = DataConfig(path=str(tmp_path / name))
    with pytest.raises(PrefoptError, match=message):
        list(read_examples(config, config.paths, Ledger(), needs={"prompts"}))


def test_missing_files_and_hub_names(tmp_path: Path) -> None:
    for path in (str(tmp_path / "no.jsonl"), "./nothing", "no.csv"):
        with pytest.raises(PrefoptError, match="no such file or folder"):
            list(read_rows([path]))
    with pytest.raises(PrefoptError, match="holds no data file"):
        list(read_rows([str(tmp_path)]))
    with pytest.raises(PrefoptError, match="could not be loaded from the hub") as error:
        list(read_rows(["someone/preferences"]))
    assert "\n" not in str(error.value)


def test_content_hash_follows_the_bytes(tmp_path: Path) -> None:
    path = save(tmp_path, "jsonl")
    before = content_hash(str(path))
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    assert content_hash(str(tmp_path / "copy.jsonl")) == before
    path.write_text(path.read_text() + "\n")
    assert content_hash(str(path)) != before


def test_a_text_with_a_line_separator_is_one_line(tmp_path: Path) -> None:
    rows = [{"prompt": "one\u2028two\x85three"}, {"prompt": "four"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_jsonl(file) == rows
    write_jsonl(tmp_path / "new" / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "new" / "rows.jsonl") == rows
