"""From a configuration and a tokenizer to tokenised, stored examples, and the record of what happened to every row."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoder
from prefopt.data.example import ENUMERATED, Example
from prefopt.data.grading import Grading
from prefopt.data.messages import content
from prefopt.data.readers import content_hash, total_bytes
from prefopt.data.rule import PROMPT_PAIRS, Ledger, class_counts, log, refuse_one_class
from prefopt.data.side_notes import Agreement
from prefopt.data.source import read_examples
from prefopt.data.stop_words import stop_words
from prefopt.data.store import EncodedDataset, Writer, enumerate_names, note_type
from prefopt.data.triples import GOLD_IS_CHOSEN
from prefopt.errors import PrefoptError
from prefopt.files import cache_folder

_VERSION = 2
"""Raised when the same data would be encoded otherwise, so that no stale set is read."""

SMALL_SHARE = 0.01
"""Share of the rows up to which a remark is not worth a warning."""

REMARKABLE = ("answers of one step", "responses without graded versions")
"""Counts of the encoder that the log tells, because they may be a mistake of the data."""

OPTIONAL = frozenset({"weight", "margin", "label_probability"})
"""Notes that change a loss, and so are carried only where `data.use` or the method asks for them."""


def carried(note: str, needs: Set[str]) -> bool:
    """Whether a note goes on with the examples: always, if it is not one of these."""
    return note not in OPTIONAL or note in needs or (note == "label_probability" and "ties" in needs)


@dataclass(frozen=True)
class Prepared:
    """The tokenised data of a run and its record (counts, dropped rows by reason, truncations, fingerprint)."""

    train: EncodedDataset
    eval: EncodedDataset | None
    record: dict[str, Any]


def prepare_text(
    data: DataConfig,
    tokenizer: Any,
    *,
    needs: Iterable[str] = (),
    grading: Grading | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> Prepared:
    """Reads, checks, tokenises and stores what `data` names; a set that was prepared before is opened instead.

    `needs` says what the method asks for: "pairs"; "label" (unpaired responses: pairs are converted); "pairs|label"
    (either, as they come); "pairs|demonstrations" (pairs, or any single responses); "gold"; and names of annotations
    (`NOTE_AXES`, or columns that only the method knows; `a|b`: either will do). Without needs every
    response is taken as it is.
    `grading`: which graded versions of the responses are made (its stop words are those of `data.stop_words`).
    `cache`: where prepared sets live, by default $PREFOPT_CACHE/data or ~/.cache/prefopt/data.
    Raises PrefoptError by the rule for rows (`rule.py`), before anything is stored.
    """
    asked = frozenset(needs) | frozenset(data.use)
    if grading is not None:
        grading = replace(grading, stop=stop_words(data.stop_words))
        if not grading.stop:
            log.warning("data.stop_words = %s holds no words: long phrases will be cut as one", data.stop_words)
    home = cache or cache_folder("data")
    fingerprint = _fingerprint(data, tokenizer, asked, grading)
    folder = Path(home) / fingerprint
    if not (folder / "record.json").is_file():
        with _building(folder) as place:
            record = _Preparation(data, tokenizer, asked, progress, grading).into(place, fingerprint)
            (place / "record.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    _tell(record, data.paths)
    if "eval_data" in record:
        _tell(record["eval_data"], data.eval_paths)
    held_out = EncodedDataset.load(folder / "eval", fingerprint + "-eval") if "eval" in record else None
    return Prepared(EncodedDataset.load(folder / "train", fingerprint), held_out, record)


def _tell(record: dict[str, Any], paths: list[str]) -> None:
    """Says in the log what was dropped, what is not exactly as the file has it, and what looks odd."""
    for remark in record.get("remarks", ()):
        log.warning("%s: %s", ", ".join(paths), remark)
    remarks = [f"{found['count']} x {reason}" for reason, found in record["dropped"].items()]
    if remarks:
        log.warning("%s: of %d rows dropped: %s", ", ".join(paths), record["rows"], ", ".join(remarks))
    counts = {
        what: record["encoding"].get(what)
        for what in ("truncated on one side only", "seam merges", "moved boundaries", *REMARKABLE)
    }
    gold = record["encoding"].get(GOLD_IS_CHOSEN, 0)
    if gold > SMALL_SHARE * record["kept"]:  # the contrast then pulls against the imitation of the same answer
        counts[GOLD_IS_CHOSEN] = gold
    for what, count in counts.items():
        if count:
            log.warning("%s: %d x %s", ", ".join(paths), count, what)


def _fingerprint(data: DataConfig, tokenizer: Any, needs: frozenset[str], grading: Grading | None) -> str:
    """Names the result: content of the files, tokenizer, template and every option that the result depends on."""
    digest = hashlib.sha256()
    for path in [*data.paths, *data.eval_paths]:
        digest.update(content_hash(path, split=data.split, subset=data.subset).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    template = data.chat_template
    if template and "{" not in template and Path(template).expanduser().is_file():
        template = Path(template).expanduser().read_text(encoding="utf-8")
    own = [words, tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None), template]
    parts: list[Any] = [_VERSION, own, data.model_dump(), sorted(needs)]
    if grading is not None:
        parts.append([grading, sorted(grading.stop)])
    digest.update(json.dumps(parts, default=str).encode())
    return digest.hexdigest()[:32]


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """A folder beside the final one that takes its place when all went well; another process may have been first."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=folder.name + "-", dir=folder.parent))
    except OSError as error:
        raise PrefoptError(f"{folder.parent}: prepared data cannot be stored ({error}); set PREFOPT_CACHE") from error
    try:
        yield place
        if folder.is_dir() and not (folder / "record.json").is_file():
            shutil.rmtree(folder)
        try:
            os.replace(place, folder)
        except OSError:
            if not (folder / "record.json").is_file():
                raise
    except (OSError, pa.ArrowException) as error:
        raise PrefoptError(
            f"{folder.parent}: prepared data cannot be stored ({error}); make room or set PREFOPT_CACHE"
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


@dataclass
class _Survey:
    """What a first look at the examples found: how often each note occurs, and the names in enumerated ones."""

    examples: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    nested: set[str] = field(default_factory=set)
    names: dict[str, set[str]] = field(default_factory=dict)
    aside: dict[str, set[str]] = field(default_factory=dict)  # names in rows that are held out
    labels: Counter[bool] = field(default_factory=Counter)  # of rows that are trained on
    agreement: Agreement = field(default_factory=Agreement)
    pairs: Counter[int] | None = None  # of each prompt, where a method asks for them

    def see(self, example: Example, held_out: bool = False) -> None:
        self.examples += 1
        if self.pairs is not None:
            self.pairs[prompt_key(example)] += len(example.pairs)
        self.labels.update(() if held_out else map(bool, example.notes.get("label", ())))
        self.agreement.see(example)
        for name, value in example.notes.items():
            self.notes[name] += 1
            if name in ENUMERATED:
                (self.aside if held_out else self.names).setdefault(name, set()).update(value)
            elif any(isinstance(v, list) for v in value):
                self.nested.add(name)
        self.notes["step_index"] += example.steps is not None


@dataclass
class _Preparation:
    """One preparation: a first pass that reads and judges every row, a second that tokenises."""

    data: DataConfig
    tokenizer: Any
    needs: frozenset[str]
    progress: bool
    grading: Grading | None = None

    def into(self, folder: Path, fingerprint: str) -> dict[str, Any]:
        def inside(example: Example) -> bool:
            return set_aside(self.data, example)

        survey = self._survey(self.data.paths, "reading", inside)
        if "label" in self.needs:
            refuse_one_class(set(survey.labels), self.data.paths)
        held_out = self._survey(self.data.eval_paths, "reading eval") if self.data.eval_paths else None
        self.notes, partial = self._kept(survey, held_out)
        self.names = {n: enumerate_names(v) for n, v in survey.names.items() if n in self.notes}
        aside = held_out.names if held_out else survey.aside
        unknown = {n: enumerate_names(values - survey.names[n]) for n, values in aside.items() if n in self.names}
        self.names = {n: enumerate_names(aside.get(n, ()), known) for n, known in self.names.items()}
        if PROMPT_PAIRS in self.needs:
            self.notes[PROMPT_PAIRS] = note_type(PROMPT_PAIRS)
        graded = self.grading is not None
        if graded:
            self.notes["graded_valid"] = note_type("graded_valid")
        writers = {"train": Writer(folder / "train", self.notes, graded)}
        if self.data.eval_fraction or held_out:
            writers["eval"] = Writer(folder / "eval", self.notes, graded)
        self.pairs = survey.pairs or Counter()
        record = self._encode(self.data.paths, lambda e: writers["eval" if inside(e) else "train"], "tokenising")
        if held_out:
            self.pairs = held_out.pairs or Counter()
            record["eval_data"] = self._encode(self.data.eval_paths, lambda e: writers["eval"], "tokenising eval")
        record |= {
            "fingerprint": fingerprint,
            "paths": self.data.paths,
            "names": self.names,
            "names_held_out_only": {n: found for n, found in unknown.items() if found},
            "incomplete_notes": partial,
            "labels": class_counts(survey.labels),
            "remarks": survey.agreement.remarks(),
        }
        for name, writer in writers.items():
            if not writer.count:
                raise PrefoptError(
                    f"data: no example is left for {name} ({record['rows']} rows were read); "
                    "change data.eval_fraction or give more data"
                )
            writer.close(fingerprint)
            record[name] = {"examples": writer.count}
        return record

    def _survey(
        self, paths: list[str], title: str, held_out: Callable[[Example], bool] = lambda example: False
    ) -> _Survey:
        ledger, survey = Ledger(), _Survey(pairs=Counter() if PROMPT_PAIRS in self.needs else None)
        with self._bar(paths, title) as told:
            for example in read_examples(self.data, paths, ledger, needs=self.needs, progress=told):
                survey.see(example, held_out(example))
        ledger.stop_if_unreadable()
        ledger.stop_if_too_many_dropped(self.data.max_dropped)
        return survey

    def _kept(self, survey: _Survey, held_out: _Survey | None) -> tuple[dict[str, pa.DataType], dict[str, int]]:
        """The notes to carry and how they are stored; those that only some rows have are left out, and counted."""
        sums = survey.notes + (held_out.notes if held_out else Counter())
        total = survey.examples + (held_out.examples if held_out else 0)
        wanted = [n for n in sums if carried(n, self.needs)]
        kept = {n: note_type(n, n in survey.nested) for n in wanted if sums[n] == total or n.startswith("scores/")}
        return kept, {n: sums[n] for n in wanted if n not in kept}

    def _encode(self, paths: list[str], writer: Callable[[Example], Writer], title: str) -> dict[str, Any]:
        ledger = Ledger()
        encoder = Encoder(self.tokenizer, self.data, self.grading, "common_steps" in self.needs)
        with self._bar(paths, title) as told:
            for example in read_examples(self.data, paths, ledger, needs=self.needs, progress=told):
                with ledger.row(example):
                    writer(example).add(encoder(self._numbered(example)))
        ledger.stop_if_unreadable()
        ledger.stop_if_too_many_dropped(self.data.max_dropped)
        if self.grading is not None and not encoder.counts["graded versions"]:
            raise PrefoptError(
                f"{', '.join(paths)}: no answer has two graded versions that can be told apart (no key phrases, or all "
                "cut): give them as columns (chosen_degraded, rejected_degraded), or other ratios or data.stop_words"
            )
        return ledger.record() | {"encoding": dict(sorted((+encoder.counts).items())) | encoder.describe()}

    def _numbered(self, example: Example) -> Example:
        """The example with the notes that are carried, names as numbers; responses without a rating in some objective
        have nan there."""
        notes: dict[str, Any] = {}
        for name in self.notes:
            if name in example.notes:
                value = example.notes[name]
                notes[name] = [self.names[name].index(v) for v in value] if name in ENUMERATED else value
            elif name.startswith("scores/"):
                notes[name] = [float("nan")] * len(example.responses)
            elif name == PROMPT_PAIRS:
                notes[name] = [self.pairs[prompt_key(example)]] * len(example.pairs)
        gold = example.gold if "gold" in self.needs or not self.needs else None  # unasked it would only take room
        return replace(example, notes=notes, gold=gold, steps=example.steps if "step_index" in self.notes else None)

    @contextmanager
    def _bar(self, paths: list[str], title: str) -> Iterator[Callable[[int], Any]]:
        size = total_bytes(paths)
        with tqdm(total=size or None, desc=title, unit="B", unit_scale=True, delay=2, leave=False,
                  disable=not self.progress) as bar:  # fmt: skip
            yield bar.update


def set_aside(data: DataConfig, example: Example) -> bool:
    """Whether `eval_fraction` holds the example out: by its prompt alone, so that no prompt is on both sides."""
    return bool(data.eval_fraction) and prompt_key(example, str(data.seed)) / 2**64 < data.eval_fraction


def prompt_key(example: Example, salt: str = "") -> int:
    """64 bits that name a prompt: its text, whatever its layout."""
    prompt = example.prompt
    text = prompt if isinstance(prompt, str) else "\x1e".join(f"{m['role']}\x1f{content(m)}" for m in prompt)
    return int.from_bytes(
        hashlib.blake2b(f"{salt}\x1d{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )
