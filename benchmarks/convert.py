"""Conversion beside Transformers' algorithm: seconds and peak memory, each measurement in a process of its own.

  python benchmarks/convert.py [--repeats 5] [--large] [--folder /tmp] [--json out.json]

The source is a file of the published 345M's sizes, made here: fp16, one rank, version 0. `theirs` is what Transformers'
script does, written plainly: load everything, permute, save everything. Both sides write to the same disk and wait for
it (fsync); imports are not counted. `--large` adds a model of the sizes of the 3.9B one (7.7 GB), by streaming.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from megabert.formats import bert_names, megatron_write
from megabert.formats.checkpoint import Checkpoint, LazyTensor
from megabert.formats.checkpoints import WRITERS, find_format, open_checkpoint, save_checkpoint

BASE = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "vocab_size": 30592}
LARGE = {"num_hidden_layers": 48, "hidden_size": 2560, "num_attention_heads": 40, "vocab_size": 30592}


def made(sizes: dict[str, int]) -> Checkpoint:
    """A checkpoint of random fp16 numbers, made when they are asked for."""
    hidden, words = sizes["hidden_size"], sizes["vocab_size"]
    inner = 4 * hidden
    known = {
        "bert.embeddings.word_embeddings.weight": (words, hidden), "cls.predictions.bias": (words,),
        "bert.embeddings.position_embeddings.weight": (512, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
        "cls.seq_relationship.weight": (2, hidden), "cls.seq_relationship.bias": (2,),
    }  # fmt: skip
    tensors = {}
    for row in bert_names.legacy(sizes["num_hidden_layers"]):
        for name in row.ours:
            leaf = name.rpartition("layer.")[2].partition(".")[2]
            shape = known.get(name) or {
                "intermediate.dense.weight": (inner, hidden), "intermediate.dense.bias": (inner,),
                "output.dense.weight": (hidden, inner),
            }.get(leaf)  # fmt: skip
            norm = name.endswith(("ln.weight", "LayerNorm.weight"))
            shape = shape or ((hidden,) if norm or name.endswith("bias") else (hidden, hidden))
            if not name.startswith("classifier"):
                tensors[name] = LazyTensor(shape, torch.float16, lambda shape=shape: torch.randn(shape).half(), name)
    config = {**sizes, "intermediate_size": inner, "max_position_embeddings": 512, "type_vocab_size": 2,
              "hidden_act": "gelu", "head_act": "gelu", "layer_norm_eps": 1e-5, "dtype": "float16",
              "architectures": ["MegatronBertForPreTraining"], "add_binary_head": True}  # fmt: skip
    return Checkpoint(family="megatron-bert", config=config, tensors=tensors)


def theirs(source: Path, target: Path) -> None:
    """Transformers' steps: load the file, rename and permute every tensor, save the lot."""
    content = torch.load(source / "release/mp_rank_00/model_optim_rng.pt", map_location="cpu", weights_only=False)
    model = content["model"]
    embedding, encoder = model["language_model"]["embedding"], model["language_model"]["transformer"]
    state = {f"bert.embeddings.{name}.weight": part["weight"] for name, part in embedding.items()}
    heads, hidden = 16, embedding["word_embeddings"]["weight"].shape[1]
    for name, tensor in encoder.items():
        if "query_key_value" not in name:
            state[name] = tensor
            continue
        ordered = tensor.view(3, heads, hidden // heads, *tensor.shape[1:]).contiguous().view(3, hidden, -1)
        state |= {f"{name}.{part}": ordered[index] for index, part in enumerate(("query", "key", "value"))}
    for part in ("lm_head", "binary_head"):
        state |= {f"{part}.{name}": tensor for name, tensor in model[part].items()}
    state["cls.predictions.decoder.weight"] = embedding["word_embeddings"]["weight"]
    target.mkdir()
    with (target / "pytorch_model.bin").open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def job(name: str, source: Path, target: Path) -> None:
    """One measurement, in this process; prints JSON."""
    if name != "theirs":
        find_format(source)  # imports what it needs
        importlib.import_module(f"megabert.formats.{WRITERS[name.partition(':')[0]]}")
        importlib.import_module("megabert.formats.named")
    begin = time.perf_counter()
    if name == "theirs":
        theirs(source, target)
    else:
        format, ranks = name.split(":")
        choices = {"layout": megatron_write.Layout(tensor=int(ranks))} if format == "megatron" else {}
        save_checkpoint(open_checkpoint(source), target, format=format, **choices)
    seconds = time.perf_counter() - begin
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))  # mapped files included
    print(json.dumps({"seconds": seconds, "peak": peak}))


def measured(name: str, source: Path, target: Path, *, keep: bool = False) -> dict[str, float]:
    """Run `job` in a process of its own; the memory of an idle process with torch is taken off."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, __file__, "--job", name, str(source), str(target)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    if not keep:
        shutil.rmtree(target)
    return found


def size_of(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", nargs=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.job:
        job(options.job[0], Path(options.job[1]), Path(options.job[2]))
        return
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        save_checkpoint(made(BASE), folder / "one", format="megatron", layout=megatron_write.Layout(era="v1"))
        size = size_of(folder / "one")
        idle = measured("huggingface:1", tiny(folder), folder / "t")["peak"]
        print(f"source: {size / 1e6:,.0f} MB; a process with torch imported: {idle / 1e6:,.0f} MB")
        runs: dict[str, list[dict[str, float]]] = {"theirs": [], "huggingface:1": []}
        for _ in range(options.repeats):
            for kind, found in runs.items():
                found.append(measured(kind, folder / "one", folder / "out"))
        for kind, found in runs.items():
            results[kind] = median(found, size, idle)
        results["tp 1 -> tp 8"] = median(
            [measured("megatron:8", folder / "one", folder / "eight", keep=True)], size, idle
        )
        results["tp 8 -> tp 1"] = median([measured("megatron:1", folder / "eight", folder / "out")], size, idle)
        if options.large:
            shutil.rmtree(folder / "eight")
            layout = megatron_write.Layout(era="v1")
            save_checkpoint(made(LARGE), folder / "large", format="megatron", layout=layout)
            size = size_of(folder / "large")
            results["3.9B -> huggingface"] = median(
                [measured("huggingface:1", folder / "large", folder / "out")], size, idle
            )
    for kind, found in results.items():
        memory = f"peak {found['peak'] / 1e6:8,.0f} MB (over the idle process: {found['over']:.2f} x the file)"
        print(f"{kind:<22} {found['seconds']:6.2f} s  {found['bytes'] / 1e9:5.2f} GB  {memory}")
    print(f"theirs / ours: {results['theirs']['seconds'] / results['huggingface:1']['seconds']:.2f} x the time")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def tiny(folder: Path) -> Path:
    """A checkpoint that takes no memory, to measure an idle process."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1, "vocab_size": 128}
    save_checkpoint(made(sizes), folder / "tiny", format="megatron", layout=megatron_write.Layout(era="v1"))
    return folder / "tiny"


def median(found: list[dict[str, float]], size: int, idle: float) -> dict[str, float]:
    """The median time and the largest peak of several runs."""
    peak = max(run["peak"] for run in found)
    seconds = statistics.median(run["seconds"] for run in found)
    return {"seconds": seconds, "bytes": size, "peak": peak, "over": max(0.0, peak - idle) / size}


if __name__ == "__main__":
    main()
