"""Turn a checkpoint of any format into one of another format, without running anything in it.

  megabert convert megatron_bert_345m_v0_1_uncased.zip out          a Transformers folder
  megabert convert iter_0080000 out.nemo                            tensor ranks are joined
  megabert convert out ckpt --to megatron --tensor-model-parallel-size 4 --pipeline-model-parallel-size 2

The format of SOURCE is found by looking at it; `megabert inspect SOURCE` shows what was found. TARGET appears whole, or
not at all, and SOURCE is never changed. Weights stay bit for bit what they are.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megabert import config as configuration
from megabert.config import option

if TYPE_CHECKING:
    from megabert.formats.checkpoint import Checkpoint

SUMMARY = "turn a checkpoint of any format into one of another"


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the source does not say of itself."""

    num_attention_heads: int | None = option(
        None, "attention heads, where the file does not say; left out, heads of size 64", minimum=1, example="16"
    )
    assume_qkv_layout: Literal["v0", "v1", "v2"] | None = option(
        None,
        "order of the fused query-key-value rows, where the file's version is known to be wrong: v0 is "
        "[3, heads, size], v1 [heads, size, 3], v2 [heads, 3, size]",
        example="v0",
    )
    gelu: Literal["erf", "tanh"] | None = option(None, "GELU of the MLP, where the file does not say", example="erf")
    layernorm_epsilon: float | None = option(
        None, "added to the variance in each LayerNorm; left out, what the file says, or 1e-5", above=0, example="1e-12"
    )
    config_file: Path | None = option(
        None,
        "a JSON file (Transformers' config.json, or NeMo's with hidden-size and its like) whose fields win over those "
        "of the config that was found, where the weights allow it", metavar="FILE", example="config.json",
    )  # fmt: skip
    tokenizer: str | None = option(
        None, "tokenizer to put beside the model: a path (of a vocab.txt, say), or a name", metavar="PATH|NAME",
        example="bert-large-uncased", aliases=("vocab-file",),
    )  # fmt: skip
    print_checkpoint_structure: bool = option(False, "print the name, shape and type of every tensor")


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What is written."""

    to: Literal["huggingface", "megatron", "megatron-core", "nemo"] | None = option(
        None,
        "format of TARGET; left out, its name tells: .nemo is NeMo's, a folder is Transformers'",
        example="megatron",
    )
    tensor_model_parallel_size: int = option(1, "ranks that share each layer", minimum=1, aliases=("tensor-parallel",))
    pipeline_model_parallel_size: int = option(1, "stages that the layers are cut into", minimum=1)
    virtual_pipeline_model_parallel_size: int = option(1, "chunks of each stage (interleaved pipeline)", minimum=1)
    megatron_era: Literal["v1", "v2", "v4"] = option(
        "v2", "names of --to megatron: v1 is that of v1.0 (2020), v2 of 2021 to 2023, v4 of 2023-09 on"
    )
    ckpt_format: Literal["torch", "torch_dist"] = option(
        "torch_dist",
        "files of --to megatron-core: torch_dist is read by any number of ranks, torch by those given here",
    )
    transformer_impl: Literal["transformer_engine", "local"] = option(
        "transformer_engine", "names of --to megatron-core --ckpt-format torch"
    )
    nemo_generation: Literal["1.7", "1.0", "2021-05"] | None = option(
        None,
        "members and names of --to nemo: 1.7 is a MegatronBertModel of NeMo 1.7 to 1.23, 1.0 a task's model of 1.0 to "
        "1.4, 2021-05 the layout that was documented first; left out, 1.0 for a model that was taught a task, else 1.7",
    )
    nemo_ranks: bool = option(False, "a folder of each rank in --to nemo, also where there is only one")
    make_vocab_size_divisible_by: int = option(
        128, "Megatron's formats pad the vocabulary to a multiple of this times the tensor ranks", minimum=1
    )
    vocab_size: int | None = option(None, "cut or pad the vocabulary to this many entries", minimum=1, example="30522")
    unpad_vocab: bool = option(False, "cut the vocabulary to the entries of the tokenizer")
    max_shard_size: float = option(5.0, "files of a Transformers folder are at most this large, in GB", above=0)
    safe_serialization: bool = option(
        True,
        "weights of a Transformers folder as safetensors; --no-safe-serialization writes one pytorch_model.bin, for "
        "programs that read nothing else",
    )
    optimizer: bool = option(True, "convert the optimizer's state where both formats have it; --no-optimizer drops it")
    verify: bool = option(False, "run both sides on fixed inputs, and compare the logits")
    overwrite: bool = option(False, "replace TARGET, when it is a checkpoint and nothing else")


@dataclass(frozen=True, kw_only=True)
class Config(SourceOptions, TargetOptions):
    """The command."""

    source: str = option(dataclasses.MISSING, "a checkpoint of any format, or the name of a model", positional=True)
    target: Path = option(dataclasses.MISSING, "folder or file to write", positional=True)


def run(config: Config, *, shown: Path | None = None) -> None:
    """Read, change what was asked for, write, and compare.

    Args:
        shown: what the target is called in what is printed; None: its path.

    Raises:
        ValueError, OSError: the source is damaged or unknown, the model does not fit the target, or TARGET exists.
    """
    from megabert.formats import checkpoints, target

    begin = time.monotonic()
    chosen = config.to or checkpoints.format_of_name(config.target)
    _refuse_without_effect(config, chosen)
    choices = _choices(config, chosen)
    if Path(config.source).exists():
        target.keep_sources([Path(config.source)], config.target)
    target.refuse_existing(config.target, overwrite=config.overwrite)
    checkpoint = _with_tokenizer(read(config), config, chosen)
    print(summary(checkpoint))
    for note in checkpoint.notes:
        print(f"  note: {note}")
    if config.print_checkpoint_structure:
        for name, tensor in checkpoint.tensors.items():
            print(f"  {name}  {list(tensor.shape)}  {str(tensor.dtype).removeprefix('torch.')}")
    notes = checkpoints.save_checkpoint(checkpoint, config.target, format=chosen, overwrite=config.overwrite, **choices)
    for note in notes:
        print(f"  note: {note}")
    print(f"written: {shown or config.target} ({chosen}) in {time.monotonic() - begin:.1f} s")
    if config.verify:
        _verify(checkpoint, config)


def read(config: SourceOptions) -> Checkpoint:
    """Open `config.source` and apply what the options say of it.

    Raises:
        ValueError, OSError: as `open_checkpoint`.
    """
    from megabert.formats import checkpoints, sizes

    changes, notes = _overrides(config)
    checkpoint = checkpoints.open_checkpoint(
        config.source,  # type: ignore[attr-defined]
        heads=changes.get("num_attention_heads"), order=config.assume_qkv_layout,
        optimizer=getattr(config, "optimizer", False),
    )  # fmt: skip
    changed = {**checkpoint.config, **changes}
    if changes:
        where = str(config.config_file or "the flags")
        sizes.check_named(where, changed, checkpoint.tensors, checkpoint.family)
    checkpoint = dataclasses.replace(checkpoint, config=changed, notes=(*checkpoint.notes, *notes))
    if config.tokenizer is not None:
        checkpoint = dataclasses.replace(checkpoint, vocabulary=_tokenizer(config.tokenizer))
    return _resized(checkpoint, config)


def _with_tokenizer(checkpoint: Checkpoint, config: Config, chosen: str) -> Checkpoint:
    """A published model on its way to a format that holds a tokenizer: NVIDIA's files have none, so it is fetched."""
    from megabert.formats import download, named, named_vocabulary

    if checkpoint.vocabulary or chosen not in ("huggingface", "nemo") or download.offline():
        return checkpoint
    known = named_vocabulary.published(Path(config.source))
    if known is None or named_vocabulary.find(known)[0] is not None:
        return checkpoint
    print(f"{config.source} is called like {known.name}, and holds no vocabulary: fetching {known.vocabulary_urls[0]}")
    try:
        named.fetch_vocabulary(known, progress=download.show_progress(known.name), patience=0.2)
    except ValueError as error:
        return dataclasses.replace(checkpoint, notes=(*checkpoint.notes, str(error)))
    return read(config)


def _overrides(config: SourceOptions) -> tuple[dict[str, Any], list[str]]:
    """Fields of our config that win, and notes."""
    from megabert.formats import config_file
    from megabert.formats.megatron_arguments import TANH_GELU

    changes: dict[str, Any] = {}
    notes: list[str] = []
    if config.config_file is not None:
        changes, notes = config_file.read(config.config_file)
    if config.gelu is not None:
        changes["hidden_act"] = TANH_GELU if config.gelu == "tanh" else "gelu"
    if config.layernorm_epsilon is not None:
        changes["layer_norm_eps"] = config.layernorm_epsilon
    heads = config.num_attention_heads
    if heads is not None and changes.setdefault("num_attention_heads", heads) != heads:
        raise ValueError(f"--num-attention-heads {heads}, but {config.config_file} says "
                         f"{changes['num_attention_heads']}; leave out one of them")  # fmt: skip
    return changes, notes


def _tokenizer(name: str) -> dict[str, bytes]:
    import tempfile

    from megabert.tokenization import named, word_piece

    with tempfile.TemporaryDirectory() as folder:
        word_piece.load(named.find(name)).save(Path(folder))
        return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}


def _resized(checkpoint: Checkpoint, config: SourceOptions) -> Checkpoint:
    from megabert.formats import checkpoints

    size = getattr(config, "vocab_size", None)
    if getattr(config, "unpad_vocab", False):
        entries = checkpoints.tokenizer_entries(checkpoint)
        if entries is None:
            raise ValueError("--unpad-vocab: the source has no tokenizer that tells its entries; give --vocab-size, or "
                             "--tokenizer")  # fmt: skip
        if size is not None and size != entries:
            raise ValueError(
                f"--unpad-vocab and --vocab-size {size} contradict each other: {entries} entries are there"
            )
        size = min(entries, checkpoint.config["vocab_size"])
    return checkpoint if size is None else checkpoints.with_vocabulary(checkpoint, size)


_RANKED = ("megatron", "megatron-core", "nemo")
_USED_BY = {
    "tensor_model_parallel_size": _RANKED, "pipeline_model_parallel_size": _RANKED,
    "virtual_pipeline_model_parallel_size": ("megatron",), "make_vocab_size_divisible_by": _RANKED,
    "megatron_era": ("megatron",), "ckpt_format": ("megatron-core",), "transformer_impl": ("megatron-core",),
    "nemo_generation": ("nemo",), "nemo_ranks": ("nemo",), "max_shard_size": ("huggingface",),
    "safe_serialization": ("huggingface",),
}  # fmt: skip


def _refuse_without_effect(config: Config, chosen: str) -> None:
    """Refuse flags that the target has no use for.

    Raises:
        ValueError: there is one; says which target has.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    for name, formats in _USED_BY.items():
        if chosen in formats or getattr(config, name) == defaults[name]:
            continue
        flag = f"--{'no-' if defaults[name] is True else ''}{configuration.flag_name(name)}"
        if formats == ("huggingface",):
            raise ValueError(f"{flag} is for a Transformers folder; leave it out")
        raise ValueError(f"{flag} has no effect on {chosen}: give --to {' or '.join(formats)}, or leave it out")
    if chosen == "megatron-core" and config.ckpt_format == "torch_dist" and config.transformer_impl == "local":
        raise ValueError("--transformer-impl local has no effect on torch_dist, which has one spelling of names; give "
                         "--ckpt-format torch too")  # fmt: skip
    if not config.safe_serialization and config.max_shard_size != defaults["max_shard_size"]:
        raise ValueError("--max-shard-size has no effect with --no-safe-serialization, which writes one file")


def _choices(config: Config, chosen: str) -> dict[str, Any]:
    """What the target's `write` takes."""
    ranks = config.tensor_model_parallel_size, config.pipeline_model_parallel_size
    if chosen == "huggingface":
        container = "safetensors" if config.safe_serialization else "torch"
        return {"shard_bytes": int(config.max_shard_size * 1e9), "container": container}
    if chosen == "megatron":
        from megabert.formats.megatron_write import Layout

        layout = Layout(
            tensor=ranks[0], pipeline=ranks[1], chunks=config.virtual_pipeline_model_parallel_size,
            era=config.megatron_era, divisible_by=config.make_vocab_size_divisible_by,
        )  # fmt: skip
        return {"layout": layout}
    if chosen == "megatron-core":
        from megabert.formats import megatron_core_write

        return {
            "layout": megatron_core_write.Layout(
                kind=config.ckpt_format, tensor=ranks[0], pipeline=ranks[1],
                spec="local" if config.transformer_impl == "local" else "te",
                divisible_by=config.make_vocab_size_divisible_by,
            )
        }  # fmt: skip
    from megabert.formats import nemo_write

    layout = nemo_write.Layout(
        generation=config.nemo_generation, tensor=ranks[0], pipeline=ranks[1], ranks=config.nemo_ranks,
        divisible_by=config.make_vocab_size_divisible_by,
    )  # fmt: skip
    return {"layout": layout}


def summary(checkpoint: Checkpoint) -> str:
    """One line: what the checkpoint is."""
    sizes = checkpoint.config
    kind = "Megatron BERT" if checkpoint.family == "megatron-bert" else "post-LayerNorm BERT"
    parts = ", ".join(checkpoint.parts) or "the encoder alone"
    state = ", with optimizer state" if checkpoint.optimizer else ""
    return (
        f"{kind}: {sizes['num_hidden_layers']} layers x {sizes['hidden_size']}, {sizes['num_attention_heads']} heads, "
        f"{sizes['vocab_size']:,} entries, {checkpoint.parameters:,} parameters in {sizes.get('dtype')}; {parts}{state}"
    )


def _verify(checkpoint: Checkpoint, config: Config) -> None:
    from megabert.formats import checkpoints, verify

    written = checkpoints.open_checkpoint(
        config.target, heads=checkpoint.config["num_attention_heads"], optimizer=False
    )
    largest, each = verify.largest_difference(checkpoint, written)
    shown = ", ".join(f"{name} {value:.2g}" for name, value in each.items())
    print(f"verified: largest difference of the logits {largest:.2g} ({shown})")
    if not largest <= verify.LIMIT:
        raise ValueError(f"the logits of what was written differ by {largest:.2g} from those of the source, more than "
                         f"{verify.LIMIT:g}")  # fmt: skip
