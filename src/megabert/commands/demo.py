"""The whole job on text that is already here: corpus, vocabulary, indexed data, pretraining, answers.

The text is the English documentation of Python and of the packages that megabert needs; nothing is downloaded. It takes
about five minutes on two cores and leaves a run folder like that of any other run.
"""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megabert.config import option

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

SUMMARY = "the whole job on built-in text, in a few minutes, with no download"

_VOCABULARY = 4096
_LAYERS, _WIDTH, _HEADS, _POSITIONS, _ROWS = 2, 256, 8, 128, 32
# Twice the usual share: a small model in its first thousand updates learns from twice as many words in equal time.
_MASK_PROBABILITY = 0.3
_SPLIT = "92,4,4"
_MINUTES = 4.4
# Below this many updates the model is not past guessing frequent words: a slow machine takes longer instead.
_LEAST_STEPS = 1000
_NETWORK = (
    f"--num-layers {_LAYERS} --hidden-size {_WIDTH} --num-attention-heads {_HEADS} "
    f"--max-position-embeddings {_POSITIONS} --hidden-dropout 0 --attention-dropout 0 "
    # A narrow model wants wider initial weights than the 0.02 of 1,024 columns.
    "--init-method-std 0.04 --zero-init-tokentypes"
).split()


@dataclass(frozen=True, kw_only=True)
class Config:
    """The demonstration."""

    minutes: float | None = option(
        None,
        "how long to train, in minutes; left out, about four, and longer on a slow machine",
        example="10",
        above=0,
        maximum=10_000,
    )
    save: Path | None = option(None, "run folder; left out, runs/demo-<time>", metavar="FOLDER", example="runs/my-demo")
    seed: int = option(1234, "seed of weights, order and masks", minimum=0)


def run(config: Config) -> None:
    """Measure the machine, run `megabert pretrain`, and show what the model has learnt.

    Raises:
        ValueError: a step failed; its own message stands above.
    """
    begin = time.monotonic()
    folder = config.save or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists():
        raise ValueError(f"--save: {folder} exists already; name another folder")
    _title("1. Measuring this machine")
    precision, seconds = _fastest_precision()
    steps = int(60 * (config.minutes or _MINUTES) / seconds) + 1
    if config.minutes is None:
        steps = max(steps, _LEAST_STEPS)
    print(f"{precision}: {1 / seconds:.1f} updates of {_ROWS} rows a second; so {steps:,} updates", flush=True)

    _title("2. Corpus, vocabulary, indexed data, pretraining")
    arguments = [
        "pretrain", "--train-data", "builtin", "--split", _SPLIT, "--vocab-size", str(_VOCABULARY), *_NETWORK,
        "--seq-length", str(_POSITIONS), "--pack",
        "--masking", "token", "--mask-prob", str(_MASK_PROBABILITY),
        "--batch-size", str(_ROWS), "--train-iters", str(steps), "--lr", "1.2e-3",
        "--adam-beta2", "0.98",
        "--warmup", "0.1", *(["--bf16"] if precision == "bf16" else []), "--log-interval", str(max(steps // 30, 1)),
        "--eval-interval", str(-(-steps // 5)), "--eval-iters", str(min(30, steps)), "--num-workers", "1",
        "--seed", str(config.seed), "--save", str(folder),
    ]  # fmt: skip
    print("$ megabert " + shlex.join(arguments), flush=True)
    if subprocess.run([sys.executable, "-m", "megabert", *arguments], check=False).returncode:
        raise ValueError("pretraining did not succeed; its message stands above")

    _title("3. What it has learnt")
    _show_accuracy(folder)
    _show_plain_transformers(folder)
    _show_guesses(folder, config.seed)
    print(f"\nrun folder: {folder}   loss curve: {folder / 'loss.png'}")
    print(f'try: megabert predict fill-mask {folder} --text "Returns a new [MASK] with the same shape."')
    print(f"     megabert inspect {folder}")
    print(f"({time.monotonic() - begin:.0f} seconds in all)")


def _title(text: str) -> None:
    print(f"\n== {text} ==", flush=True)


def _fastest_precision() -> tuple[str, float]:
    """bf16 or fp32, whichever trains faster here, and the seconds of one update.

    Whether a processor computes in bf16 or only imitates it is best asked with a clock.
    """
    import torch

    from megabert import MegatronBertForPreTraining, config
    from megabert.models.bert.config import make_config
    from megabert.models.losses import PretrainingObjective
    from megabert.models.options import ModelOptions
    from megabert.training.options import TrainingOptions
    from megabert.training.step import make_step

    @dataclass(frozen=True, kw_only=True)
    class Trial(TrainingOptions, ModelOptions):
        """One trial."""

    times = {}
    for precision in ("bf16", "fp32"):
        flags = [*_NETWORK, "--bf16"] if precision == "bf16" else _NETWORK
        trial = config.parse(Trial, flags, program="demo")
        torch.manual_seed(0)
        model = MegatronBertForPreTraining(make_config(trial, _VOCABULARY))
        step = make_step(model, PretrainingObjective("sop"), trial)
        batch = _synthetic_batch()
        durations = []
        for _ in range(6):
            begin = time.perf_counter()
            step([batch], 1e-4)
            durations.append(time.perf_counter() - begin)
        times[precision] = sorted(durations[2:])[1]
    best = min(times, key=times.__getitem__)
    return best, times[best]


def _synthetic_batch() -> dict:
    import torch

    shape, masked = (_ROWS, _POSITIONS), round(_MASK_PROBABILITY * _POSITIONS)
    positions = torch.arange(_POSITIONS).expand(shape).contiguous()
    return {
        "input_ids": torch.randint(5, _VOCABULARY, shape),
        "token_type_ids": torch.zeros(shape, dtype=torch.long),
        "position_ids": positions % 64,
        "sample_ids": 1 + positions // 64,
        "masked_positions": torch.arange(masked).mul(3).expand(_ROWS, masked).contiguous(),
        "masked_labels": torch.randint(5, _VOCABULARY, (_ROWS, masked)),
        "sample_starts": torch.tensor([0, 64]).expand(_ROWS, 2).contiguous(),
        "next_sentence_label": torch.randint(0, 2, (_ROWS, 2)),
    }


def _show_accuracy(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    test = next(record for record in reversed(records) if "test_lm_accuracy" in record)
    model, unigram = test["test_lm_accuracy"], test["test_lm_unigram_accuracy"]
    print(
        f"masked words of documents it never saw: {model:.1%} right; always guessing the commonest token: "
        f"{unigram:.1%}; that is a factor of {model / unigram:.1f}"
    )


def _show_plain_transformers(folder: Path) -> None:
    """Open the model with Transformers' class and with ours, and compare."""
    import torch
    import transformers

    import megabert

    transformers.utils.logging.disable_progress_bar()
    ids = torch.randint(5, 1000, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = transformers.MegatronBertForPreTraining.from_pretrained(folder / "model").eval()(ids)
        ours = megabert.MegatronBertForPreTraining.from_pretrained(folder / "model").eval()(ids)
    difference = (theirs.prediction_logits - ours.prediction_logits).abs().max().item()
    print(f"{folder / 'model'} opens in plain Transformers; largest difference of the logits: {difference:.1e}")


def _show_guesses(folder: Path, seed: int) -> None:
    from megabert.serving.predictor import Predictor
    from megabert.tokenization import opening

    tokenizer = opening.load(folder / "model")
    chosen = list(_masked_sentences(folder, tokenizer, random.Random(seed)))
    predictor = Predictor.from_path(folder)
    answers = predictor.fill_mask([masked for masked, _ in chosen], top_k=5)
    print("\nmasked sentences of those documents, the word that stood there, and the model's five best:")
    for (masked, word), guesses in zip(chosen, answers, strict=True):
        best = ", ".join(f"{guess.token} {guess.probability:.0%}" for guess in guesses[0])
        print(f"  {masked}\n      {word}  <-  {best}")


def _masked_sentences(folder: Path, tokenizer: Tokenizer, generator: random.Random) -> Iterator[tuple[str, str]]:
    """Sentences of held-out documents with one word replaced by [MASK], and that word."""
    from megabert.corpora import sentences

    lines = (folder.parent / "cache" / "builtin.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = lines[-max(len(lines) * 3 // 100, 1) :]
    generator.shuffle(held_out)
    entries = set(tokenizer.tokens)
    found = 0
    for line in held_out:
        for sentence in sentences.split(json.loads(line)["text"]):
            words = [match for match in re.finditer(r"\b[a-z]{3,}\b", sentence) if match[0] in entries]
            if 60 <= len(sentence) <= 110 and len(words) > 5:
                match = generator.choice(words)
                yield f"{sentence[: match.start()]}[MASK]{sentence[match.end() :]}", match[0]
                found += 1
                break
        if found == 6:
            return
