"""NeMo's command lines and Python as the documents have them, on data of a few lines."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import megabert
import megabert.compat.nemo as pl
from megabert.commands import finetune
from megabert.compat.nemo import NLPDDPPlugin, QAModel, Settings, TextClassificationModel, TokenClassificationModel
from megabert.compat.nemo import defaults as defaults_of
from megabert.compat.nemo.scripts import main
from megabert.compat.nemo.settings import overridden, value_of
from megabert.formats import huggingface, megatron_write
from megabert.formats.checkpoints import open_checkpoint, save_checkpoint
from megabert.formats.nemo_write import Layout
from megabert.tokenization import word_piece

EXAMPLES = Path(__file__).parents[2] / "examples" / "nlp"
WORDS = "good bad the film was paris london it in where who by ada".split()
SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "It was in paris by ada", "qas": [
    {"id": "a", "question": "Where?", "answers": [{"text": "paris", "answer_start": 10}]},
    {"id": "b", "question": "Who?", "answers": [{"text": "ada", "answer_start": 19}]}]}]}]}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, a Megatron checkpoint of two ranks and of one file, its config and vocabulary."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("nemo")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "?", "."]
    config = megabert.MegatronBertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=48, layer_norm_eps=1e-5,
    )  # fmt: skip
    huggingface.write(megabert.MegatronBertForPreTraining(config), word_piece.from_tokens(tokens, lower_case=True),
                      folder / "encoder")  # fmt: skip
    checkpoint = open_checkpoint(folder / "encoder")
    for ranks, name in ((1, "one"), (2, "two")):
        layout = megatron_write.Layout(tensor=ranks, divisible_by=1)
        save_checkpoint(checkpoint, folder / name, format="megatron", layout=layout)
        (folder / name / "vocab.txt").unlink()
    (folder / "one" / "release" / "mp_rank_00" / "model_optim_rng.pt").rename(folder / "model.pt")
    (folder / "two" / "release").rename(folder / "iter_0080000")
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    sizes = {"hidden-size": 16, "num-attention-heads": 2, "num-layers": 2, "max-seq-length": 48}
    (folder / "config.json").write_text(json.dumps(sizes))
    (folder / "squad.json").write_text(json.dumps(SQUAD))
    (folder / "text.tsv").write_text("the film was good\t1\nthe film was bad\t0\n" * 4)
    for name in ("train", "dev"):
        (folder / f"text_{name}.txt").write_text("it was in paris\nada was in london\n")
        (folder / f"labels_{name}.txt").write_text("O O O B-LOC\nB-PER O O B-LOC\n")
    return folder


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def encoder(place, weights="iter_0080000"):
    model, sizes = "model.language_model", place / "config.json"
    return [
        f"{model}.pretrained_model_name=megatron-bert-uncased", f"{model}.lm_checkpoint={place / weights}",
        f"{model}.config_file={sizes}", f"model.tokenizer.vocab_file={place / 'vocab.txt'}", "trainer.gpus=0",
        "trainer.max_epochs=1", "exp_manager.create_tensorboard_logger=false",
    ]  # fmt: skip


def test_the_first_command_of_2021_and_its_mistakes(place, capsys):
    data = [f"model.train_ds.file={place / 'squad.json'}", f"model.validation_ds={place / 'squad.json'}",
            "model.dataset.max_seq_length=40", "model.dataset.doc_stride=8",
            "exp_manager.explicit_log_dir=run"]  # fmt: skip
    flags = ["--bert_config", str(place / "config.json"), "--bert_checkpoint", str(place / "iter_0080000")]
    command = [*data, encoder(place)[0], *encoder(place)[3:], *flags, "trainer.gpus=2"]
    script = EXAMPLES / "question_answering" / "question_answering_squad.py"
    sys.argv = [str(script), *command, "model.nemo_path=qa.nemo"]
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    out, error = capsys.readouterr()
    assert ended.value.code == 0, error
    for notice in ("model.validation_ds=", "--bert_config is a flag of NeMo 0.x", "2 processes are asked for"):
        assert any(line.startswith("notice: ") and notice in line for line in out.splitlines()), notice
    assert out.count("question: ") == 2 and "answer: " in out
    told = (Path("run") / "run.toml").read_text()
    # Two ranks share the model, so two processes read one batch: 24 rows, SquareRootAnnealing, no warm-up, no clipping.
    for line in ("batch_size = 24", "global_batch_size = 24", 'lr_decay_style = "square-root"', "warmup = 0.0",
                 "lr = 3e-05", "weight_decay = 0.0", "clip_grad = 0.0", "epochs = 1"):  # fmt: skip
        assert line in told.splitlines(), line
    expected, _ = QAModel.restore_from("run/model").inference(place / "squad.json")
    assert QAModel.restore_from("qa.nemo").inference(place / "squad.json")[0] == expected
    # The same folder again is refused, unless it is to be resumed.
    assert main(["question_answering_squad.py", *command]) == 2
    assert "exp_manager.resume_if_exists=true" in capsys.readouterr().err
    assert main(["question_answering_squad.py", *command, "exp_manager.resume_if_exists=true"]) == 0


def test_the_command_of_2020(place, capsys):
    flags = ["--pretrained_model_name", "megatron-uncased", "--bert_config", str(place / "config.json"),
             "--bert_checkpoint", str(place / "model.pt"), "--vocab_file", str(place / "vocab.txt"),
             "--do_lower_case", "--num_gpus", "0"]  # fmt: skip
    files = ["--train_file", str(place / "squad.json"), "--eval_file", str(place / "squad.json")]
    short = ["--max_seq_length", "40", "--doc_stride", "8"]
    # As `python -m torch.distributed.launch` calls it.
    given = ["--local-rank=0", *files, *flags, *short]
    assert main(given, "question_answering_squad") == 0, capsys.readouterr().err
    told = (Path("output_squad") / "run.toml").read_text().splitlines()
    for line in ("batch_size = 8", "epochs = 2", 'lr_decay_style = "linear"', "eval_interval = 500", "lr = 3e-05",
                 "clip_grad = 0.0", "log_interval = 100", "fp16 = false"):  # fmt: skip
        assert line in told, line
    assert main(["question_answering_squad", "--mode", "eval", "--eval_file", str(place / "squad.json"),
                 "--checkpoint_dir", "output_squad"]) == 0  # fmt: skip
    assert set(json.loads(Path("predictions.json").read_text())) == {"a", "b"}
    assert "start_logit" in json.loads(Path("nbest.json").read_text())["a"][0]

    def fails(message, *arguments):
        assert main(["question_answering_squad", *arguments]) == 2
        assert message in capsys.readouterr().err

    fails("Config file, checkpoint and vocabulary file should be provided", *files, *flags[:4])
    fails("unknown flag --train_fle (did you mean --train_file?)", *files, "--train_fle", "x")
    fails("--eval_file is missing", *files[:2], *flags)
    fails("is no Megatron BERT", *files)


def test_python_of_the_documents(place, capsys):
    """Training, save_to, restore_from and evaluation; `cfg` as OmegaConf's, the import lines changed."""
    cfg, _ = overridden(
        Settings(defaults_of.text_classification()),
        [*encoder(place), f"model.train_ds.file_path={place / 'text.tsv'}", "model.dataset.num_classes=2",
         "model.dataset.max_seq_length=16", f"model.test_ds.file_path={place / 'text.tsv'}",
         "model.nemo_path=text_class_350m.nemo", "model.validation_ds.file_path=" + str(place / "text.tsv")],
    )  # fmt: skip
    trainer = pl.Trainer(plugins=[NLPDDPPlugin()], **cfg.trainer)
    model = TextClassificationModel(cfg.resolved().model, trainer=trainer)
    trainer.fit(model)
    model.save_to(cfg.model.nemo_path, tensor_model_parallel_size=2, generation="2021-05")

    model = TextClassificationModel.restore_from(cfg.model.nemo_path, trainer=trainer)
    model.setup_test_data(test_data_config=cfg.model.test_ds)
    capsys.readouterr()
    (scores,) = trainer.test(model=model, ckpt_path=None)
    assert scores["test_precision"] == scores["test_recall"] == scores["test_f1"] == scores["test_accuracy"]
    assert {"test_loss", "test_macro_f1"} <= set(scores) and "test_loss" in capsys.readouterr().out
    numbers = model.classifytext(["the film was good", "the film was bad"])
    assert set(numbers) <= {0, 1} and len(numbers) == 2
    told = TextClassificationModel.restore_from(cfg.model.nemo_path, return_config=True)
    assert told.classifier_head == {"num_output_layers": 2, "fc_dropout": 0.1} and told.dataset.num_classes == 2
    with pytest.raises(ValueError, match="not what a TokenClassificationModel does"):
        TokenClassificationModel.restore_from(cfg.model.nemo_path, trainer=trainer)
    with pytest.raises(FileNotFoundError):
        TextClassificationModel.restore_from("gone.nemo")


def test_token_classification_from_training_to_a_further_one(place, capsys):
    data = [f"model.dataset.data_dir={place}", "model.dataset.max_seq_length=16"]
    shape = "model.language_model.config={hidden_size:16,num_attention_heads:2,num_layers:2,max_position_embeddings:48}"
    first = [part if "config_file" not in part else shape for part in encoder(place, "model.pt")]
    assert main(["token_classification_train", *data, *first, "model.nemo_path=ner.nemo"]) == 0, capsys.readouterr()
    model = TokenClassificationModel.restore_from("ner.nemo")
    assert model.taught.task.labels == ("O", "B-LOC", "B-PER") and model.taught.task.label_pieces == "all"
    assert model.taught.model.config.head_layers == 2 and model.taught.model.config.head_dropout == 0.5
    model.taught.model.classifier.mlp.layer2.bias.data[1] = 100.0
    assert model.add_predictions(["it was in paris."]) == ["it[B-LOC] was[B-LOC] in[B-LOC] paris[B-LOC].[B-LOC]"]
    model.evaluate_from_file("out", place / "text_dev.txt", place / "labels_dev.txt", add_confusion_matrix=True)
    rows = [line.split("\t") for line in Path("out/infer_text_dev.txt").read_text().splitlines()]
    assert rows[0] == ["labels", *"O O O B-LOC B-PER O O B-LOC".split()] and rows[1] == ["preds", *["B-LOC"] * 8]
    assert len(list(Path("out").glob("Normalized_Confusion_matrix_*.png"))) == 1
    # An archive is taught further with its head, and evaluated, whatever its ranks.
    save_checkpoint(open_checkpoint("ner.nemo"), "two.nemo", layout=Layout(tensor=2))
    further = ["trainer.gpus=0", "trainer.max_epochs=1", "exp_manager.create_tensorboard_logger=false"]
    capsys.readouterr()
    assert main(["token_classification_train", "pretrained_model=two.nemo", *data, *further]) == 0
    assert "fresh" not in capsys.readouterr().out
    assert main(["token_classification_evaluate", "pretrained_model=two.nemo", *data]) == 0
    assert "test_entity_f1" in capsys.readouterr().out


def test_what_is_wrong_is_one_line(place, capsys):
    good = [*encoder(place), f"model.train_ds.file={place / 'squad.json'}"]

    def fails(message, *arguments, script="question_answering_squad"):
        assert main([script, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error

    fails("unknown script question_answring_squad (did you mean", script="question_answring_squad")
    fails("unknown setting model.train_ds.fil (did you mean model.train_ds.file?)", "model.train_ds.fil=x")
    fails("names a family without weights", *good[:1], *good[2:], "trainer.precision=32")
    fails("there is no file or folder gone.pt", *good, "model.language_model.lm_checkpoint=gone.pt")
    fails("model.train_ds.file is missing", *encoder(place))
    fails("model.validation_ds.file is empty", *good, "model.validation_ds.file=")
    fails("NovoGrad is not here", *good, "model.optim.name=NovoGrad")
    fails("Trainer has no setting 'fast_dev_run'", *good, "+trainer.fast_dev_run=true")
    fails('model.dataset.colour="blue" has no counterpart here', *good, "+model.dataset.colour=blue")
    fails("num_samples=3: all examples", *good, "model.train_ds.num_samples=3")
    fails("model.dataset.num_classes is missing", *encoder(place), f"model.train_ds.file_path={place / 'text.tsv'}",
          script="text_classification_with_bert")  # fmt: skip
    fails("unknown flag --lr", *good, "--lr", "3")
    fails("start them with torchrun --nproc-per-node 2", *good, "model.tensor_model_parallel_size=2",
          "model.dataset.max_seq_length=40", "model.dataset.doc_stride=8")  # fmt: skip
    fails("--tensor-model-parallel-size", *good, "model.tensor_model_parallel_size=two")
    fails("--data-parallel-sharding", *good, "model.data_parallel_sharding=half")
    fails("must be [", *good, "model.language_model.config_file=" + str(_wrong(place)))


def _wrong(place):
    file = Path("wrong.json")
    file.write_text((place / "config.json").read_text().replace("16", "32"))
    return file


def test_glue(place, capsys):
    folder = Path("MRPC")
    folder.mkdir()
    for name in ("train", "dev"):
        rows = "".join(
            f"{n % 2}\t1\t2\tthe film was {w}\tit was {w}\n" for n, w in enumerate(("good", "bad", "by", "in"))
        )
        (folder / f"{name}.tsv").write_text(f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{rows}")
    command = [f"model.dataset.data_dir={folder}", "model.dataset.max_seq_length=24", "model.train_ds.batch_size=2"]
    command += [*encoder(place), "model.nemo_path=mrpc.nemo"]
    assert main(["glue_benchmark", *command]) == 0, capsys.readouterr().err
    (told,) = Path("nemo_experiments/mrpc").glob("*/scores.json")
    assert "accuracy_and_f1" in json.loads(told.read_text())["validation"]
    restored = pl.GLUEModel.restore_from("mrpc.nemo")
    assert restored.taught.task.row == "mrpc" and restored.taught.model.config.head_layers == 2
    checkpoint = open_checkpoint(Path("mrpc.nemo"))
    assert checkpoint.training["nemo_target"].endswith(".GLUEModel") and checkpoint.config["head_dropout"] == 0


def test_values_are_read_as_hydra_reads_them():
    assert [value_of(text) for text in ("null", "true", "1", "1e-5", "'1'", "[0,1]", "/a/b:c", "")] == [
        None, True, 1, 1e-5, "1", [0, 1], "/a/b:c", "",
    ]  # fmt: skip
    assert value_of("{a:1,b:{c:x},d:[1,null]}") == {"a": 1, "b": {"c": "x"}, "d": [1, None]}
    tree, given = overridden(Settings(a={"b": 1, "c": "${a.b}"}), ["a.b=2", "+a.d=[1]", "++e=3"])
    assert tree.resolved() == {"a": {"b": 2, "c": 2, "d": [1]}, "e": 3} and given == ["a.b", "a.d", "e"]
    assert overridden(tree, ["~a.b"])[0].a.get("b") is None
    with pytest.raises(ValueError, match="circle"):
        Settings(a="${b}", b="${a}").resolved()


def test_a_configuration_file(place, capsys):
    Path("conf").mkdir()
    Path("conf/mine.yaml").write_text(f"model:\n  train_ds:\n    file: {place / 'nothing.json'}\n")
    assert main(["question_answering_squad", "--config-path", "conf", "--config-name=mine", *encoder(place)]) == 2
    assert "nothing.json" in capsys.readouterr().err
    assert main(["question_answering_squad", "--config-path=conf", "--config-name=other"]) == 2
    assert "there is no configuration file conf/other.yaml" in capsys.readouterr().err


def test_models_for_what_people_say(place, capsys):
    """Intents and slots, marks and capitals, labels that nobody taught: taught by scripts, asked in Python."""
    folder = Path("data")
    folder.mkdir()
    for name, text in {
        "dict.intents.csv": "where\nwho\n", "dict.slots.csv": "O\nB-place\n",
        "train.tsv": "sentence\tlabel\nit was in paris\t0\nwho was it\t1\n", "train_slots.tsv": "0 0 0 1\n0 0 0\n",
        "text_train.txt": "it was in paris\nwho was ada\n", "labels_train.txt": "OU OO OO .U\nOU OO ?U\n",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    for kind in ("tsv", "txt"):
        for source in folder.glob(f"*train*.{kind}"):
            source.with_name(source.name.replace("train", "test" if kind == "tsv" else "dev")).write_text(
                source.read_text()
            )
    nli = "".join("\t".join([*"01234567", "it was", f"it was {word}", word]) + "\n"
                  for word in ("entailment", "neutral", "contradiction"))  # fmt: skip
    for name in ("nli.tsv", "dev_matched.tsv"):
        (folder / name).write_text(nli)
    run = [*encoder(place, "model.pt"), "model.dataset.max_seq_length=24", f"model.dataset.data_dir={folder}"]

    def taught(script, *arguments):
        assert main([script, *arguments, f"exp_manager.explicit_log_dir={script}"]) == 0, capsys.readouterr().err

    taught(
        "intent_slot_classification", *run[:-2], "model.language_model.max_seq_length=24", f"model.data_dir={folder}"
    )
    model = pl.IntentSlotClassificationModel.restore_from("intent_slot_classification/model")
    intents, slots = model.predict_from_examples(["it was in paris"], None)
    assert intents[0] in ("where", "who") and len(slots[0].split()) == 4
    model.save_to("intents.nemo", tensor_model_parallel_size=2)
    again = pl.IntentSlotClassificationModel.restore_from("intents.nemo")
    assert again.predict_from_examples(["it was in paris"], None) == (intents, slots)
    config = pl.IntentSlotClassificationModel.restore_from("intents.nemo", return_config=True)
    assert config.target.endswith(".IntentSlotClassificationModel") and config.head.num_output_layers == 2
    assert config.data_desc.slot_labels == ["O", "B-place"] and again.taught.model.config.head_parts == [2, 2]
    assert again.taught.task.label_pieces == "all"  # NeMo's ignore_extra_tokens is false
    assert "intent_share = 0.6" in Path("intent_slot_classification/run.toml").read_text()
    again.export("intents.ts")
    rows = [torch.tensor([[2, 12, 9, 3]]), torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)]
    of_intents, of_slots = torch.jit.load("intents.ts")(*rows)
    assert of_intents.shape == (1, 2) and of_slots.shape == (1, 4, 2)
    with pytest.raises(ValueError, match="nothing to export"):
        pl.IntentSlotClassificationModel({}).export("intents.onnx")

    taught("punctuation_capitalization_train", *run)
    model = pl.PunctuationCapitalizationModel.restore_from("punctuation_capitalization_train/model")
    (text,) = model.add_punctuation_capitalization(["it was in paris"])
    (labels,) = model.add_punctuation_capitalization(["it was in paris"], return_labels=True)
    assert len(text.split()) == len(labels.split()) == 4 and all(len(label) == 2 for label in labels.split())
    model.save_to("marks.nemo")
    again = pl.PunctuationCapitalizationModel.restore_from("marks.nemo")
    assert again.add_punctuation_capitalization(["it was in paris"]) == [text]
    config = pl.PunctuationCapitalizationModel.restore_from("marks.nemo", return_config=True)
    assert config.punct_label_ids == {"O": 0, ".": 1, "?": 2} and config.capit_head.capit_num_fc_layers == 1
    assert main(["punctuation_capitalization_train", *run, "model.capit_head.fc_dropout=0.3"]) == 2
    assert "model.punct_head and model.capit_head differ" in capsys.readouterr().err
    with pytest.raises(ValueError, match="was taught punctuation, which is not what a TokenClassificationModel does"):
        TokenClassificationModel.restore_from("punctuation_capitalization_train/model")

    taught("zero_shot_intent_train", *run, "model.train_ds.file_name=nli.tsv")
    model = pl.ZeroShotIntentModel.restore_from("zero_shot_intent_train/model")
    for several in (True, False):
        (said,) = model.predict(["it was in paris"], ["good", "bad", "paris"], multi_label=several)
        assert said["sentence"] == "it was in paris" and sorted(said["labels"]) == ["bad", "good", "paris"]
        assert said["scores"] == sorted(said["scores"], reverse=True)
        assert several or sum(said["scores"]) == pytest.approx(1, abs=1e-3)
    assert model.taught.task.name == "glue"
    with pytest.raises(ValueError, match="numbers from 0 to 2"):
        model.predict("it", "good,bad", entailment_idx=3)
    capsys.readouterr()
    asked = ["zero_shot_intent_infer", "model.infer_samples=['it was good','bad']", "model.infer_labels=[good,bad]"]
    assert main([*asked, "pretrained_model=zero_shot_intent_train/model"]) == 0
    said = capsys.readouterr().out
    assert said.count('"sentence": ') == 2 and '"sentence": "it was good"' in said
    assert main(asked) == 2 and "pretrained_model is missing" in capsys.readouterr().err


@pytest.mark.parametrize(("layout", "tensor", "rows"), [([], 2, 24), (["model.tensor_model_parallel_size=1"], 1, 48)])
def test_many_processes_have_one_folder_and_the_layout_that_is_set(place, monkeypatch, capsys, layout, tensor, rows):
    launcher = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                "MASTER_PORT": "1"}  # fmt: skip
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    asked = []
    # Each process names a folder by its clock; what the processes agreed on is what `run` gives back.
    monkeypatch.setattr(finetune, "run", lambda config: asked.append(config) or Path("agreed"))
    cfg, _ = overridden(
        Settings(defaults_of.question_answering()),
        [*encoder(place), f"model.train_ds.file={place / 'squad.json'}", *layout],
    )
    cfg = cfg.resolved()
    trainer = pl.Trainer(plugins=[NLPDDPPlugin()], **cfg.trainer)
    with pytest.raises(ValueError, match="agreed/model"):
        trainer.fit(QAModel(cfg.model, trainer=trainer))
    assert not trainer.is_global_zero and trainer.world_size == 2 and capsys.readouterr().out == ""
    (config,) = asked
    assert (config.tensor_model_parallel_size, config.global_batch_size) == (tensor, rows)
