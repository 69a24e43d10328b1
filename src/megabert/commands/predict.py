"""Answer with a model: what it was fine-tuned for, which word stands at [MASK], or whether one text follows another.

  megabert predict runs/ner --input texts.txt --output predictions.jsonl
  megabert predict runs/squad --text "Who wrote it?" --text-pair "The report was written by Ada."
  megabert predict runs/mnli --labels sports,politics --hypothesis "It is about {}." --text "A goal in extra time."
  megabert predict fill-mask runs/demo --text "This function returns a [MASK]."
  megabert predict fill-mask runs/demo --input masked.txt --top-k 3 --json > answers.jsonl
  megabert predict next-sentence runs/demo --text "Close the file." --text-pair "Then open it again."

A run folder of finetune alone asks what it was fine-tuned for; --input is then a file as for training, with or without
answers, or a text a line. Without --text and --input, texts are read from standard input, one a line; where two are
needed each line is two texts with a tab between them (for question answering: the question, then the text).

A fine-tuned model can be shared by several processes, which read --input:

  torchrun --nproc-per-node 2 -m megabert predict runs/ner --input texts.txt --tensor-model-parallel-size 2
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megabert.config import option
from megabert.parallel.options import ParallelOptions
from megabert.tasks.options import ZeroShotOptions

if TYPE_CHECKING:
    import torch

    from megabert.serving.predictor import Guess, Predictor
    from megabert.training.distributed import World

SUMMARY = "answer with a model: what it was fine-tuned for, masked words, or the next sentence"

_PRETRAINED = ("fill-mask", "next-sentence")

# Texts that are answered together; a long input is read and answered piece by piece.
_TOGETHER = 512

# Texts from which on a user waits long enough to be told what would be faster.
_MANY = 1000


@dataclass(frozen=True, kw_only=True)
class Config(ZeroShotOptions, ParallelOptions):
    """The command."""

    task: str = option(
        dataclasses.MISSING, "fill-mask: the words at each [MASK]; next-sentence: whether TEXT-PAIR follows TEXT; or "
        "left out, for a fine-tuned model", positional=True,
    )  # fmt: skip
    path: str | None = option(
        None, "a run folder, a Transformers folder, a checkpoint of any format, or a name", positional=True
    )
    text: tuple[str, ...] = option((), "one text or several", example='"The capital of France is [MASK]."')
    text_pair: tuple[str, ...] = option((), "where two texts are needed: the second ones, as many as --text has")
    input: Path | None = option(
        None, "a file with one text a line (two with a tab between them for next-sentence), or with examples",
        aliases=("file",), example="texts.txt",
    )  # fmt: skip
    output: Path | None = option(
        None, "for a fine-tuned model: write one JSON object a line into this file", example="predictions.jsonl"
    )
    top_k: int = option(5, "how many words to show for each [MASK]", minimum=1, example="10")
    json: bool = option(False, "write one JSON object a line")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto takes a GPU when there is one")
    bf16: bool = option(False, "compute in bfloat16: half the memory, and faster where the hardware has it")


def run(config: Config) -> None:
    """Read the model, and answer text by text.

    Raises:
        ValueError, OSError: no such model, no text, a text without [MASK] or too long, a head that is missing.
    """
    if config.text and config.input:
        raise ValueError("--text and --input: give one of them")
    if config.path is None or config.task not in _PRETRAINED:
        _fine_tuned(config)
        return
    if config.output is not None:
        raise ValueError("--output is for a fine-tuned model; --json writes lines to standard output")
    if config.labels:
        raise ValueError(f"--labels is for a model that was fine-tuned (mnli), not for {config.task}")
    if config.text_pair and config.task != "next-sentence":
        raise ValueError("--text-pair is for next-sentence; fill-mask takes --text only")
    questions = _questions(config)
    from megabert.formats.open import find_model

    place = Path(config.path)
    find_model(place)  # a wrong path is told before torch is read and the input waited for
    first = next(questions, None)
    if first is None:
        raise ValueError("there is no text: give --text, --input FILE, or lines on standard input")

    import torch

    from megabert.serving.predictor import Predictor
    from megabert.training.launch import chosen_device

    predictor = Predictor.from_path(
        place, device=chosen_device(config.device), dtype=torch.bfloat16 if config.bf16 else torch.float32
    )
    answer = _fill_mask if config.task == "fill-mask" else _next_sentence
    batch = [first, *islice(questions, _TOGETHER - 1)]
    while batch:
        for line in answer(predictor, batch, config):
            print(line)
        batch = list(islice(questions, _TOGETHER))


def _fine_tuned(config: Config) -> None:
    """Answer what a model was fine-tuned for."""
    from megabert.formats.open import find_model

    if config.path is not None:
        raise ValueError(
            f"{config.task!r} is no question here: name one of {', '.join(_PRETRAINED)}, or only the path of a model "
            "that was fine-tuned, which knows its task"
        )
    if config.task in _PRETRAINED:
        raise ValueError(f"{config.task} of which model? Its path is missing")
    _check_output(config, [config.input] if config.input else [])
    place = Path(config.task)
    find_model(place)

    from megabert.serving.crew import joined

    with joined(config, os.environ, config.device) as (world, device):
        _answer(config, place, world, device)


def _check_output(config: Config, read: Sequence[Path]) -> None:
    """Refuse an --output that cannot be written, or that is a file which is read."""
    output = config.output
    if output is None:
        return
    if output.is_dir():
        raise ValueError(f"--output: {output} is a folder; a file is needed")
    if not output.parent.is_dir():
        raise ValueError(f"--output: there is no folder {output.parent}")
    if any(output.exists() and file.exists() and output.samefile(file) for file in read):
        raise ValueError(f"--output: {output} is a file that is read, and would be replaced; name another one")


def _answer(config: Config, place: Path, world: World | None, device: torch.device) -> None:
    """Answer with a fine-tuned model; of several processes the first one writes."""
    import torch

    from megabert.serving import fine_tuned
    from megabert.tasks import zero_shot

    if world is not None:
        from megabert.training.distributed import agree_to_start

        if config.input is None and not config.text:
            raise ValueError("several processes cannot share standard input: give --input FILE, or --text")
        agree_to_start(world, config, {}, device)
    model = fine_tuned.FineTuned.from_path(
        place, device=device, dtype=torch.bfloat16 if config.bf16 else torch.float32, parallel=config, world=world
    )
    model.task = zero_shot.of(model.task, config)
    if config.input is not None:
        _check_output(config, model.task.files(config.input))
        examples = model.task.examples(config.input, labelled=False)
    else:
        source = "--text" if config.text else "standard input"
        examples = model.task.asked(list(_typed(config)), source)
        if not examples:
            raise ValueError("there is no text: give --text, --input FILE, or lines on standard input")
    if model.crew.leads and not config.bf16 and len(examples) >= _MANY and device.type == "cpu" and _computes_bf16():
        print("note: this processor computes bfloat16 itself: --bf16 answers faster, with probabilities of about two "
              "digits", file=sys.stderr, flush=True)  # fmt: skip
    predictions = model.answer(examples).predictions
    if not model.crew.leads:
        return
    if config.output is not None:
        fine_tuned.write_predictions(predictions, config.output)
        print(f"{len(predictions):,} predictions: {config.output}")
        return
    for prediction in predictions:
        print(json.dumps(prediction, ensure_ascii=False) if config.json else model.task.shown(prediction))


def _computes_bf16() -> bool:
    """Whether the processor has instructions for bfloat16, and need not widen it."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _typed(config: Config) -> Iterator[tuple[str, ...]]:
    """Texts, or pairs of texts, of the command line or of standard input."""
    if config.text:
        if config.text_pair and len(config.text) != len(config.text_pair):
            raise ValueError(
                f"as many --text-pair as --text are needed, not {len(config.text_pair)} and {len(config.text)}"
            )
        yield from zip(config.text, config.text_pair, strict=True) if config.text_pair else zip(config.text)
    elif not sys.stdin.isatty():
        yield from (tuple(line.rstrip("\r\n").split("\t")) for line in _lines(config) if line.strip())


def _questions(config: Config) -> Iterator[tuple[str, ...]]:
    """Texts, or pairs of texts for next-sentence."""
    wanted = 2 if config.task == "next-sentence" else 1
    if config.text:
        if wanted == 1:
            yield from ((text,) for text in config.text)
            return
        if len(config.text) != len(config.text_pair):
            raise ValueError(
                f"next-sentence needs as many --text-pair as --text, not {len(config.text_pair)} and {len(config.text)}"
            )
        yield from zip(config.text, config.text_pair, strict=True)
        return
    if config.input is None and sys.stdin.isatty():
        return
    place = config.input or "standard input"
    for number, line in enumerate(_lines(config), 1):
        if not line.strip():
            continue
        parts = tuple(line.rstrip("\r\n").split("\t")) if wanted == 2 else (line.strip(),)
        if len(parts) != wanted:
            raise ValueError(f"{place}: line {number}: two texts with one tab between them are needed")
        yield parts


def _lines(config: Config) -> Iterator[str]:
    if config.input is None:
        for number, line in enumerate(sys.stdin):
            yield line if number else line.removeprefix("\ufeff")  # a byte order mark is no text
        return
    try:
        with config.input.open(encoding="utf-8-sig") as file:
            yield from file
    except FileNotFoundError:
        raise ValueError(f"--input: there is no file {config.input}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--input: {config.input} is not UTF-8 text ({error.reason})") from None


def _fill_mask(predictor: Predictor, questions: list[tuple[str, ...]], config: Config) -> Iterator[str]:
    texts = [text for (text,) in questions]
    for text, masks in zip(texts, predictor.fill_mask(texts, config.top_k), strict=True):
        if config.json:
            found = [[guess._asdict() for guess in guesses] for guesses in masks]
            yield json.dumps({"text": text, "masks": found}, ensure_ascii=False)
            continue
        yield text
        for number, guesses in enumerate(masks, 1):
            if len(masks) > 1:
                yield f"  mask {number}"
            yield from _table(guesses)


def _table(guesses: list[Guess]) -> Iterator[str]:
    width = max(len(guess.token) for guess in guesses)
    for guess in guesses:
        yield f"    {guess.token:<{width}}  {100 * guess.probability:5.1f} %"


def _next_sentence(predictor: Predictor, questions: list[tuple[str, ...]], config: Config) -> Iterator[str]:
    pairs = [(first, second) for first, second in questions]
    for (first, second), probability in zip(pairs, predictor.next_sentence(pairs), strict=True):
        if config.json:
            answer = {"text": first, "text_pair": second, "probability": probability}
            yield json.dumps(answer, ensure_ascii=False)
        else:
            yield f"{first} -> {second}\n    {100 * probability:.1f} % {predictor.pair_meaning}"
