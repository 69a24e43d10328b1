"""NeMo's models for what people say: intents and slots, punctuation and capitals, and intents that nobody taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megabert.compat.nemo.models import TaskModel


class IntentSlotClassificationModel(TaskModel):
    """An intent for each utterance, and a slot for each of its words."""

    script, file = "intent_slot_classification", "prefix"
    answers = ("intent_logits[CLS]", "slot_logits")

    def predict_from_examples(
        self, queries: Sequence[str], test_ds: Mapping[str, Any] | None = None
    ) -> tuple[list[str], list[str]]:
        """The intents, and the slots of each utterance with spaces between them.

        Args:
            test_ds: accepted; rows of like length go through the model together.
        """
        predictions = self._asked(queries)
        return [one["label"] for one in predictions], [" ".join(one["labels"]) for one in predictions]


class PunctuationCapitalizationModel(TaskModel):
    """Marks and capitals for texts that have neither."""

    script, file = "punctuation_capitalization_train", "text_file"
    answers = ("punct_logits", "capit_logits")

    def add_punctuation_capitalization(
        self, queries: Sequence[str], batch_size: int | None = None, max_seq_length: int = 64, step: int = 8,
        margin: int = 16, return_labels: bool = False,
    ) -> list[str]:  # fmt: skip
        """The texts with marks and capitals.

        Args:
            batch_size, max_seq_length, step, margin: accepted; long texts go through in the model's own windows.
            return_labels: give each word's mark and case (`,U`) with spaces between them instead.
        """
        predictions = self._asked(queries)
        if not return_labels:
            return [one["restored"] for one in predictions]
        return [" ".join(map("".join, zip(one["marks"], one["cases"], strict=True))) for one in predictions]


class ZeroShotIntentModel(TaskModel):
    """Labels that nobody taught, by a model of natural language inference."""

    script, file = "zero_shot_intent_train", "file_name"

    def predict(
        self, queries: Sequence[str] | str, candidate_labels: Sequence[str] | str,
        hypothesis_template: str = "This example is {}.", batch_size: int = 1, multi_label: bool = True,
        entailment_idx: int = 1, contradiction_idx: int = 0,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """For each text `{sentence, labels, scores}`, the likeliest label first.

        Args:
            candidate_labels: a list, or text with commas.
            multi_label: each label for itself; else the scores of all make 1 together.
            entailment_idx, contradiction_idx: numbers of these classes of the model.

        Raises:
            ValueError: labels or a template that make no sense, or the model was not taught entailment.
        """
        from megabert.tasks import zero_shot
        from megabert.tasks.options import ZeroShotOptions

        model = self._answering()
        own, names = model.task, model.task.labels
        labels = candidate_labels.split(",") if isinstance(candidate_labels, str) else candidate_labels
        if not 0 <= entailment_idx < len(names) or not 0 <= contradiction_idx < len(names):
            raise ValueError(f"entailment_idx and contradiction_idx are numbers from 0 to {len(names) - 1}")
        options = ZeroShotOptions(
            labels=tuple(label.strip() for label in labels), hypothesis=hypothesis_template, multi_label=multi_label,
            entailment_label=names[entailment_idx], contradiction_label=names[contradiction_idx],
        )  # fmt: skip
        model.task = zero_shot.of(own, options)
        try:
            predictions = self._asked([queries] if isinstance(queries, str) else queries)
        finally:
            model.task = own
        found = []
        for one in predictions:
            order = sorted(one["probabilities"], key=lambda label: -one["probabilities"][label])
            scores = [round(one["probabilities"][label], 4) for label in order]
            found.append({"sentence": one["text"], "labels": order, "scores": scores})
        return found
