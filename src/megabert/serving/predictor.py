"""Questions to a pretrained model: which word stands at a mask, and whether one text follows another."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import MegatronBertConfig, PreTrainedModel

from megabert.formats import huggingface, verify
from megabert.formats.checkpoint import PRE_LAYERNORM
from megabert.formats.checkpoints import open_checkpoint
from megabert.formats.open import find_model
from megabert.models.bert.config import settings
from megabert.models.bert.language import MegatronBertForMaskedLM
from megabert.models.bert.packed import pack
from megabert.models.bert.pretraining import MegatronBertForNextSentencePrediction, MegatronBertForPreTraining
from megabert.tasks.rows import by_length, enough_tokens
from megabert.tokenization import opening
from megabert.tokenization.base import Tokenizer

# Tokens of a batch, padding included: enough to fill the machine, small enough for a laptop's memory.
_BATCH_TOKENS = 8192

_PAIR_MEANINGS = {
    "sop": "that the second text follows the first, and not that they were swapped (SOP)",
    "nsp": "that the second text follows the first, and does not come from another document (NSP)",
}


class Guess(NamedTuple):
    """A vocabulary entry and its probability, between 0 and 1."""

    token: str
    probability: float


class Predictor:
    """A model and its tokenizer, ready to answer."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, *, batch_tokens: int = _BATCH_TOKENS) -> None:
        """Put a model to use, in eval mode.

        Args:
            model: a Megatron BERT with a masked-word head, a sentence-pair head, or both.
            batch_tokens: tokens that go through the model at once, padding included.

        Raises:
            ValueError: the tokenizer has more entries than the model.
        """
        entries = model.config.vocab_size
        if entries < tokenizer.vocabulary_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocabulary_size:,} entries, but the model only {entries:,}: it is "
                "not the tokenizer that the model was trained with"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.longest = int(model.config.max_position_embeddings)
        self.has_masks = not isinstance(model, MegatronBertForNextSentencePrediction)
        config: MegatronBertConfig = model.config  # type: ignore[assignment]
        self.has_pairs = not isinstance(model, MegatronBertForMaskedLM) and settings(config).add_binary_head

    @classmethod
    def from_path(
        cls, path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Predictor:
        """Read a model that was saved.

        Args:
            path: a Transformers folder with its tokenizer, a run folder, a checkpoint of any format that
                `open_checkpoint` opens, or a name that it knows.
            dtype: of weights and arithmetic; `torch.bfloat16` halves memory.

        Raises:
            ValueError: there is no such model, it has no head for these questions, or it is damaged.
        """
        found = find_model(path)
        if found.kind == "foreign":
            return cls._from_checkpoint(found.path, device, dtype)
        folder = found.path
        facts = huggingface.read_facts(folder)
        if not facts.tokenizer:
            raise ValueError(
                f"{folder} holds no tokenizer (tokenizer.json or vocab.txt); put there the one that it was trained with"
            )
        masks = any(name.startswith("cls.predictions.") for name in facts.tensors)
        pairs = any(name.startswith("cls.seq_relationship.") for name in facts.tensors)
        if not masks and not pairs:
            raise ValueError(
                f"{folder} has neither a masked-word head (cls.predictions) nor a sentence-pair head "
                f"(cls.seq_relationship); it was saved from {facts.architecture or 'a model without them'}"
            )
        chosen = MegatronBertForNextSentencePrediction if pairs else MegatronBertForMaskedLM
        model, _ = huggingface.load(
            folder, MegatronBertForPreTraining if masks and pairs else chosen, dtype=dtype, device=device
        )
        pack(model)
        return cls(model, opening.load(folder))

    @classmethod
    def _from_checkpoint(cls, path: Path, device: torch.device | str, dtype: torch.dtype) -> Predictor:
        checkpoint = open_checkpoint(str(path), optimizer=False)
        if checkpoint.family != PRE_LAYERNORM:
            raise ValueError(f"{path} is a post-LayerNorm BERT, no Megatron BERT; `megabert convert` makes it a folder "
                             "for Transformers")  # fmt: skip
        if not {"lm_head", "binary_head"} & set(checkpoint.parts):
            raise ValueError(f"{path} has neither a masked-word head nor a sentence-pair head")
        if not checkpoint.vocabulary:
            said = next(
                (note for note in checkpoint.notes if "tokenizer is missing" in note), "put a vocab.txt beside it"
            )
            raise ValueError(f"{path} holds no tokenizer: {said}")
        model = verify.make_model(checkpoint, dtype)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in checkpoint.vocabulary.items():
                (Path(folder) / Path(name).name).write_bytes(data)
            tokenizer = opening.load(Path(folder))
        pack(model.to(device))  # type: ignore[arg-type]
        return cls(model, tokenizer)

    @property
    def pair_meaning(self) -> str:
        """What `next_sentence`'s probability says, by the task that the config names (`pair_task`)."""
        task = getattr(self.model.config, "pair_task", None)
        return _PAIR_MEANINGS.get(str(task), "that the second text follows the first")

    @torch.inference_mode()
    def fill_mask(self, texts: Sequence[str], top_k: int = 5) -> list[list[list[Guess]]]:
        """The likeliest entries for each `[MASK]` of each text.

        Args:
            top_k: how many entries; at most the vocabulary's size.

        Returns:
            For each text, for each of its masks in order, `top_k` guesses, the likeliest first.

        Raises:
            ValueError: the model has no masked-word head; a text has no mask or is too long.
        """
        if not self.has_masks:
            raise ValueError("this model has no masked-word head; only sentence pairs can be asked of it")
        mask, top_k = self.tokenizer.mask_id, min(top_k, self.tokenizer.vocabulary_size)
        rows = self._rows([(text,) for text in texts])
        for number, (ids, _) in enumerate(rows):
            if mask not in ids:
                raise ValueError(
                    f"text {number + 1} has no {self.tokenizer.tokens[mask]}: write it where a word is to be found: "
                    f"{_short(texts[number])}"
                )
        answers: list[list[list[Guess]]] = [[] for _ in texts]
        for batch in self._batches(rows):
            inputs = self._inputs([rows[index] for index in batch])
            masked = [[place for place, entry in enumerate(rows[index][0]) if entry == mask] for index in batch]
            positions = torch.zeros(len(batch), max(map(len, masked)), dtype=torch.long, device=self.model.device)
            for line, places in enumerate(masked):
                positions[line, : len(places)] = torch.tensor(places)
            logits = self.model(**inputs, masked_positions=positions)[0]
            # Entries that only pad the vocabulary to a round number are no words.
            probabilities = logits[..., : self.tokenizer.vocabulary_size].float().softmax(dim=-1)
            values, entries = probabilities.topk(top_k, dim=-1)
            for line, index in enumerate(batch):
                for place in range(len(masked[line])):
                    guesses = zip(entries[line, place].tolist(), values[line, place].tolist(), strict=True)
                    answers[index].append([Guess(self.tokenizer.tokens[entry], value) for entry, value in guesses])
        return answers

    @torch.inference_mode()
    def next_sentence(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The probability, for each pair, that its second text follows its first; see `pair_meaning`.

        Raises:
            ValueError: the model has no sentence-pair head; a pair is too long.
        """
        if not self.has_pairs:
            raise ValueError("this model has no sentence-pair head; only masked words can be asked of it")
        rows = self._rows(pairs)
        answers = [0.0] * len(rows)
        for batch in self._batches(rows):
            inputs = self._inputs([rows[index] for index in batch])
            if isinstance(self.model, MegatronBertForPreTraining):
                # No vocabulary logits are asked for: one place stands for all.
                inputs["masked_positions"] = torch.zeros(len(batch), 1, dtype=torch.long, device=self.model.device)
                logits = self.model(**inputs).seq_relationship_logits
            else:
                logits = self.model(**inputs).logits
            for index, value in zip(batch, logits.float().softmax(dim=-1)[:, 0].tolist(), strict=True):
                answers[index] = value
        return answers

    def _rows(self, texts: Sequence[tuple[str, ...]]) -> list[tuple[list[int], int]]:
        """(ids with special tokens, length of the first segment) of each text or pair."""
        flat = self.tokenizer.encode_batch([part for parts in texts for part in parts])
        rows = []
        taken = 0
        for number, parts in enumerate(texts):
            ids, first = [self.tokenizer.cls_id], 0
            for segment in flat[taken : taken + len(parts)]:
                ids += [*segment, self.tokenizer.sep_id]
                first = first or len(ids)
            taken += len(parts)
            if len(ids) > self.longest:
                raise ValueError(
                    f"text {number + 1} is {len(ids)} tokens long, special tokens included; this model takes "
                    f"{self.longest} at most: {_short(parts[0])}"
                )
            rows.append((ids, first))
        return rows

    def _batches(self, rows: Sequence[tuple[list[int], int]]) -> list[list[int]]:
        """Numbers of rows of about the same length, the longest first, so that little is padding."""
        enough = enough_tokens(self.batch_tokens, self.model.device.type)
        return by_length([len(ids) for ids, _ in rows], self.batch_tokens, enough=enough)

    def _inputs(self, rows: Sequence[tuple[list[int], int]]) -> dict[str, Tensor]:
        """Padded tensors [rows, seq] for the model."""
        width = max(len(ids) for ids, _ in rows)
        shape = (len(rows), width)
        input_ids = torch.full(shape, self.tokenizer.pad_id)
        segments, attention = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for line, (ids, first) in enumerate(rows):
            input_ids[line, : len(ids)] = torch.tensor(ids)
            segments[line, first : len(ids)] = 1
            attention[line, : len(ids)] = 1
        inputs = {"input_ids": input_ids, "token_type_ids": segments, "attention_mask": attention}
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
