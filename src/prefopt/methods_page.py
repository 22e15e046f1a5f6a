"""The page docs/methods.md, made from the registry: `python -m prefopt.methods_page > docs/methods.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .catalogue import methods
from .objectives.aliases import ALIASES, SHARED
from .objectives.taxonomy import told
from .trl_names import TRL

TOP = """# Methods

Made by `python -m prefopt.methods_page`; a test checks that it is current. Tags are those of the survey
[2503.11701](https://arxiv.org/abs/2503.11701) that differ from the defaults (pairwise, sentence, offline, single, static,
reverse_kl); a star marks places that are the survey's own. `prefopt methods NAME` prints the equation, the whole record
and the hyperparameters; `prefopt methods --tag free --tag length_bias` lists what carries both tags.
"""

TRL_TOP = """## TRL's names

What TRL 1.16 calls a loss, and the method with the settings that gives the same value and gradient
(`tests/methods/test_trl_names.py` compares them on TRL's own code). `beta` is `beta` throughout.
"""

OTHER_TOP = """## Other names

An alias is a method with other defaults, which may still be changed. A name that several papers share is refused with
its candidates, unless a method here is called exactly so.
"""

SURVEY_TOP = """## What the survey lists and is not here

Every other loss of the survey's tree is a method or a recipe above, an alias, or a method with settings. ETO is `dpo` on
pairs of trajectories: whole conversations as `chosen` and `rejected`, of which assistant turns are scored.
"""

NOT_HERE = (
    ("MinMax-DPO, EM-DPO", "2405.15065", "trains a policy for each hidden type of annotator in turn (EM), then an ensemble; "
     "for groups that are known, `grpo-robust` is the worst case over them"),
    ("Nash-MD, IPO-MD", "2312.00886", "samples from a geometric mixture of policy and reference, token by token with two "
     "models; `sppo`, `spin` and `online-dpo` are the self-play that is here"),
    ("DRPO", "2410.18127", "another smooth NDCG (a sorting network and a rank-dependent score); `opo` is the one that is here"),
)  # fmt: skip
"""Name, arXiv id, what it would need."""


def page() -> str:
    """The whole page."""
    found = methods()
    listed = [
        (
            f"`{m['name']}`",
            _paper(m["paper"]),
            m["family"],
            ", ".join(x for _, x in told(m["place"], brief=True)) + (" *" if m["place"]["source"] == "survey" else ""),
            m["beta"],
        )
        for m in found
    ]
    theirs = [(s.trainer, _settings(s.theirs) or "-", f"`{s.method}`", _settings(s.mine) or "-", s.remark) for s in TRL]
    aliases = [(f"`{name}`", f"`{slug}`", _settings(given) or "-") for name, (slug, given) in sorted(ALIASES.items())]
    shared = [
        (name.upper(), "; ".join(f"`{k}` ({v})" if v != "not here" else f"{k} (not here)" for k, v in several.items()))
        for name, several in sorted(SHARED.items())
    ]
    return "\n".join(
        [
            TOP,
            _table(("method", "paper", "family", "tags", "beta multiplies"), listed),
            TRL_TOP,
            _table(("trainer", "TRL", "method", "settings", "remark"), theirs),
            SURVEY_TOP,
            _table(("name", "paper", "what it would need"), [(n, _paper(p), why) for n, p, why in NOT_HERE]),
            OTHER_TOP,
            _table(("alias", "method", "settings"), aliases),
            _table(("shared name", "candidates"), shared),
        ]
    ).rstrip("\n")


def _paper(arxiv: str) -> str:
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else "-"


def _settings(given: Mapping[str, Any]) -> str:
    return ", ".join(f"`{k}: {str(v).lower() if isinstance(v, bool) else v}`" for k, v in given.items())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, tuple("---" for _ in head), *(tuple(r) for r in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in lines)


if __name__ == "__main__":
    print(page())
