"""Bad data: files and rows."""

from __future__ import annotations

import gzip
import json

from tests.bad import Place, Table

bad = Table()
PAIR = {"prompt": "Which film?", "chosen": "The long one.", "rejected": "The short one."}
LIST = {"prompt": "Which film?", "responses": ["This one.", "That one.", "None."], "scores": [1, 2, 3]}


@bad("nowhere.jsonl", "no such file")
def no_file(p: Place) -> list[str]:
    return p.train(data="nowhere.jsonl")


@bad("empty-folder", "no data file", ".jsonl")
def folder_without_data(p: Place) -> list[str]:
    (p.tmp / "empty-folder").mkdir()
    return p.train(data=p.tmp / "empty-folder")


@bad("pairs.doc", "unknown data format", ".parquet")
def unknown_suffix(p: Place) -> list[str]:
    return p.train(data=p.file("pairs.doc", "a\n"))


@bad("data.jsonl", "no row")
def empty_file(p: Place) -> list[str]:
    return p.train(data=p.rows())


@bad("data.jsonl row 4", "no JSON", "1 of 4")
def half_a_line(p: Place) -> list[str]:
    return p.train(data=p.rows('{"prompt": "Which fi', good=3))


@bad("pairs.jsonl.gz", "complete")
def truncated_gzip(p: Place) -> list[str]:
    lines = "".join(json.dumps(PAIR | {"prompt": f"{i} {i * 7919}?"}) + "\n" for i in range(500))
    return p.train(data=p.file("pairs.jsonl.gz", gzip.compress(lines.encode())[:-900]))


@bad("pairs.jsonl.gz", "gz")
def not_gzip_at_all(p: Place) -> list[str]:
    return p.train(data=p.file("pairs.jsonl.gz", json.dumps(PAIR)))


@bad("pairs.parquet", "Parquet")
def truncated_parquet(p: Place) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([PAIR] * 50), p.tmp / "whole.parquet")
    return p.train(data=p.file("pairs.parquet", (p.tmp / "whole.parquet").read_bytes()[:-40]))


@bad("pairs.arrow", "Arrow")
def damaged_arrow(p: Place) -> list[str]:
    return p.train(data=p.file("pairs.arrow", b"ARROW1 and nothing else"))


@bad("datasets folder", "saved")
def damaged_datasets_folder(p: Place) -> list[str]:
    p.file("saved/state.json", "{")
    return p.train(data=p.tmp / "saved")


@bad("data.jsonl", "no row can be read", "codec")
def bytes_that_are_no_text(p: Place) -> list[str]:
    return p.train(data=p.file("data.jsonl", bytes(range(128, 256)) * 20 + b"\n"))


@bad("row 2", "another number of cells")
def ragged_csv(p: Place) -> list[str]:
    return p.train(data=p.file("pairs.csv", "prompt,chosen,rejected\na,b,c\na,b\n"))


@bad("pairs.json", "list of objects")
def json_without_rows(p: Place) -> list[str]:
    return p.train(data=p.file("pairs.json", "3"))


@bad("split 'test'", "data.split", "train")
def split_that_is_not_there(p: Place) -> list[str]:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list([PAIR] * 4)}).save_to_disk(str(p.tmp / "saved"))
    return p.train("data.split=test", data=p.tmp / "saved")


@bad("someone/preferences", "hub", "connection")
def hub_name_offline(p: Place) -> list[str]:
    return p.train(data="someone/preferences")


@bad("row 4", "'rejected' is missing")
def missing_field(p: Place) -> list[str]:
    return p.train(data=p.rows({"prompt": "a", "chosen": "b"}, good=3))


@bad("row 4", "'rejected' is null", "data.columns")
def null_field(p: Place) -> list[str]:
    return p.train(data=p.rows(PAIR | {"rejected": None}, good=3))


@bad("row 4", "'chosen' is int 3", "expected text")
def wrong_type(p: Place) -> list[str]:
    return p.train(data=p.rows(PAIR | {"chosen": 3}, good=3))


@bad("row 4", "is list", "named columns")
def row_that_is_a_list(p: Place) -> list[str]:
    return p.train(data=p.rows(["a", "b"], good=3))


@bad("row 1", "role")
def message_without_role(p: Place) -> list[str]:
    return p.train(data=p.rows(PAIR | {"prompt": [{"content": "hello"}]}))


@bad("row 4", "no character")
def half_a_character(p: Place) -> list[str]:
    return p.train(data=p.rows('{"prompt": "a", "chosen": "\\ud83d", "rejected": "b"}\n', good=3))


@bad("identical answers", "data.max_dropped", "rows 10")
def too_many_identical(p: Place) -> list[str]:
    return p.train(data=p.rows(PAIR | {"rejected": PAIR["chosen"]}, good=9))


@bad("empty answer", "data.max_dropped", "rows 10")
def too_many_empty(p: Place) -> list[str]:
    return p.train(data=p.rows(PAIR | {"rejected": " "}, good=9))


@bad("4 of 4 rows", "over the limit")
def all_prompts_overlong(p: Place) -> list[str]:
    return p.train("data.max_length=8", "data.truncation=drop", data=p.rows(*[PAIR | {"prompt": "word " * 50}] * 4))


bad.train("unknown_layout", "data.layout=alpaka", "data.layout", "alpaka", "sharegpt")
bad.train("column_map_to_nothing", "data.columns.prompt=frage", "data.columns.prompt = frage", "it has prompt, chosen")
bad.train("column_map_of_unknown_name", "data.columns.propmt=prompt", "data.columns.propmt", "did you mean 'prompt'")
bad.train("margin_absent", "data.use=[margin]", "margin", "row 1", "data.columns")
bad.train("weight_absent", "data.use=[weight]", "weight", "row 1")
bad.train("reward_margin_absent", "method.use_margin=true", "margin", "row 1", method="bt-reward")
bad.train("eval_file_missing", "data.eval_path=nowhere.jsonl", "nowhere.jsonl", "no such file")


@bad("row 4", "'label_probability' is 1.5", "between 0 and 1")
def soft_label_out_of_range(p: Place) -> list[str]:
    rows = [PAIR | {"label_probability": x} for x in (0.5, 1, 0.9, 1.5)]
    return p.train("data.use=[label_probability]", data=p.rows(*rows))


@bad("row 2", "'weight' is -1", "0 or more")
def negative_weight(p: Place) -> list[str]:
    return p.train("data.use=[weight]", data=p.rows(PAIR | {"weight": 1}, PAIR | {"weight": -1}))


@bad("list of 3 responses", "data.pairing", "best_worst")
def list_without_pairing(p: Place) -> list[str]:
    return p.train(data=p.rows(*[LIST] * 3))


@bad("row 1", "nothing that orders them")
def list_without_scores(p: Place) -> list[str]:
    return p.train("data.pairing=all", data=p.rows(*[{k: v for k, v in LIST.items() if k != "scores"}] * 3))


@bad("row 1", "'scores' has 2 entries for 3 responses")
def scores_of_another_length(p: Place) -> list[str]:
    return p.train("data.pairing=all", data=p.rows(*[LIST | {"scores": [1, 2]}] * 3))


@bad("several objectives", "data.objective", "helpful")
def several_objectives(p: Place) -> list[str]:
    row = LIST | {"scores": {"helpful": [1, 2, 3], "short": [3, 2, 1]}}
    return p.train("data.pairing=all", data=p.rows(*[row] * 3))


@bad("row 1", "compares pairs", "kto")
def unpaired_for_dpo(p: Place) -> list[str]:
    return p.train(data=p.rows({"prompt": "a", "completion": "b", "label": True}))


@bad("undesirable", "desirable", "label")
def kto_with_one_class(p: Place) -> list[str]:
    rows = [{"prompt": f"{i}?", "completion": f"Answer {i}.", "label": True} for i in range(8)]
    return p.train(method="kto", data=p.rows(*rows))


@bad("no 'gold'", "row 1", "data.pairing = triple")
def triple_without_gold(p: Place) -> list[str]:
    return p.train(method="triple-tpo")


@bad("row 1", "chosen response 1", "rejected one 2", "mis-ordered")
def triple_in_the_wrong_order(p: Place) -> list[str]:
    scores = {"gold": "best", "gold_score": 3, "chosen_score": 1, "rejected_score": 2}
    return p.train(method="triple-tpo", data=p.rows(PAIR | scores))


@bad("stage 3 of 3 has no pair", "at most 2 each")
def lists_too_short_for_the_stages(p: Place) -> list[str]:
    return p.train(method="curry-dpo", data=p.rows(*[LIST] * 3))


@bad("gold", "row 1")
def no_prompt_anywhere(p: Place) -> list[str]:
    method = p.file("golden.py", GOLDEN)
    return p.train(method=str(method))


@bad("row 1", "graded versions", "method.degrade=text")
def degraded_texts_that_hidden_states_ignore(p: Place) -> list[str]:
    texts = {f"{side}_degraded": [PAIR[side], "The one.", "One."] for side in ("chosen", "rejected")}
    more = ("method.degrade=hidden", "method.feature=mean")
    return p.train(*more, method="self-spo", data=p.rows(PAIR | texts))


GOLDEN = '''
from prefopt import Loss, Responses, method, over_tokens

@method("golden")
def golden(r: Responses) -> Loss:
    """The gold answer alone."""
    r.pairs()
    return Loss(nll=over_tokens(-r.extra("gold").policy))
'''


@bad("lost.png", "does not exist", "row 1")
def image_missing(p: Place) -> list[str]:
    row = {"prompt": "a red circle", "chosen": "lost.png", "rejected": "gone.png"}
    return p.train(model=p.fixture("image_model"), data=p.rows(row))


@bad("spoilt.png", "cannot be decoded", "row 1")
def image_damaged(p: Place) -> list[str]:
    p.file("spoilt.png", b"\x89PNG\r\n\x1a\n and then nothing")
    row = {"prompt": "a red circle", "chosen": "spoilt.png", "rejected": "spoilt.png"}
    return p.train(model=p.fixture("image_model"), data=p.rows(row))


@bad("row 1")
def text_pairs_for_an_image_model(p: Place) -> list[str]:
    return p.train(model=p.fixture("image_model"))


@bad("'rejected' is null", "not sound", "error")
def doctor_finds_what_training_would_refuse(p: Place) -> list[str]:
    return ["data", "check", str(p.rows(PAIR | {"rejected": None}, PAIR))]


@bad("max_lenght", "max_length")
def doctor_with_unknown_key(p: Place) -> list[str]:
    return ["data", "check", str(p.pairs), "max_lenght=3"]
