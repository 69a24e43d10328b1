"""NeMo's `evaluate_from_file` for labels of words: labels and predictions as a file, their confusion as a picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megabert import runtime
from megabert.metrics import classification

if TYPE_CHECKING:
    from megabert.serving.fine_tuned import FineTuned


def evaluate(
    model: FineTuned, folder: Path, texts: Path, labels: Path | None, *, confusion: bool, normalised: bool
) -> Path:
    """Write `infer_<text file>`: a row `labels` (when they are known) and a row `preds`, tabs between words' labels.

    Args:
        confusion: also draw the confusion of labels; `normalised`: as shares of each row.

    Returns:
        The file.

    Raises:
        ValueError: files that do not fit together, or a picture without labels.
    """
    from megabert.tasks import readers, words
    from megabert.tasks.words import WordsExample

    if confusion and labels is None:
        raise ValueError("add_confusion_matrix needs a labels_file to compare with")
    examples = []
    for number, one in enumerate(readers.text_and_labels(texts, labels), 1):
        text, offsets = words.joined(one.words)
        examples.append(WordsExample(id=str(number), place=one.place, words=one.words, tags=one.tags, text=text,
                                     offsets=offsets))  # fmt: skip
    predictions = model.answer(readers.not_empty(examples, texts)).predictions
    given = [tag for said in predictions for tag in said["labels"]]
    gold = [tag for example in examples for tag in example.tags]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"infer_{texts.name}"
    with runtime.atomic_write(file) as out:
        if gold:
            out.write("\t".join(["labels", *gold]) + "\n")
        out.write("\t".join(["preds", *given]) + "\n")
    if confusion:
        name = f"{'Normalized_' if normalised else ''}Confusion_matrix_{time.strftime('%Y%m%d-%H%M%S')}.png"
        _draw(classification.confusion(gold, given, model.task.labels), model.task.labels, normalised, folder / name)
    return file


def _draw(counts: Sequence[Sequence[int]], labels: Sequence[str], normalised: bool, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [[count / max(1, sum(row)) for count in row] for row in counts] if normalised else counts
    size = 3 + 0.5 * len(labels)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shown, cmap="Blues")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("right")
    highest = max(max(row) for row in shown)
    for at, row in enumerate(shown):
        for place, value in enumerate(row):
            axes.text(place, at, f"{value:.2f}" if normalised else f"{value:,}", ha="center", va="center",
                      color="white" if value > highest / 2 else "black")  # fmt: skip
    FigureCanvasAgg(figure).print_png(str(path))
