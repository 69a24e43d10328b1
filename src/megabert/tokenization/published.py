"""The vocabularies that were published with BERT and Megatron's BERT: their names, and what bytes they are.

Names are those of Google, Megatron-LM and NeMo 0.11 to 1.23. Those of models are in `formats/named_models`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """A vocabulary, one file byte for byte for every size of BERT and for Megatron's.

    Attributes:
        names: each as `canonical` writes it; the first is that of its repository on the Hugging Face hub.
        size: bytes of its `vocab.txt`.
        sha256: of these bytes, 64 hexadecimal digits.
    """

    names: tuple[str, ...]
    size: int
    sha256: str

    @property
    def repository(self) -> str:
        """On the Hugging Face hub."""
        return f"google-bert/{self.names[0]}"

    @property
    def url(self) -> str:
        """Of the file."""
        return f"https://huggingface.co/{self.repository}/resolve/main/vocab.txt"


def _named(casing: str, size: int, sha256: str) -> Published:
    of_bert = (f"bert-large-{casing}", f"bert-base-{casing}")
    of_megatron = (
        f"megatron-bert-{casing}", f"megatron-{casing}", f"megatron-bert-345m-{casing}",
        f"megatron-bert-{casing}-345m", f"megatron-bert-345m-v0-1-{casing}",
    )  # fmt: skip
    of_bio = (
        f"biomegatron-bert-345m-{casing}", f"biomegatron-bert-{casing}-345m", f"biomegatron345m{casing}",
        f"biomegatron345m-{casing}", f"biomegatron-345m-{casing}",
    )  # fmt: skip
    return Published(names=(*of_bert, *of_megatron, *of_bio), size=size, sha256=sha256)


VOCABULARIES = {
    "uncased": _named("uncased", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    "cased": _named("cased", 213_450, "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"),
}


def canonical(name: str) -> str:
    """A name without what differed between releases: lower case, hyphens for underscores, without NVIDIA's prefix."""
    return name.lower().replace("_", "-").removeprefix("nvidia/").removeprefix("nemo/")


def vocabulary_of(name: str) -> Published | None:
    """The vocabulary of a name, in whatever spelling; None when there is none."""
    wanted = canonical(name).removeprefix("google-bert/")
    return next((known for known in VOCABULARIES.values() if wanted in known.names), None)


def lies_in_archive(name: str) -> bool:
    """Whether a name is that of a BioMegatron with a vocabulary of its own, which only the model's archive holds."""
    return canonical(name).replace("-345m", "345m").startswith("biomegatron345m-biovocab-")
