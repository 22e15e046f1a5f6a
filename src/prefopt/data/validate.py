"""The data doctor: every finding about a data set, with row numbers and counts, without loading a model.

It streams: of each row only hashes of prompt and answers are kept.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoded, Encoder
from prefopt.data.example import Example
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.images import is_image
from prefopt.data.interpret import Interpreter, recognise, rename
from prefopt.data.messages import content, same
from prefopt.data.prepare import prompt_key
from prefopt.data.readers import Row, read_rows, total_bytes
from prefopt.data.row_fields import Modality
from prefopt.data.rule import fit
from prefopt.data.side_notes import Agreement, Widths
from prefopt.data.source import asked_by_name
from prefopt.data.triples import GOLD_IS_CHOSEN
from prefopt.data.validate_pictures import Pictures
from prefopt.errors import PrefoptError, first_line
from prefopt.models.caption_length import pipeline_tokenizers

Severity = Literal["error", "warn", "info"]
NAMED = 20
"""Rows that a finding names."""

_UNREADABLE = {
    "parse": "rows that cannot be parsed",
    "type": "fields of the wrong type",
    "message": "malformed messages",
    "image": "images that cannot be decoded",
}


@dataclass
class Finding:
    """One kind of remark about the data: how often, where first, and how grave."""

    title: str
    severity: Severity
    count: int = 0
    rows: list[str] = field(default_factory=list)  # "12", or "file row 12" where there are several files
    detail: str = ""

    def add(self, where: str, detail: str = "") -> None:
        self.count += 1
        self.detail = self.detail or detail
        if len(self.rows) < NAMED:
            self.rows.append(where)


@dataclass
class Report:
    """What the doctor found. `sound` is false if training on the data would not be."""

    paths: list[str]
    layout: str
    modality: Modality
    rows: int
    usable: int
    findings: list[Finding]
    statistics: dict[str, float]

    @property
    def sound(self) -> bool:
        return self.usable > 0 and not any(f.severity == "error" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "paths": self.paths, "layout": self.layout, "modality": self.modality, "rows": self.rows,
            "usable": self.usable, "sound": self.sound, "findings": [vars(f) for f in self.findings],
            "statistics": self.statistics,
        }  # fmt: skip


def check_data(
    data: DataConfig, *, needs: Iterable[str] = (), tokenizer: Any = None, modality: Modality | None = None,
    held_out: bool = False, progress: bool = True,
) -> Report:  # fmt: skip
    """Examines all rows of `data.path` (or of `data.eval_path` if `held_out`).

    `needs` as in `prepare_text` makes it strict about what a method needs. With a tokenizer (an object or a folder)
    prompts over the limit and truncations are found too. Raises PrefoptError only where no row can be looked at: no
    such file, no known layout, a choice that is missing.
    """
    paths = data.eval_paths if held_out else data.paths
    with tqdm(total=total_bytes(paths) or None, desc="checking", unit="B", unit_scale=True, delay=2, leave=False,
              disable=not progress) as bar:  # fmt: skip
        rows = islice(read_rows(paths, split=data.split, subset=data.subset, progress=bar.update), data.limit)
        layout, again = recognise(rows, data)
        first = next(again, None)
        kind = modality or guess_modality(rename(first, data) if first else {})
        needed = frozenset(needs) | frozenset(data.use)
        interpret = Interpreter(layout, data, kind, asked_by_name(needed))
        encoder = None if kind == "image" else _encoder(tokenizer, data)
        doctor = _Doctor(data, needed, interpret, encoder, paths)
        if kind == "image":
            doctor.pictures = Pictures(_of_pipeline(tokenizer))
        if first is not None:
            doctor.row(first)
        for row in again:
            doctor.row(row)
    return doctor.report()


def guess_modality(values: Mapping[str, Any]) -> Modality:
    """Image if an answer of the row is one."""
    for name in ("chosen", "rejected", "jpg_0", "completion", "responses"):
        value = values.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if value is not None and not (isinstance(value, Mapping) and "role" in value) and is_image(value):
            return "image"
    return "text"


def _of_pipeline(place: Any) -> dict[str, Any]:
    """The tokenizers of a pipeline's folder, where it is one."""
    if place is None or not (Path(place) / "model_index.json").is_file():
        return {}
    return pipeline_tokenizers(Path(place))


def _encoder(tokenizer: Any, data: DataConfig) -> Encoder | None:
    if tokenizer is None:
        return None
    if isinstance(tokenizer, str) or hasattr(tokenizer, "__fspath__"):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise PrefoptError(f"{tokenizer}: holds no tokenizer ({first_line(error)})") from error
    return Encoder(tokenizer, data)


@dataclass
class _Doctor:
    data: DataConfig
    needs: frozenset[str]
    interpret: Interpreter
    encoder: Encoder | None
    paths: list[str]

    def __post_init__(self) -> None:
        self.pictures: Pictures | None = None
        self.findings: dict[str, Finding] = {}
        self.rows = self.dropped = self.unreadable = 0
        self.types: dict[str, dict[str, Finding]] = {}
        self.notes: Counter[str] = Counter()
        self.prompts: set[int] = set()
        self.pairs: set[int] = set()
        self.lengths, self.widths, self.agreement = Lengths(), Widths(), Agreement()

    def row(self, row: Row) -> None:
        self.rows += 1
        self._types(row)
        where = str(row.row) if len(self.paths) == 1 and row.file == self.paths[0] else f"{row.file} row {row.row}"
        try:
            example = fit(self.widths.check(self.interpret(row)), self.data, self.needs)
            looks = self.pictures.decoded(example) if self.pictures else []
            encoded = self._encoded(example, where)
        except Unreadable as error:
            self.unreadable += 1
            # missing fields are told apart by name, of which there are few; other messages quote values
            missing = error.kind == "missing"
            title = f"missing or null fields: {error}" if missing else _UNREADABLE[error.kind]
            self._find(title, "error", where, "" if missing else str(error))
            return
        except TeachesNothing as error:
            self.dropped += 1
            self._find(str(error), "warn", where)
            return
        self._content(example, where)
        self._sizes(example, encoded)
        for remark in self.pictures.remarks(example, looks) if self.pictures else ():
            self._find(remark[0], remark[1], where, remark[2])

    def _find(self, title: str, severity: Severity, where: str, detail: str = "") -> None:
        self.findings.setdefault(title, Finding(title, severity)).add(where, detail)

    def _types(self, row: Row) -> None:
        for column, value in row.values.items():
            name = _kind(value)
            if name:
                self.types.setdefault(column, {}).setdefault(name, Finding(name, "warn")).add(str(row.row))

    def _encoded(self, example: Example, where: str) -> Encoded | None:
        if self.encoder is None or self.interpret.modality == "image":
            return None
        before = self.encoder.counts.copy()
        result = self.encoder(example)
        for what, severity in _ENCODING.items():
            if self.encoder.counts[what] > before[what]:
                self._find(what, severity, where)
        return result

    def _content(self, example: Example, where: str) -> None:
        for remark in example.remarks:
            self._find(remark, "warn", where, "the answers part before the last turn; they are read as longer answers")
        self.notes.update(example.notes.keys())
        self.agreement.see(example)
        prompt = prompt_key(example)
        if prompt in self.prompts:
            self._find("duplicate prompts", "info", where)
        self.prompts.add(prompt)
        for a, b in example.pairs:
            better, worse = _text(example.responses[a]), _text(example.responses[b])
            if example.gold is not None and same(example.gold, example.responses[a]):
                self._find(GOLD_IS_CHOSEN, "warn", where, "the gold response is imitated, the chosen one contrasted")
            key, turned = _hash(prompt, better, worse), _hash(prompt, worse, better)
            if key in self.pairs:
                self._find("duplicate pairs", "warn", where)
            if turned in self.pairs:
                self._find("pairs that contradict others", "warn", where)
            self.pairs.add(key)

    def _sizes(self, example: Example, encoded: Encoded | None) -> None:
        if self.interpret.modality == "image":
            return
        for a, b in example.pairs:
            if encoded is not None and len(encoded.response_ids) == len(example.responses):
                self.lengths.add(len(encoded.response_ids[a]), len(encoded.response_ids[b]))
            elif encoded is None:
                self.lengths.add(len(_text(example.responses[a])), len(_text(example.responses[b])))

    def report(self) -> Report:
        usable = self.rows - self.dropped - self.unreadable
        found = list(self.findings.values())
        share = self.dropped / max(1, self.rows)
        if share > self.data.max_dropped:
            detail = f"{share:.1%} of the rows; data.max_dropped allows {self.data.max_dropped:.1%}"
            found.append(Finding("too many rows teach nothing", "error", self.dropped, detail=detail))
        elif usable == 0:
            found.append(Finding("no usable row", "error", self.rows))
        found += self._mixed() + self._incomplete() + self._bias()
        found += [Finding("reward scores", "warn", usable, detail=remark) for remark in self.agreement.remarks()]
        grave = {"error": 0, "warn": 1, "info": 2}
        found.sort(key=lambda f: (grave[f.severity], -f.count))
        return Report(self.paths, self.interpret.layout.name, self.interpret.modality, self.rows, usable, found,
                      self.lengths.statistics("tokens" if self.encoder else "characters"))  # fmt: skip

    def _mixed(self) -> list[Finding]:
        result = []
        for column, kinds in self.types.items():
            if len(kinds) > 1:
                common, *rare = sorted(kinds.values(), key=lambda f: -f.count)
                rows = [r for f in rare for r in f.rows][:NAMED]
                detail = f"{column!r} is " + ", ".join(f"{f.title} ({f.count})" for f in [common, *rare])
                result.append(Finding("mixed types", "warn", sum(f.count for f in rare), rows, detail))
        return result

    def _incomplete(self) -> list[Finding]:
        usable = self.rows - self.dropped - self.unreadable
        return [
            Finding(
                "annotations that only some rows have",
                "warn",
                usable - count,
                detail=f"{name!r} in {count} of {usable} rows",
            )
            for name, count in self.notes.items()
            if count < usable and not name.startswith("scores/")
        ]

    def _bias(self) -> list[Finding]:
        n = self.lengths
        if n.count < 20 or n.p_value > 0.01:
            return []
        grave: Severity = "warn" if abs(n.share_longer - 0.5) > 0.05 else "info"
        word = "longer" if n.share_longer > 0.5 else "shorter"
        share = max(n.share_longer, 1 - n.share_longer)
        return [Finding("length bias", grave, n.count, detail=f"the chosen side is {word} in {share:.1%} of the pairs "
                        f"(sign test p = {n.p_value:.1g}), effect size {n.effect:+.2f}")]  # fmt: skip


_ENCODING: dict[str, Severity] = {
    "truncated prompts": "warn", "truncated responses": "warn", "truncated on one side only": "warn",
    "seam merges": "info", "moved boundaries": "info",
}  # fmt: skip


@dataclass
class Lengths:
    """Running statistics of the lengths of chosen and rejected answers (Welford)."""

    count: int = 0
    longer: int = 0
    shorter: int = 0
    chosen: float = 0.0  # sums
    rejected: float = 0.0
    mean: float = 0.0  # of the difference
    squares: float = 0.0

    def add(self, chosen: int, rejected: int) -> None:
        gap = chosen - rejected
        self.count += 1
        self.longer += gap > 0
        self.shorter += gap < 0
        self.chosen += chosen
        self.rejected += rejected
        step = gap - self.mean
        self.mean += step / self.count
        self.squares += step * (gap - self.mean)

    @property
    def share_longer(self) -> float:
        """Of the pairs that differ in length, how often the chosen side is the longer."""
        return self.longer / max(1, self.longer + self.shorter)

    @property
    def p_value(self) -> float:
        """Two-sided sign test, normal approximation."""
        n = self.longer + self.shorter
        return math.erfc(abs(self.longer - self.shorter) / math.sqrt(2 * n)) if n else 1.0

    @property
    def effect(self) -> float:
        """Mean difference over its standard deviation."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return self.mean / deviation if deviation else 0.0

    def statistics(self, unit: str) -> dict[str, float]:
        if not self.count:
            return {}
        return {
            "pairs": self.count, f"mean chosen {unit}": self.chosen / self.count,
            f"mean rejected {unit}": self.rejected / self.count, "chosen longer": self.share_longer,
            "length effect": self.effect, "length p-value": self.p_value,
        }  # fmt: skip


def _kind(value: Any) -> str | None:
    """The type of a value in words; null is the business of the fields themselves."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, (int, float)):
        return "number"
    name = type(value).__name__
    return {"str": "text", "dict": "object"}.get(name, name)


def _text(response: Any) -> str:
    if isinstance(response, str):
        return response
    if isinstance(response, list):
        return "\x1e".join(content(m) for m in response)
    return repr(response)


def _hash(prompt: int, *texts: str) -> int:
    digest = hashlib.blake2b(prompt.to_bytes(8, "little"), digest_size=8)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\x1d")
    return int.from_bytes(digest.digest(), "little")
