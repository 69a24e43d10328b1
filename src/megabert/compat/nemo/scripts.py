"""NeMo's scripts by their names: `SCRIPT a.b=c ...`, and for question answering the flags of 0.x.

  python -m megabert.compat.nemo question_answering_squad model.train_ds.file=train-v1.1.json \\
      model.validation_ds.file=dev-v1.1.json model.language_model.pretrained_model_name=megatron-bert-345m-uncased

`a.b=c` sets, `+a.b=c` adds, `~a.b` removes; --config-path and --config-name read a YAML file; --help shows all settings
of a script with their defaults.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megabert import cli, runtime
from megabert.compat.nemo import former
from megabert.compat.nemo.conversation import (
    IntentSlotClassificationModel,
    PunctuationCapitalizationModel,
    ZeroShotIntentModel,
)
from megabert.compat.nemo.converters import CONVERTERS
from megabert.compat.nemo.corrections import corrected
from megabert.compat.nemo.models import (
    GLUEModel,
    QAModel,
    TaskModel,
    TextClassificationModel,
    TokenClassificationModel,
)
from megabert.compat.nemo.settings import Settings, load_config, overridden
from megabert.compat.nemo.tasks import CHOICES
from megabert.compat.nemo.trainer import NLPDDPPlugin, Trainer, exp_manager, place
from megabert.compat.nemo.translate import said
from megabert.config import nearest

_FIRST_QUESTIONS = 5
_OF_LAUNCHER = re.compile(r"--local[-_]rank=\d+")
_CONFIGS = {"question_answering_squad_config", "text_classification_config", "token_classification_config",
            "glue_benchmark_config", "intent_slot_classification_config", "punctuation_capitalization_config",
            "zero_shot_intent_config"}  # fmt: skip


def _fit(model_class: type[TaskModel], tree: Settings) -> TaskModel:
    """Restore or make the model, and teach it."""
    trainer = Trainer(plugins=[NLPDDPPlugin()], **tree.trainer)
    exp_manager(trainer, tree.get("exp_manager"))
    ready, archive = tree.get("pretrained_model"), tree.find("model.nemo_path")
    if ready is None and model_class is GLUEModel and archive and Path(archive).expanduser().exists():
        ready = archive
    if ready is None:
        model = model_class(tree.model, trainer=trainer)
    else:
        exists = Path(ready).expanduser().exists()
        model = model_class.restore_from(ready, trainer=trainer) if exists else model_class.from_pretrained(ready)
        model.cfg = model.cfg.merged(tree.model)
    if tree.get("do_training", True):
        trainer.fit(model)
        if archive and trainer.is_global_zero:
            model.save_to(archive)
            print(f"written: {archive}")
    elif ready is None:
        raise ValueError("do_training=false needs pretrained_model=..., the archive to work with")
    tested = CHOICES[model_class.script].file_of(tree, "test_ds")
    if tested is not None and tested != CHOICES[model_class.script].file_of(tree, "validation_ds"):
        trainer.test(model, ckpt_path=None)
    return model


def _question_answering(tree: Settings) -> None:
    model = _fit(QAModel, tree)
    file = CHOICES[model.script].file_of(tree, "validation_ds")
    if file is not None and isinstance(model, QAModel) and place()[0] == 0:
        for question, answer in model.inference(file, num_samples=_FIRST_QUESTIONS)[0].values():
            print(f"question: {question}\nanswer: {answer}")


def _text_classification(tree: Settings) -> None:
    model = _fit(TextClassificationModel, tree)
    samples = tree.find("model.infer_samples") or []
    if samples and isinstance(model, TextClassificationModel) and place()[0] == 0:
        for sample, number in zip(samples, model.classifytext(samples), strict=True):
            print(f"query: {sample}\npredicted label: {number}")


def _token_classification(tree: Settings) -> None:
    _fit(TokenClassificationModel, tree)


def _glue(tree: Settings) -> None:
    _fit(GLUEModel, tree.merged({"exp_manager": {"name": tree.model.task_name}}))


def _trained(model_class: type[TaskModel]) -> Callable[[Settings], None]:
    def run(tree: Settings) -> None:
        _fit(model_class, tree)

    return run


def _tested(model_class: type[TaskModel], key: str) -> Callable[[Settings], None]:
    def run(tree: Settings) -> None:
        archive = tree.get("pretrained_model") or tree.find("model.nemo_path")
        if not archive:
            raise ValueError(f"{key} is missing: name the archive to evaluate")
        trainer = Trainer(plugins=[NLPDDPPlugin()], **tree.trainer)
        model = model_class.restore_from(archive, trainer=trainer)
        if tree.find("model.dataset.data_dir") not in (None, "???"):
            model.cfg.put("dataset.data_dir", tree.model.dataset.data_dir)
        model.setup_test_data(test_data_config=tree.model.test_ds)
        trainer.test(model=model, ckpt_path=None)

    return run


def _asked(tree: Settings) -> None:
    """Ask a model of language inference about a few texts and labels."""
    if not tree.get("pretrained_model"):
        raise ValueError("pretrained_model is missing: name the archive that zero_shot_intent_train made")
    model = ZeroShotIntentModel.restore_from(tree.pretrained_model)
    told = {name: tree.find(f"model.{name}") for name in ("infer_samples", "infer_labels")}
    for name, value in told.items():
        if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
            raise ValueError(f"model.{name}: a list of texts such as \"['one','two']\" is needed, not {value!r:.60}")
    for found in model.predict(told["infer_samples"], told["infer_labels"]):
        print(json.dumps(found, indent=4, ensure_ascii=False))


SCRIPTS: Mapping[str, tuple[str, Callable[[Settings], None]]] = {
    "question_answering_squad": ("question_answering_squad", _question_answering),
    "text_classification_with_bert": ("text_classification_with_bert", _text_classification),
    "model_parallel_text_classification_evaluation": (
        "text_classification_with_bert", _tested(TextClassificationModel, "model.nemo_path")),
    "token_classification_train": ("token_classification_train", _token_classification),
    "token_classification_evaluate": (
        "token_classification_train", _tested(TokenClassificationModel, "pretrained_model")),
    "glue_benchmark": ("glue_benchmark", _glue),
    "intent_slot_classification": ("intent_slot_classification", _trained(IntentSlotClassificationModel)),
    "punctuation_capitalization_train": (
        "punctuation_capitalization_train", _trained(PunctuationCapitalizationModel)),
    "punctuation_capitalization_evaluate": (
        "punctuation_capitalization_train", _tested(PunctuationCapitalizationModel, "pretrained_model")),
    "zero_shot_intent_train": ("zero_shot_intent_train", _trained(ZeroShotIntentModel)),
    "zero_shot_intent_infer": ("zero_shot_intent_train", _asked),
}  # fmt: skip
"""NeMo's script -> (whose settings it has, what it does)."""


def main(arguments: Sequence[str] | None = None, script: str | None = None) -> int:
    """Run a script and return the exit status, as `megabert` does.

    Args:
        script: which one; None: the first argument says it.
    """
    # The launcher of 2020 hands over what the environment says as well.
    given = [one for one in (sys.argv[1:] if arguments is None else arguments) if not _OF_LAUNCHER.fullmatch(one)]
    return cli.to_the_end(lambda: _guarded(given, script))


def _guarded(given: list[str], script: str | None) -> int:
    program = f"{script}.py" if script else "megabert.compat.nemo"
    try:
        if script is None:
            if not given or given[0] in ("-h", "--help"):
                print(f"{__doc__}\nscripts: {', '.join((*SCRIPTS, *CONVERTERS))}")
                return 0
            script = Path(given.pop(0)).name.removesuffix(".py")
            program = f"{script}.py"
        names = (*SCRIPTS, *CONVERTERS)
        if script not in names:
            raise ValueError(f"unknown script {script}{nearest(script, names)}; scripts: {', '.join(names)}")
        with runtime.termination_interrupts():
            CONVERTERS[script](given) if script in CONVERTERS else _run(script, given)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return cli.fail(program, error) if cli.has_the_word() else cli.TERMINATED
    except runtime.Terminated:
        print(f"{program}: ended by SIGTERM", file=sys.stderr)
        return cli.TERMINATED
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return cli.INTERRUPTED
    return 0


def _run(script: str, arguments: list[str]) -> None:
    import yaml

    whose, job = SCRIPTS[script]
    tree = CHOICES[whose].defaults()
    if {"-h", "--help"} & set(arguments):
        print(f"{script}.py NAME=VALUE ...: the settings and their defaults\n")
        print(yaml.safe_dump(_plain(tree), sort_keys=False, allow_unicode=True), end="")
        return
    arguments, path, name = _config_flags(arguments)
    flags = [argument for argument in arguments if argument.startswith("--")]
    dotted = any("=" in argument and not argument.startswith("--") for argument in arguments)
    if flags and not dotted and whose == "question_answering_squad":
        _former(tree, arguments)
        return
    arguments, notices = corrected(arguments, whose)
    if path is not None or (name is not None and name not in _CONFIGS):
        tree = tree.merged(load_config(_config_file(path, name)))
    tree, _ = overridden(tree, arguments)
    for line in said(notices) if place()[0] == 0 else ():
        print(line)
    job(tree.resolved())


def _plain(tree: Settings) -> dict:
    return {name: _plain(value) if isinstance(value, Settings) else value for name, value in tree.items()}


def _config_flags(arguments: list[str]) -> tuple[list[str], str | None, str | None]:
    """The arguments without --config-path and --config-name, and what these say."""
    left: list[str] = []
    said_of: dict[str, str] = {}
    pending = iter(arguments)
    for argument in pending:
        flag, separator, value = argument.partition("=")
        kind = {"--config-path": "path", "-cp": "path", "--config-name": "name", "-cn": "name"}.get(flag)
        if kind is None:
            left.append(argument)
            continue
        value = value.lstrip("=") if separator else next(pending, "")
        if not value:
            raise ValueError(f"{flag} needs a value")
        said_of[kind] = value.removesuffix(".yaml")
    return left, said_of.get("path"), said_of.get("name")


def _config_file(path: str | None, name: str | None) -> Path:
    if name is None:
        raise ValueError("--config-path names a folder: give --config-name too")
    places = [Path(path)] if path is not None else [Path("conf"), Path()]
    files = [place / f"{name}.yaml" for place in places]
    return next((file for file in files if file.is_file()), files[0])


def _former(tree: Settings, arguments: list[str]) -> None:
    """A command line of 0.x."""
    asked = former.read(arguments)
    for line in said(asked.notices) if place()[0] == 0 else ():
        print(line)
    if asked.mode in ("train", "train_eval"):
        tree, _ = overridden(tree, asked.overrides)
        _fit(QAModel, tree.resolved())
        return
    model = QAModel.restore_from(asked.folder)
    assert asked.file is not None
    if asked.mode == "eval":
        model.setup_test_data({"file": str(asked.file)})
        Trainer().test(model, ckpt_path=None)
    if place()[0]:
        return
    model.inference(asked.file, output_prediction_file=asked.predictions, output_nbest_file=asked.n_best)
    print(f"written: {asked.predictions}, {asked.n_best}")
