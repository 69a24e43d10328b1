"""NeMo's models of fine-tuning by their names, as thin look-alikes: each holds settings and, once taught or restored,
a `FineTuned` model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from megabert.compat.nemo.defaults import LAYOUT
from megabert.compat.nemo.settings import Settings, load_config, plain
from megabert.compat.nemo.tasks import CHOICES, RESULTS
from megabert.compat.nemo.translate import said, translated

if TYPE_CHECKING:
    from megabert.compat.nemo.trainer import Trainer
    from megabert.serving.fine_tuned import FineTuned

_GROUPS = ("model.train_ds", "model.validation_ds", "model.test_ds")
_NO_ENTITY = "O"


class TaskModel:
    """A model of one task.

    Args:
        cfg: the `model` node of a configuration; what it leaves out has NeMo's default.
        trainer: kept for `fit`; nothing is read from it here.
    """

    script: ClassVar[str]
    """Whose defaults and translation are taken: a name of `CHOICES`."""
    file: ClassVar[str]
    """The key of a data group that names its file."""
    answers: ClassVar[tuple[str, ...]] = ()
    """Where several classifiers share the encoder, NeMo's names of their outputs, as `serving.export` takes them."""

    def __init__(self, cfg: Mapping[str, Any], trainer: Trainer | None = None):
        script = CHOICES[self.script].defaults()
        given = Settings(plain(cfg))
        self.cfg = script.model.merged(given.get("model", given))
        self.trainer = trainer
        self.start: Path | None = None
        self.taught: FineTuned | None = None

    @classmethod
    def restore_from(
        cls, restore_path: str | Path, override_config_path: str | Path | Mapping[str, Any] | None = None,
        map_location: Any = None, strict: bool = True, return_config: bool = False, trainer: Trainer | None = None,
    ) -> Self:  # fmt: skip
        """Read an archive (or its folder, or a run of `finetune`) of any number of ranks; missing weights are an error.

        Args:
            override_config_path: a YAML file or a mapping whose settings win over the archive's.
            map_location: device; None: a GPU when there is one.
            strict: accepted; weights that do not fit are refused either way.
            return_config: give the archive's configuration instead of the model.
            trainer: accepted; a model of many ranks needs none.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: it is damaged, or was taught another task.
        """
        from megabert.serving.fine_tuned import FineTuned
        from megabert.training.launch import chosen_device

        path = Path(restore_path).expanduser()
        if not path.exists():
            raise FileNotFoundError(2, "there is no such archive", str(restore_path))
        told = _configuration(path)
        if return_config:
            return told  # type: ignore[return-value]
        device = chosen_device("auto") if map_location is None else map_location
        taught = FineTuned.from_path(path, device=device)
        choice = CHOICES[cls.script]
        if taught.task.head != choice.head or choice.task not in ("", taught.task.name):
            raise ValueError(f"{restore_path} was taught {taught.task.name}, which is not what a {cls.__name__} does")
        script = choice.defaults()
        known = {name for name, _ in script.leaves()}
        model = cls({}, trainer)
        for name, value in told.leaves("model."):
            if name in known and not name.startswith(_GROUPS) and name.removeprefix("model.") not in LAYOUT:
                model.cfg.put(name.removeprefix("model."), value)
        if override_config_path is not None:
            one = isinstance(override_config_path, Mapping)
            more = Settings(plain(override_config_path)) if one else load_config(override_config_path)
            model.cfg = model.cfg.merged(more.get("model", more))
        model.start, model.taught = path, taught
        return model

    @classmethod
    def from_pretrained(cls, model_name: str, trainer: Trainer | None = None) -> Self:
        """A model by its name, from the cache or the user's table of names.

        Raises:
            ValueError: no such model is there.
        """
        from megabert.formats import named

        return cls.restore_from(named.resolve(model_name).path, trainer=trainer)

    @classmethod
    def list_available_models(cls) -> list[str]:
        """Names of the archives in the cache: no server has these models any more."""
        from megabert.formats import named

        folder = named.cache_folder()
        return sorted(path.stem for path in folder.glob("*.nemo")) if folder.is_dir() else []

    def setup_training_data(self, train_data_config: Mapping[str, Any]) -> None:
        """Name the training data, as `model.train_ds` does."""
        self._setup("train_ds", train_data_config)

    def setup_validation_data(self, val_data_config: Mapping[str, Any]) -> None:
        """Name the validation data, as `model.validation_ds` does."""
        self._setup("validation_ds", val_data_config)

    def setup_test_data(self, test_data_config: Mapping[str, Any]) -> None:
        """Name the test data, as `model.test_ds` does."""
        self._setup("test_ds", test_data_config)

    def _setup(self, group: str, config: Mapping[str, Any]) -> None:
        self.cfg[group] = self.cfg[group].merged(plain(config))

    def teach(self, trainer: Trainer) -> None:
        """Run `megabert finetune` on what was set up; the model then holds the best weights.

        Raises:
            ValueError, OSError: as `finetune`.
        """
        from megabert.commands import finetune
        from megabert.serving.fine_tuned import FineTuned
        from megabert.training.launch import chosen_device

        choice = CHOICES[self.script]
        script = choice.defaults()
        given = Settings(trainer=trainer.settings, model=self.cfg, exp_manager=trainer.experiment or {})
        tree = script.merged(given).resolved()
        run = translated(tree, script, choice.values(tree), start=self.start)
        if trainer.is_global_zero:
            print(*said(run.notices), sep="\n", end="\n" if run.notices else "", flush=True)
        # Of several processes each has named a folder by its own clock, and they agree on one.
        self.start = finetune.run(run.config) / "model"
        self.taught = FineTuned.from_path(self.start, device=chosen_device(run.config.device))

    def score(self, group: str, prefix: str, *, aloud: bool = True) -> dict[str, float]:
        """Scores on one group's file, NeMo's own first.

        Raises:
            ValueError: no file was named, or the model was not taught yet.
        """
        file = CHOICES[self.script].file_of(Settings(model=self.cfg), group)
        if file is None:
            raise ValueError(f"no {prefix} data: name a file with setup_{prefix if prefix == 'test' else 'validation'}"
                             "_data first")  # fmt: skip
        model = self._answering()
        examples = model.task.examples(file)
        answers = model.answer(examples)
        scores = model.task.score(answers.predictions, examples)
        found = {f"{prefix}_loss": sum(answers.losses.values())}
        found |= {f"{prefix}_{theirs}": scores[ours] for theirs, ours in RESULTS[self.script].items() if ours in scores}
        found |= {f"{prefix}_{name}": value for name, value in scores.items()
                  if not name.startswith("nemo_") and f"{prefix}_{name}" not in found}  # fmt: skip
        if aloud:
            print(f"{file}: {len(examples):,} examples")
            for name, value in found.items():
                print(f"  {name}: {value:.4f}")
            for label, row in model.task.details(answers.predictions, examples).get("per_class", {}).items():
                print(f"  {label}: precision {row['precision']:.4f}, recall {row['recall']:.4f}, f1 {row['f1']:.4f}, "
                      f"{row['support']:,} examples")  # fmt: skip
        return found

    def save_to(
        self, save_path: str | Path, *, tensor_model_parallel_size: int = 1, generation: str | None = None
    ) -> None:
        """Write a `.nemo`; one that was there before is replaced when the new one is whole.

        Args:
            tensor_model_parallel_size: a file of weights for each of so many ranks.
            generation: of its layout: `1.0`, or `2021-05` as it was documented first.

        Raises:
            ValueError: the model was not taught yet, or cannot be cut so.
        """
        from megabert.formats.checkpoints import open_checkpoint, save_checkpoint
        from megabert.formats.nemo_write import Layout

        if self.start is None:
            raise ValueError("there is nothing to save: the model was neither taught nor restored")
        layout = Layout(tensor=tensor_model_parallel_size, generation=generation)  # type: ignore[arg-type]
        checkpoint, place = open_checkpoint(self.start, optimizer=False), Path(save_path).expanduser()
        save_checkpoint(checkpoint, place, format="nemo", overwrite=True, layout=layout)

    def export(self, output: str | Path, onnx_opset_version: int | None = None, **settings: Any) -> None:
        """Write the network for other programs, by the file's suffix: `.onnx`, or `.ts` and `.pt` (TorchScript).

        It reads `input_ids`, `token_type_ids` and `attention_mask` of any number of rows of any length.

        Args:
            onnx_opset_version: of ONNX's operators.
            settings: accepted: how NeMo looked at what it wrote.

        Raises:
            ValueError: the model was neither taught nor restored, or as `serving.export.write`.
        """
        from megabert.serving import export
        from megabert.serving.fine_tuned import open_taught

        if self.start is None:
            raise ValueError("there is nothing to export: the model was neither taught nor restored")
        # Read anew: the one that answers here is laid out for this processor.
        task, model, _ = open_taught(self.start)
        module = export.Exported(model, task.head_parts, self.answers)
        export.write(module, Path(output).expanduser(), opset=onnx_opset_version or export.OPSET)

    def _asked(self, queries: Sequence[str]) -> list[dict[str, Any]]:
        """What is said about texts."""
        model = self._answering()
        return model.answer(model.task.asked([(text,) for text in queries], "queries")).predictions

    def _answering(self) -> FineTuned:
        if self.taught is None:
            raise ValueError(f"the {type(self).__name__} was neither taught nor restored: trainer.fit(model), or "
                             "restore_from(...)")  # fmt: skip
        return self.taught


def _configuration(path: Path) -> Settings:
    """`model_config.yaml` of an archive or its folder; empty where there is none."""
    from megabert.formats import nemo_config, nemo_layout

    facts = nemo_layout.look(path)
    if facts is None or nemo_layout.CONFIG not in facts.members:
        return Settings()
    return Settings(nemo_config.read_yaml(facts.members[nemo_layout.CONFIG]))


class QAModel(TaskModel):
    """Question answering, SQuAD 1.1 and 2.0."""

    script, file = "question_answering_squad", "file"

    def inference(
        self, file: str | Path, batch_size: int = 1, num_samples: int = -1, output_nbest_file: str | Path | None = None,
        output_prediction_file: str | Path | None = None,
    ) -> tuple[dict[str, tuple[str, str]], dict[str, list[dict[str, Any]]]]:  # fmt: skip
        """Answers by question id: (question, answer), and the n-best lists.

        Args:
            batch_size: accepted; rows of like length go through the model together.
            num_samples: the first so many questions; -1: all.
        """
        model = self._answering()
        examples = model.task.examples(Path(file), labelled=False)
        examples = examples if num_samples < 0 else examples[:num_samples]
        predictions = model.answer(examples).predictions
        answers = {one["id"]: (one["question"], one["text"]) for one in predictions}
        best = {one["id"]: [{"question": one["question"], **item} for item in one["n_best"]] for one in predictions}
        for place, content in ((output_prediction_file, answers), (output_nbest_file, best)):
            if place is not None:
                Path(place).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return answers, best


class TextClassificationModel(TaskModel):
    """A class for each text."""

    script, file = "text_classification_with_bert", "file_path"

    def classifytext(self, queries: Sequence[str], batch_size: int = 1, max_seq_length: int = -1) -> list[int]:
        """The number of each text's class.

        Args:
            batch_size, max_seq_length: accepted; the model knows how long its texts may be.
        """
        labels = self._answering().task.labels
        return [labels.index(one["label"]) for one in self._asked(queries)]


class TokenClassificationModel(TaskModel):
    """A label for each word."""

    script, file = "token_classification_train", "text_file"

    def update_data_dir(self, data_dir: str | Path) -> None:
        """Name the folder of the data."""
        self.cfg.put("dataset.data_dir", str(data_dir))

    def add_predictions(
        self, queries: Sequence[str] | str | Path, batch_size: int = 32, output_file: str | Path | None = None
    ) -> list[str]:
        """The texts with `[LABEL]` behind each word that has one but O, before a punctuation mark that ends the word.

        Args:
            queries: texts, or a file with a text a line.
            batch_size: accepted.
            output_file: written with a text a line.
        """
        if isinstance(queries, str | Path):
            queries = Path(queries).read_text(encoding="utf-8").splitlines()
        texts = [" ".join(text.split()) for text in queries]
        found = []
        for one in self._asked(texts):
            text, parts, at = one["text"], [], 0
            for word in _labelled_words(one):
                parts += [text[at : word[0]], f"[{word[1]}]"]
                at = word[0]
            found.append("".join((*parts, text[at:])))
        if output_file is not None:
            Path(output_file).write_text("".join(f"{text}\n" for text in found), encoding="utf-8")
        return found

    def evaluate_from_file(
        self, output_dir: str | Path, text_file: str | Path, labels_file: str | Path | None = None,
        add_confusion_matrix: bool = False, normalize_confusion_matrix: bool = True, batch_size: int = 1,
    ) -> None:  # fmt: skip
        """Write labels and predictions of a file's words, and perhaps a picture, as `word_evaluation.evaluate`.

        Args:
            batch_size: accepted.
        """
        from megabert.compat.nemo import word_evaluation

        labels = None if labels_file is None else Path(labels_file)
        word_evaluation.evaluate(self._answering(), Path(output_dir), Path(text_file), labels,
                                 confusion=add_confusion_matrix, normalised=normalize_confusion_matrix)  # fmt: skip


def _labelled_words(prediction: Mapping[str, Any]) -> list[tuple[int, str]]:
    """(where a word ends in the text, its label) of each word whose label is not O."""
    found, at = [], 0
    for word, label in zip(prediction["words"], prediction["labels"], strict=True):
        at = prediction["text"].index(word, at) + len(word)
        if label != _NO_ENTITY:
            found.append((at, label))
    return found


class GLUEModel(TaskModel):
    """One of GLUE's nine tasks."""

    script, file = "glue_benchmark", "ds_item"
