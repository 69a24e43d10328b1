"""What the scores of `scores.json` are, each in one sentence."""

from __future__ import annotations

from collections.abc import Mapping

MEANINGS: Mapping[str, str] = {
    "accuracy": "Share of examples (of words, for labels of words) whose label is right.",
    "f1": "Harmonic mean of precision and recall. Of entities: conlleval's, exact bounds and type. Of SQuAD: overlap "
    "of the answer's words, mean over questions, in per cent. Of two classes: that of the positive one.",
    "precision": "Share of what was said (entities, relations) that is right.",
    "recall": "Share of what is right (entities, relations) that was said.",
    "accuracy_and_f1": "Mean of accuracy and F1 of the positive class, GLUE's number for MRPC and QQP.",
    "macro_precision": "Precision, averaged over classes that count the same.",
    "macro_recall": "Recall, averaged over classes that count the same.",
    "macro_f1": "F1 of each class (entity type), averaged so that all count the same.",
    "weighted_f1": "F1 of each class, averaged by how often the class occurs.",
    "matthews": "Matthews' correlation, -1 to 1, 0 for guessing; GLUE's number for CoLA.",
    "strict_f1": "F1 of entities that are written just as the scheme wants them, as seqeval's strict mode.",
    "pearson": "Pearson's linear correlation, -1 to 1.",
    "spearman": "Spearman's rank correlation, -1 to 1; ties share their ranks.",
    "pearson_and_spearman": "Mean of both correlations, GLUE's number for STS-B.",
    "mean_squared_error": "Mean squared distance of numbers; lower is better.",
    "exact_match": "SQuAD 1.1: per cent of answers equal to a right one, without case, punctuation and articles.",
    "exact": "SQuAD 2.0: per cent of answers equal to a right one, without case, punctuation and articles.",
    "HasAns_exact": "`exact` over the questions that have an answer.",
    "HasAns_f1": "`f1` over the questions that have an answer.",
    "HasAns_total": "How many questions have an answer.",
    "NoAns_exact": "Per cent of the questions without answer for which none is given.",
    "NoAns_f1": "The same as NoAns_exact.",
    "NoAns_total": "How many questions have no answer.",
    "best_exact": "`exact` with the null threshold that is best for it on these questions.",
    "best_exact_thresh": "That threshold; 0 where it is best to answer nothing, as in the official script.",
    "best_f1": "`f1` with the null threshold that is best for it on these questions.",
    "best_f1_thresh": "That threshold; 0 where it is best to answer nothing, as in the official script (the model then "
    "keeps one below all scores).",
    "nemo_precision": "As NeMo 1.x logged it: of classes micro-averaged, which is the accuracy; of words' labels the "
    "mean over all labels, O among them.",
    "nemo_recall": "As NeMo 1.x logged it, see nemo_precision.",
    "nemo_f1": "As NeMo 1.x logged it, see nemo_precision; for SQuAD see nemo_exact_match.",
    "nemo_exact_match": "As NeMo 1.x logged it for SQuAD: the 2.0 script's threshold search on constant scores.",
}
"""A score's name -> its definition."""


def meaning(name: str) -> str:
    """The definition of a score; empty where none is written down."""
    return MEANINGS.get(name, "")
