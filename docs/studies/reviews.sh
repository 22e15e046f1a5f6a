#!/bin/sh
# Everything that reviews.yaml reads, then the study: sh docs/studies/reviews.sh FOLDER [prefopt study's own arguments]
# Started again, it goes on where it was stopped. Worlds lie in prefopt's cache, everything else in FOLDER.
set -e
here=$(dirname "$0")
export EXTRA=$(mkdir -p "${1:?say which folder}" && cd "$1" && pwd)
shift

# The world, the same with labels of three annotators (of whom one is right as often as the world's own labels, and the
# others err in a fifth and two fifths of the pairs besides), and models of it to start and to learn from.
eval "$(python - <<'END'
from prefopt.worlds import reviews
from prefopt.worlds.reviews.starts import build_starts

print(f"export REVIEWS={reviews.build(progress=False).root}")
print(f"export ANNOTATED={reviews.build(annotator_groups=['reward'] * 3, label_noise=[0.0, 0.2, 0.4], progress=False).root}")
print(f"export STARTS={build_starts(progress=False)}")
END
)"

# Columns: politeness as a second objective, two models' log-probabilities, insults as what is unsafe and costs 1, and
# the age of a label (the less reliable an annotator, the longer ago).
[ -e "$EXTRA/annotated.jsonl" ] || python - <<'END'
import json
import os
from pathlib import Path

from prefopt.worlds.reviews import politeness


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write(name, rows):
    Path(os.environ["EXTRA"], name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


safety = rows(os.environ["REVIEWS"] + "/train.jsonl")
for side in ("chosen", "rejected"):
    for row, polite in zip(safety, politeness([r["prompt"] for r in safety], [r[side] for r in safety])):
        row |= {f"{side}_unsafe": float(polite < 0), f"{side}_cost": float(polite < 0)}
write("safety.jsonl", safety)
polite = []  # the pairs of which one side alone is unsafe, ordered by that
for row in safety:
    if row["chosen_unsafe"] != row["rejected_unsafe"]:
        better, worse = sorted(("chosen", "rejected"), key=lambda side: row[f"{side}_unsafe"])
        polite.append({"prompt": row["prompt"], "chosen": row[better], "rejected": row[worse]})
write("polite.jsonl", polite)
write("annotated.jsonl", ({**row, "age": 10 * row["annotator"]} for row in rows(os.environ["ANNOTATED"] + "/train.jsonl")))
END
[ -e "$EXTRA/scored.jsonl" ] || prefopt data build scores "$REVIEWS/train.jsonl" -o "$EXTRA/scored.jsonl" \
    --add margin_rewards=prefopt.worlds.reviews:politeness --add sources="$STARTS/source" --add sources="$STARTS/sft"

# TIS-DPO's two models: after SFT on the chosen, and on the rejected answers.
tuned() {
    prefopt train sft -m "$REVIEWS/model" -d "$REVIEWS/train.jsonl" -o "$EXTRA/$1" train.max_steps=64 \
        train.per_device_train_batch_size=32 train.learning_rate=5e-4 train.logging_steps=32 train.seed=0 data.columns="$2"
}
tuned positive "{}"
tuned negative "{chosen: rejected, rejected: chosen}"

prefopt study "$here/reviews.yaml" output="$EXTRA/study" "$@"
