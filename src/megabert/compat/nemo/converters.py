"""NeMo's scripts that made its files of other files: `import_from_iob_format`, `import_datasets` and
`prepare_data_for_punctuation_capitalization`, on the readers of the tasks.

`megabert finetune` reads what they read, so that nobody needs them for this tool; they are here for whoever wants
NeMo's files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from megabert import runtime
from megabert.config import nearest

_SPLITS = {"train": ("train",), "test": ("test",), "dev": ("valid", "dev")}
"""NeMo's name of a part of ATIS and its like -> the folders that it may lie in."""
_CHEMPROT = {"train": "trainingPosit_chem", "test": "testPosit_chem", "dev": "developPosit_chem"}
_TEXTS = "make a file of lines 'text TAB label', and megabert finetune text-classification --train-file FILE reads it"
_ELSEWHERE = {
    "imdb": _TEXTS, "thucnews": _TEXTS,
    "sst-2": "megabert finetune sst-2 --train-file train.tsv --validation-file dev.tsv reads GLUE's files",
    "assistant": "make JSONL of it with words, slots and intent, and megabert finetune intent-slot --train-file FILE "
                 "reads it",
}  # fmt: skip
_SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser(script: str) -> _Parser:
    return _Parser(prog=f"{script}.py", allow_abbrev=False, description=f"{script}.py of NeMo 1, here.")


def _write(path: Path, lines: Iterable[str]) -> None:
    with runtime.atomic_write(path) as file:
        file.writelines(f"{line}\n" for line in lines)
    print(f"written: {path}")


def _iob(arguments: Sequence[str]) -> None:
    """`--data_file FILE [--max_length N]`: words and labels of columns, as `text_FILE.txt` and `labels_FILE.txt`."""
    from megabert.tasks import word_files

    parser = _parser("import_from_iob_format")
    parser.add_argument("--data_file", required=True, type=Path, help="words first, labels last, a sentence a block")
    parser.add_argument("--max_length", default=-1, type=int, help="cut sentences of more words, behind an O")
    found = parser.parse_args(arguments)
    if found.max_length == 0 or found.max_length < -1:
        raise ValueError(f"--max_length {found.max_length}: -1 (sentences stay whole) or more than 0 is needed")
    sentences = [(one.words, one.tags) for one in word_files.read(found.data_file, labelled=True)]
    if not any(tags for _, tags in sentences):
        raise ValueError(f"{found.data_file} holds no words with labels")
    parts = [part for words, tags in sentences for part in _parts(words, tags, found.max_length)]
    _write_words(found.data_file.parent, found.data_file.stem, parts)


def _write_words(folder: Path, name: str, sentences: Sequence[tuple[Sequence[str], Sequence[str]]]) -> None:
    for kind, at in (("text", 0), ("labels", 1)):
        _write(folder / f"{kind}_{name}.txt", (" ".join(one[at]) for one in sentences))


def _parts(words: Sequence[str], tags: Sequence[str], longest: int) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """A sentence in parts of at most so many words, each but the last one ending with an `O` where it has one."""
    while 0 < longest < len(words):
        stop = next((at for at in range(longest, 0, -1) if tags[at - 1] == "O"), longest)
        yield words[:stop], tags[:stop]
        words, tags = words[stop:], tags[stop:]
    yield words, tags


def _marks(arguments: Sequence[str]) -> None:
    """`-s FILE -o FOLDER [-p , . ?]`: texts as they are written, as words in small letters and their labels."""
    from megabert.tasks.punctuation import Punctuation

    parser = _parser("prepare_data_for_punctuation_capitalization")
    parser.add_argument("-s", "--source_file", required=True, type=Path, help="a text a line")
    parser.add_argument("-o", "--output_dir", required=True, type=Path)
    parser.add_argument("-p", "--marks", nargs="+", default=[",", ".", "?"])
    found = parser.parse_args(arguments)
    if found.source_file.name.startswith("text_"):
        raise ValueError(f"{found.source_file}: a name that begins with text_ is that of NeMo's own files")
    examples = Punctuation(marks="".join(found.marks)).examples(found.source_file)
    found.output_dir.mkdir(parents=True, exist_ok=True)
    # NeMo knows capital first letters only.
    labels = [[tag[0] + tag[1].replace("A", "U") for tag in one.tags] for one in examples]
    _write_words(found.output_dir, found.source_file.stem,
                 [(one.words, tags) for one, tags in zip(examples, labels, strict=True)])  # fmt: skip


def _data_sets(arguments: Sequence[str]) -> None:
    """`--dataset_name NAME --source_data_dir FOLDER --target_data_dir FOLDER [--do_lower_case]`."""
    known = {"chemprot": _chemprot, "atis": _utterances, "snips": _utterances}
    parser = _parser("import_datasets")
    parser.add_argument("--dataset_name", required=True, help=f"{', '.join(known)}; told what to do: the others")
    parser.add_argument("--source_data_dir", required=True, type=Path)
    parser.add_argument("--target_data_dir", required=True, type=Path)
    parser.add_argument("--do_lower_case", action="store_true")
    found = parser.parse_args(arguments)
    name = found.dataset_name
    if name in _ELSEWHERE:
        raise ValueError(f"--dataset_name {name} is not taken apart here: {_ELSEWHERE[name]}")
    if name not in known:
        raise ValueError(f"--dataset_name {name} is not known{nearest(name, [*known])}; there are {', '.join(known)}")
    if not found.source_data_dir.is_dir():
        raise ValueError(f"--source_data_dir: there is no folder {found.source_data_dir}")
    files = known[name](found.source_data_dir, str.lower if found.do_lower_case else str)
    found.target_data_dir.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        _write(found.target_data_dir / name, lines)


def _chemprot(source: Path, case: Callable[[str], str]) -> dict[str, list[str]]:
    """BioMegatron's files: `text TAB number`, and the numbers of the labels, which count as they are met."""
    from megabert.tasks.relation_extraction import RelationExtraction

    numbers: dict[str, int] = {}
    files = {}
    for part, name in _CHEMPROT.items():
        read = RelationExtraction().examples(source / name)
        files[f"{part}.tsv"] = [f"{case(one.text)}\t{numbers.setdefault(str(one.label), len(numbers))}" for one in read]
    return {**files, "label_mapping.tsv": [f"{label}\t{number}" for label, number in numbers.items()]}


def _utterances(source: Path, case: Callable[[str], str]) -> dict[str, list[str]]:
    """NeMo's files of intents and slots, of folders with seq.in, seq.out and label."""
    from megabert.tasks import intent_slot_files

    found = {part: next((source / one for one in names if (source / one / "seq.in").is_file()), None)
             for part, names in _SPLITS.items()}  # fmt: skip
    if found["train"] is None or found["test"] is None:
        raise ValueError(f"{source}: folders train and test (and valid) with seq.in, seq.out and label are needed; "
                         "another form of the data set is not taken apart here")  # fmt: skip
    read = {part: [*intent_slot_files.read(folder, labelled=True)] for part, folder in found.items() if folder}
    every = [one for part in read.values() for one in part]
    intents = list(dict.fromkeys(str(one.intent) for one in every))
    slots = list(dict.fromkeys(["O", *(slot for one in every for slot in one.slots or ())]))
    files = {"dict.intents.csv": intents, "dict.slots.csv": slots}
    places = {name: at for at, name in enumerate(slots)}
    for part, utterances in read.items():
        rows = [f"{case(' '.join(one.words))}\t{intents.index(str(one.intent))}" for one in utterances]
        files[f"{part}.tsv"] = ["sentence\tlabel", *rows]
        files[f"{part}_slots.tsv"] = [" ".join(str(places[slot]) for slot in one.slots or ()) for one in utterances]
    return files


def _get_squad(arguments: Sequence[str]) -> None:
    raise ValueError(
        "get_squad: nothing is downloaded here; "
        + "; ".join(
            f"curl -LO {_SQUAD}/{part}-v{version}.json" for version in ("1.1", "2.0") for part in ("train", "dev")
        )
    )


def _get_tatoeba(arguments: Sequence[str]) -> None:
    raise ValueError("get_tatoeba_data: nothing is downloaded here; any texts with a text a line will do: megabert "
                     "finetune punctuation --train-file FILE.txt")  # fmt: skip


CONVERTERS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "import_from_iob_format": _iob,
    "import_datasets": _data_sets,
    "prepare_data_for_punctuation_capitalization": _marks,
    "get_squad": _get_squad,
    "get_tatoeba_data": _get_tatoeba,
}
"""NeMo's script -> what does it."""
