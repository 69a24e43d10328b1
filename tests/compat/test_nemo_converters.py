"""NeMo's converters of data: their flags, and files that the readers take back."""

from pathlib import Path

import pytest

from megabert.compat.nemo.scripts import main
from megabert.tasks import intent_slot_files, word_files
from megabert.tasks.punctuation import Punctuation
from megabert.tasks.sequence_classification import SequenceClassification


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_columns_become_nemo_s_pair_of_files(capsys):
    Path("dev.tsv").write_text("Ada\tB-PER\nwas\tO\nin\tO\nNew\tB-LOC\nYork\tI-LOC\n\nThere\tO\n")
    assert main(["import_from_iob_format.py", "--data_file", "dev.tsv"]) == 0
    assert Path("text_dev.txt").read_text() == "Ada was in New York\nThere\n"
    assert Path("labels_dev.txt").read_text() == "B-PER O O B-LOC I-LOC\nO\n"
    # Not through an entity, where there is an O to cut behind.
    assert main(["import_from_iob_format", "--data_file=dev.tsv", "--max_length", "4"]) == 0
    read = word_files.read(Path("text_dev.txt"), labelled=True)
    assert [one.words for one in read] == [["Ada", "was", "in"], ["New", "York"], ["There"]]
    assert main(["import_from_iob_format", "--data_file", "dev.tsv", "--max_length", "1"]) == 0
    assert Path("text_dev.txt").read_text().split("\n")[3:5] == ["New", "York"]
    capsys.readouterr()

    def fails(message, *arguments):
        assert main([*arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error

    fails("there is no file gone.tsv", "import_from_iob_format", "--data_file", "gone.tsv")
    fails("--max_length 0", "import_from_iob_format", "--data_file", "dev.tsv", "--max_length", "0")
    fails("--data_file", "import_from_iob_format")
    Path("words.tsv").write_text("Ada\nwas\n")
    fails("holds no words with labels", "import_from_iob_format", "--data_file", "words.tsv")
    fails("curl -LO https://", "get_squad", "--destDir=.")
    fails("nothing is downloaded here", "get_tatoeba_data", "--data_dir", ".")


def test_data_sets_become_nemo_s_files(capsys):
    for part, lines in {
        "trainingPosit_chem": "a1\tA @CHEMICAL$ on @GENE$ .\tTrue\tCPR:4\na2\tNo @CHEMICAL$ @GENE$ .\tFalse\tfalse\n",
        "testPosit_chem": "b1\tNo @CHEMICAL$ in @GENE$ .\tFalse\tfalse\n",
        "developPosit_chem": "c1\tThe @GENE$ of @CHEMICAL$ .\tTrue\tCPR:3\n",
    }.items():
        Path(part).write_text(lines)
    flags = ["--source_data_dir", ".", "--target_data_dir", "chem/out"]
    assert main(["import_datasets", "--dataset_name", "chemprot", *flags]) == 0, capsys.readouterr().err
    assert Path("chem/out/label_mapping.tsv").read_text() == "CPR:4\t0\nFalse\t1\nCPR:3\t2\n"
    found = SequenceClassification().examples(Path("chem/out/train.tsv"))
    assert [(one.text, one.label) for one in found] == [
        ("A @CHEMICAL$ on @GENE$ .", "0"),
        ("No @CHEMICAL$ @GENE$ .", "1"),
    ]

    for part, words in {"train": "fly to Boston", "test": "what is it", "valid": "to Oslo now"}.items():
        Path(part).mkdir()
        Path(part, "seq.in").write_text(f"{words}\n")
        Path(part, "seq.out").write_text("O O B-city\n" if part == "train" else "O O O\n")
        Path(part, "label").write_text("flight\n" if part == "train" else "other\n")
    flags = ["--source_data_dir", ".", "--target_data_dir", "atis", "--do_lower_case"]
    assert main(["import_datasets.py", "--dataset_name", "atis", *flags]) == 0, capsys.readouterr().err
    assert Path("atis/dict.slots.csv").read_text() == "O\nB-city\n"
    (train,) = intent_slot_files.read(Path("atis/train.tsv"), labelled=True)
    assert (train.words, train.slots, train.intent) == (["fly", "to", "boston"], ["O", "O", "B-city"], "flight")
    (dev,) = intent_slot_files.read(Path("atis/dev.tsv"), labelled=True)
    assert dev.words == ["to", "oslo", "now"] and dev.intent == "other"
    capsys.readouterr()
    for name, told in {"imdb": "megabert finetune text-classification", "atsi": "did you mean atis?"}.items():
        assert main(["import_datasets", "--dataset_name", name, *flags]) == 2
        assert told in capsys.readouterr().err
    assert main(["import_datasets", "--dataset_name", "snips", "--source_data_dir", "train", *flags[2:]]) == 2
    assert "folders train and test" in capsys.readouterr().err


def test_prose_becomes_words_and_marks(capsys):
    Path("dev.txt").write_text("Who was Ada? NASA, in Paris.\n")
    assert main(["prepare_data_for_punctuation_capitalization", "-s", "dev.txt", "-o", "out"]) == 0
    assert Path("out/text_dev.txt").read_text() == "who was ada nasa in paris\n"
    assert Path("out/labels_dev.txt").read_text() == "OU OO ?U ,U OO .U\n"
    (example,) = Punctuation().examples(Path("out/text_dev.txt"))
    assert example.tags[2:4] == ["?U", ",U"]
    assert main(["prepare_data_for_punctuation_capitalization", "-s", "dev.txt", "-o", "out", "-p", "?"]) == 0
    assert Path("out/labels_dev.txt").read_text() == "OU OO ?U OU OO OU\n"
