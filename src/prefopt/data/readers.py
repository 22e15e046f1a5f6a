"""Rows out of files: JSONL, JSON, CSV, TSV, Parquet, Arrow, `datasets` folders and hub names, one row at a time.

A reader yields `Row`s and never holds more than a chunk of the file (JSON arrays excepted: that format cannot be
read in pieces).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError, first_line


@dataclass(frozen=True)
class Row:
    """A row as the file has it. `base` is the folder that relative paths inside the row start from."""

    values: Mapping[str, Any]
    file: str
    row: int  # 1-based
    base: Path
    fault: str | None = None  # why the row could not even be parsed


SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_rows(
    paths: list[str], *, split: str = "train", subset: str | None = None, progress: Callable[[int], Any] | None = None
) -> Iterator[Row]:
    """All rows of all paths, in order. Raises PrefoptError for what does not exist or has no known format.

    `progress` is told the bytes read of `total_bytes(paths)` now and then.
    """
    for path in paths:
        for file in expand(path):
            yield from _read(file, split, subset, progress)


def expand(path: str) -> list[str]:
    """The files behind a path: itself, or the data files of a folder. A hub name stays as it is."""
    where = Path(path).expanduser()
    if where.is_file():
        if _suffix(where) not in SUFFIXES:
            raise PrefoptError(f"{path}: unknown data format; known are {', '.join(SUFFIXES)}, each also with .gz")
        return [str(where)]
    if where.is_dir():
        if is_saved_dataset(where):
            return [str(where)]
        data = [s for s in SUFFIXES if s != ".txt"]  # a folder's texts may be anything
        files = sorted(str(f) for f in where.iterdir() if f.is_file() and _suffix(f) in data)
        if not files:
            raise PrefoptError(
                f"{path}: the folder holds no data file ({', '.join(SUFFIXES)}) and is no datasets folder"
            )
        return files
    if _suffix(where) in SUFFIXES or path.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(path):
        raise PrefoptError(f"{path}: no such file or folder")
    return [path]


def total_bytes(paths: list[str]) -> int:
    """Size of the files that `read_rows` will read; 0 where it cannot be known."""
    return sum(os.path.getsize(f) for p in paths for f in expand(p) if os.path.isfile(f))


def content_hash(path: str, *, split: str = "train", subset: str | None = None) -> str:
    """Names the content behind a path; two files with the same bytes have the same hash."""
    digest = hashlib.blake2b(digest_size=20)
    for file in expand(path):
        if os.path.isfile(file):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
        else:
            data = _saved(file, split) if os.path.isdir(file) else _hub(file, split, subset)
            digest.update(data._fingerprint.encode())
    return digest.hexdigest()


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _read(file: str, split: str, subset: str | None, progress: Callable[[int], Any] | None) -> Iterator[Row]:
    path = Path(file)
    if not path.is_file():
        yield from _read_dataset(file, split, subset)
        return
    read = {".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".arrow": _arrow, ".txt": _prompts}.get(
        _suffix(path), _json_lines
    )
    with open(path, "rb") as raw:
        zipped = path.suffix.lower() == ".gz"
        stream: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
        told = 0
        try:
            for number, (values, fault) in enumerate(read(stream, path), 1):
                if fault is None and not isinstance(values, Mapping):
                    fault = f"is {type(values).__name__}, expected an object with named columns"
                yield Row(values if fault is None else {}, file, number, path.parent, fault)
                if progress and number % 256 == 0 and not raw.closed:
                    told, before = raw.tell(), told
                    progress(told - before)
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise PrefoptError(f"{file}: cannot be read ({error}); is it complete and {_suffix(path)[1:]}?") from error
        if progress:
            progress(path.stat().st_size - told)


Parsed = Iterator[tuple[Any, str | None]]


def _json_lines(stream: Any, path: Path) -> Parsed:
    """Empty lines at the end are none."""
    empty = 0
    for line in stream:
        if not line.strip():
            empty += 1
            continue
        yield from [(None, "is an empty line")] * empty
        empty = 0
        try:
            yield json.loads(line), None
        except ValueError as error:
            yield None, f"is no JSON ({error})"


def _prompts(stream: Any, path: Path) -> Parsed:
    """A prompt in each line; empty lines are none."""
    for line in io.TextIOWrapper(stream, encoding="utf-8-sig"):
        if line.strip():
            yield {"prompt": line.strip()}, None


def _json(stream: Any, path: Path) -> Parsed:
    """One array of objects, or an object with one array of them; files with one object per line are read as such."""
    text = stream.read().decode("utf-8")
    try:
        content = json.loads(text)
    except ValueError as error:
        if "Extra data" in str(error):
            yield from _json_lines(io.BytesIO(text.encode()), path)
            return
        raise PrefoptError(f"{path}: is no JSON ({error})") from error
    if isinstance(content, dict):
        lists = [v for v in content.values() if isinstance(v, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise PrefoptError(f"{path}: holds {type(content).__name__}, expected a list of objects")
    for item in content:
        yield item, None


def _csv(stream: Any, path: Path) -> Parsed:
    """Empty cells are null; cells that hold a JSON list or object are parsed."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.DictReader(text, delimiter="\t" if _suffix(path) == ".tsv" else ",", strict=True)
    try:
        for cells in rows:
            if None in cells or None in cells.values():
                yield None, f"has another number of cells than the header ({len(rows.fieldnames or [])})"
            else:
                yield {name: _cell(cell) for name, cell in cells.items()}, None
    except csv.Error as error:
        raise PrefoptError(f"{path} line {rows.line_num}: is no CSV ({error})") from error


def _cell(cell: str) -> Any:
    if cell == "":
        return None
    if cell[0] in "[{" and cell[-1] in "]}":
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _parquet(stream: Any, path: Path) -> Parsed:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=256):
            for values in batch.to_pylist():
                yield values, None
    except pa.ArrowInvalid as error:
        raise PrefoptError(f"{path}: is no Parquet file ({error})") from error


def _arrow(stream: Any, path: Path) -> Parsed:
    import datasets
    import pyarrow as pa

    try:
        table = datasets.Dataset.from_file(str(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise PrefoptError(f"{path}: is no Arrow file ({error})") from error
    for values in _undecoded(table):
        yield values, None


def _read_dataset(name: str, split: str, subset: str | None) -> Iterator[Row]:
    local = Path(name).is_dir()
    data = _saved(name, split) if local else _hub(name, split, subset)
    base = Path(name) if local else Path()
    for number, values in enumerate(_undecoded(data), 1):
        yield Row(values, name, number, base)


def _saved(name: str, split: str) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(name)
    except Exception as error:  # datasets raises many kinds; all mean that the folder is broken
        raise PrefoptError(f"{name}: cannot be read as a datasets folder ({error})") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise PrefoptError(f"{name}: has no split {split!r}; data.split is one of {', '.join(data)}")
        return data[split]
    return data


def _hub(name: str, split: str, subset: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # offline, unknown, gated, bad split: one message, with the library's reason
        raise PrefoptError(
            f"{name}: is neither a file nor a folder here, and could not be loaded from the hub ({first_line(error)}). "
            "Check the path, or the name, data.split, data.subset and the connection"
        ) from error


def _undecoded(data: Any) -> Iterator[Any]:
    """Rows with images left as {bytes, path}, so that they are decoded once, where they are used."""
    import datasets

    for column, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return iter(data)
