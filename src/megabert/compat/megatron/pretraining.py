"""Megatron-LM's `pretrain_bert.py` with the flags of 2019 to v2.6, on `megabert pretrain`.

  python pretrain_bert.py --train-data wiki.json --loose-json --text-key text --tokenizer-model-type bert-large-uncased
  python pretrain_bert.py --data-path my-bert_text_sentence --vocab-file bert-vocab.txt --micro-batch-size 4 ...
  python -m torch.distributed.launch --nproc_per_node 8 pretrain_bert.py ...

What a flag that is left out means is taken from the version that the others belong to: --data-path is v1.0's and later
ones', all else 2019's. A flag is obeyed; or a `notice:` line says why it changes nothing; or it is refused in one line.
The names of corpora (--train-data wikipedia) are those of the table [corpora] in corpora.toml of the working folder, of
the file that $MEGABERT_CORPORA names, or of --config.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from megabert import config as configuration
from megabert.commands import pretrain
from megabert.compat.megatron.defaults import July2019, March2019, generation_of, said_of
from megabert.config import flag_name
from megabert.training.former_flags import JudgedFlags
from megabert.training.launch import launched
from megabert.training.options import DEFAULT_UPDATES

PROGRAM = "pretrain_bert.py"
CORPORA = Path("corpora.toml")
_CHARACTERS = "CharacterLevelTokenizer"
_HIDDEN = "accepted for old command lines: "
_LET_PASS = {
    "adlr_autoresume": "SIGTERM saves and ends the run, and the same command goes on with it",
    "adlr_autoresume_interval": "SIGTERM is looked for at each update",
    "fp16_lm_cross_entropy": "the loss is always computed in float32",
    "tensorboard_log_interval": "TensorBoard gets the lines of --log-interval, means over the interval",
    "data_impl": "the format is found from the index file",
    "dataloader_type": "rows are shuffled anew in each pass over the data",
}
"""Flags that `megabert pretrain` refuses at some values, since it says no notices; they change no row and no weight."""
_ALWAYS = {
    "save_optim": "checkpoints always hold it",
    "save_rng": "checkpoints always hold it",
    "load_optim": "it is always loaded",
    "load_rng": "it is always loaded",
    "scaled_init": "that is always so",
}


def run(arguments: Sequence[str]) -> None:
    """Read a command line of any generation and train.

    Raises:
        ValueError, OSError: an unknown flag, or one that cannot be obeyed; else as `pretrain.run`.
    """
    given = _given(arguments)
    generation = generation_of([name for name, _ in given])
    arguments = [*_corpora(arguments), *arguments]
    config = configuration.parse(generation, arguments, program=PROGRAM, description=__doc__ or "")
    fields = {field.name for _, field in given}
    notices = [said_of(generation, fields), *_notices(config, given)]
    config = dataclasses.replace(config, **dict.fromkeys(_LET_PASS), **_changes(config, generation, fields))
    _meeting_place(os.environ, config.local_rank)
    launch = launched(os.environ)
    if launch is None or launch.rank == 0:
        for line in dict.fromkeys(notices):
            print(f"notice: {line}", flush=True)
    pretrain.run(
        pretrain.Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(pretrain.Config)})
    )


def _given(arguments: Sequence[str]) -> list[tuple[str, dataclasses.Field]]:
    """Each flag of the command line in its usual spelling, with the field that it sets; unknown ones are left out."""
    fields = {}
    for field in dataclasses.fields(pretrain.Config):
        for name in (flag_name(field.name), f"no-{flag_name(field.name)}", *field.metadata["aliases"]):
            fields[f"--{name}"] = field
    flags = [flag_name(word.partition("=")[0]) for word in arguments if word.startswith("--")]
    return [(flag, fields[flag]) for flag in flags if flag in fields]


def _corpora(arguments: Sequence[str]) -> list[str]:
    """The run file with the names of corpora, if there is one and the command line names no other."""
    if any(word.partition("=")[0] == "--config" for word in arguments):
        return []
    told = os.environ.get("MEGABERT_CORPORA")
    if told and not Path(told).is_file():
        raise ValueError(f"MEGABERT_CORPORA: there is no file {told}")
    path = Path(told) if told else CORPORA
    return ["--config", str(path)] if path.is_file() else []


def _notices(config: pretrain.Config, given: Sequence[tuple[str, dataclasses.Field]]) -> Iterator[str]:
    """What is to be said of flags that change nothing."""
    judged = {field.name for field in dataclasses.fields(JudgedFlags)}
    for flag, field in given:
        value, meaning = getattr(config, field.name), field.metadata["help"]
        if field.name == "local_rank" or (value is False and field.name in _LET_PASS):
            continue
        if field.name in _LET_PASS:
            yield f"{flag}: {_LET_PASS[field.name]}"
        elif field.name in _ALWAYS and value is True:
            yield f"{flag}: {_ALWAYS[field.name]}"
        elif field.metadata["hidden"] and meaning.startswith(_HIDDEN) and field.name not in judged:
            yield f"{flag}: {meaning.removeprefix(_HIDDEN)}"
    if isinstance(config, March2019):
        if config.tokenizer_type == _CHARACTERS and config.tokenizer_model_type:
            yield f"--tokenizer-model-type: {_CHARACTERS} has no vocabulary; the flag does nothing, as then"
        yield "the network is Megatron's of v1.0 on, with LayerNorm before attention and MLP; until 2019 it was behind"


def _changes(config: pretrain.Config, generation: type[pretrain.Config], fields: set[str]) -> dict[str, Any]:
    """What a default of 2019 depends on."""
    changes: dict[str, Any] = {}
    if not issubclass(generation, March2019):
        return changes
    if config.epochs is not None and config.train_iters is None:
        changes["train_iters"] = DEFAULT_UPDATES
    if generation is July2019 and config.epochs is not None:
        changes["epochs"] = None  # --train-iters was the whole run then
    if config.tokenizer_type == _CHARACTERS:
        changes["tokenizer_model_type"] = None
    named = {"tokenizer", "vocab_file", "tokenizer_path", "tokenizer_model_type"} & fields
    if not named and config.tokenizer_type == "BertWordPieceTokenizer":
        changes["tokenizer_model_type"] = "bert-large-uncased"
    return changes


def _meeting_place(environment: MutableMapping[str, str], local_rank: int | None) -> None:
    """Where processes that were started by hand, with RANK and WORLD_SIZE alone, met in 2019."""
    if "RANK" in environment and environment.get("WORLD_SIZE", "1") != "1":
        environment.setdefault("MASTER_ADDR", "localhost")
        environment.setdefault("MASTER_PORT", "6000")
        if local_rank is not None:
            environment.setdefault("LOCAL_RANK", str(local_rank))
