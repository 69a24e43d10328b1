"""Every command of the tasks' pages runs, on data of a few lines."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import megabert
from megabert import cli
from megabert.formats import huggingface
from megabert.tokenization import word_piece

PAGES = sorted((Path(__file__).parents[2] / "docs" / "tasks").glob("*.md"))
FAST = "--epochs 1 --max-seq-length 48 --device cpu --no-tensorboard".split()


def squad(impossible: bool) -> str:
    context = "The report was written by Ada in Paris."
    entries = [{"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 26}]},
               {"id": "2", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 33}]}]  # fmt: skip
    if impossible:
        entries.append({"id": "3", "question": "Why?", "answers": [], "is_impossible": True})
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": entries}]}]})


CLASSES = "".join(f"the report {word}\t{word}\n" for word in ("good", "bad") * 4)
CONLL = "Ada\tB-PER\nwrote\tO\n\nin\tO\nParis\tB-LOC\n"
RTE = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"
RELATIONS = "".join(json.dumps({"text": f"<< a >> {n} [[ b ]]", "label": n}) + "\n" for n in ("INHIBITOR", "False"))
SWAG = "fold-ind,sent1,sent2,ending0,ending1,label\n1,Ada wrote,the,report,city,0\n2,it was,in,Ada,Paris,1\n"
RACE = json.dumps({"article": "Ada wrote.", "questions": ["It was _ .", "Who?"], "options": [["a", "b"], ["Ada", "c"]],
                   "answers": ["A", "A"], "id": "1"})  # fmt: skip
MNLI = "".join(
    f"{n}\t" + "-\t" * 7 + f"the report\tit is {word}\tx\t{word}\n"
    for n, word in enumerate(("gold_label", "entailment", "neutral", "contradiction"))
).replace("the report\tit is gold_label", "sentence1\tsentence2")
UTTERANCES = {"seq.in": "in paris\nby ada\n", "seq.out": "O B-city\nO B-name\n", "label": "where\nwho\n"}
FILES = {
    **{f"atis/{part}/{name}": text for part in ("train", "valid", "test") for name, text in UTTERANCES.items()},
    "prose.txt": "Ada wrote the report, in Paris. Who was it?\n", "MNLI/train.tsv": MNLI, "MNLI/dev_matched.tsv": MNLI,
    "train-v1.1.json": squad(False), "dev-v1.1.json": squad(False), "train-v2.0.json": squad(True),
    "dev-v2.0.json": squad(True), "train.tsv": CLASSES, "dev.tsv": CLASSES, "test.tsv": CLASSES,
    "texts.txt": "the report\nAda wrote\n", "similar.tsv": "a\tb\t0.5\nc\td\t2\ne\tf\t5\n", "RTE/train.tsv": RTE,
    "RTE/dev.tsv": RTE, "train.conll": CONLL, "devel.conll": CONLL, "test.conll": CONLL, "relations.jsonl": RELATIONS,
    "train.csv": SWAG, "val.csv": SWAG, "RACE/train/middle/1.txt": RACE, "RACE/dev/middle/1.txt": RACE,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    words = "the report good bad was written by ada in paris who where why".split()
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words + letters)]
    config = megabert.MegatronBertConfig(
        vocab_size=128, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("encoder") / "out"
    tokenizer = word_piece.from_tokens(tokens, lower_case=True)
    huggingface.write(megabert.MegatronBertForPreTraining(config), tokenizer, folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands(page, encoder, tmp_path, monkeypatch, capsys):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "out").symlink_to(encoder)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) >= 3
    for program, *arguments in commands:
        assert program == "megabert"
        fast = FAST if arguments[0] == "finetune" else []
        assert cli.main([*arguments, *fast]) == 0, (arguments, capsys.readouterr().err)
        if "--output" in arguments:
            output = Path(arguments[arguments.index("--output") + 1])
            assert all("id" in json.loads(line) for line in output.read_text().splitlines())
