"""From a configuration to examples that a method can learn from, with the rule for rows applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from prefopt.data.config import DataConfig
from prefopt.data.example import ASKED, Example, axes
from prefopt.data.interpret import Interpreter, recognise
from prefopt.data.readers import read_rows
from prefopt.data.reversal import swapped
from prefopt.data.row_fields import Modality
from prefopt.data.rule import CAPTIONS, NO_NOTES, Ledger, fit
from prefopt.data.side_notes import COLUMNS, Widths

KINDS = frozenset(NO_NOTES)
"""What a method may need beside annotations: pairs; labelled responses (pairs are converted); either of the two; pairs
or anything; prompts alone; a gold answer; graded versions of the responses; equally many steps in all responses of a
list; ties (pairs with label_probability 1/2 stay); how many pairs a prompt has; a caption of every response. Every other
need is the name of an annotation."""


def read_examples(
    config: DataConfig,
    paths: list[str],
    ledger: Ledger,
    *,
    needs: Iterable[str] = (),
    modality: Modality = "text",
    progress: Callable[[int], None] | None = None,
) -> Iterator[Example]:
    """The usable examples of these files in order; what happens to the others is taken down in the ledger.

    Nothing stops here but what no row can mend (missing file, unknown layout, missing choice): the caller asks the
    ledger when all rows have been seen.
    """
    needs = frozenset(needs)
    found = read_rows(paths, split=config.split, subset=config.subset, progress=progress)
    layout, rows = recognise(islice(found, config.limit), config)
    interpret = Interpreter(
        layout, config, modality, asked_by_name(needs), "graded" in needs, CAPTIONS in needs and modality == "image"
    )
    widths = Widths()
    for row in rows:
        ledger.rows += 1
        with ledger.row(row):
            example = fit(widths.check(interpret(row)), config, needs)
            yield swapped(example) if config.swap_preferences else example


def asked_by_name(needs: Iterable[str]) -> frozenset[str]:
    """Annotations that are read because a method asks for them: those about responses, and those that it alone knows."""
    names = {n for need in set(needs) - KINDS for n in need.split("|")}
    names |= {"reward_scores"} if "phi" in names else set()  # it is made of them
    return frozenset(n for n in names if axes(n) is None or n in COLUMNS or n in ASKED)


def read_prompts(config: DataConfig) -> tuple[list[Example], dict[str, Any]]:
    """Prompts for generation and online training, from prompt-only rows or any other layout (its answers are ignored).

    Returns the examples and the record. Raises PrefoptError by the rule for rows.
    """
    ledger = Ledger()
    examples = list(read_examples(config, config.paths, ledger, needs={"prompts"}))
    return examples, _judged(ledger, config)


def read_image_examples(
    config: DataConfig, needs_pairs: bool = True, *, held_out: bool = False, needs: Iterable[str] = ()
) -> tuple[list[Example], dict[str, Any]]:
    """Examples whose responses are images, left undecoded (see `images.load_image`), and the record of the rows.

    Paths are made independent of the data file's folder; every image's head is looked at, so missing and corrupt files
    stop the run here. Ties (label 0.5) are dropped and counted unless `data.use` has label_probability. `held_out`
    reads `data.eval_path`. Raises PrefoptError by the rule for rows.
    """
    ledger = Ledger()
    wanted = {*needs, "pairs"} if needs_pairs else set(needs)
    paths = config.eval_paths if held_out else config.paths
    examples = list(read_examples(config, paths, ledger, needs=wanted, modality="image"))
    return examples, _judged(ledger, config)


def _judged(ledger: Ledger, config: DataConfig) -> dict[str, Any]:
    ledger.stop_if_unreadable()
    ledger.stop_if_too_many_dropped(config.max_dropped)
    ledger.report(", ".join(config.paths))
    return ledger.record()
