"""The published models: what each is called, was called, and where its files lie.

Names and addresses are those of NeMo 1.0 to 1.23 and of NVIDIA's catalogue. No weights were at hand to take a digest
of: the first download records it.
"""

from __future__ import annotations

from dataclasses import dataclass

from megabert.formats.download import Digest
from megabert.tokenization.published import VOCABULARIES, canonical

_NGC = "https://api.ngc.nvidia.com/v2/models/nvidia"
_S3 = "https://s3.amazonaws.com/models.huggingface.co/bert"
_VOCABULARIES = {casing: Digest(known.size, known.sha256) for casing, known in VOCABULARIES.items()}


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published model.

    Attributes:
        name: what it is called here.
        spellings: its other names, each as `canonical` writes it.
        url: where its weights are; empty for a family without weights of its own.
        file: the name its weights get in the cache.
        vocabulary_urls: places of its `vocab.txt`, tried in order; empty when the weights' archive holds it.
    """

    name: str
    spellings: frozenset[str]
    url: str = ""
    file: str = ""
    vocabulary_urls: tuple[str, ...] = ()
    digest: Digest | None = None
    vocabulary_digest: Digest | None = None


def _bert_vocabulary(casing: str) -> tuple[str, ...]:
    return VOCABULARIES[casing].url, f"{_S3}/bert-large-{casing}-vocab.txt"


def _megatron(casing: str, version: str) -> Known:
    names = (f"megatron-bert-345m-{casing}", f"megatron-bert-{casing}-345m", f"megatron-bert-345m-v0-1-{casing}")
    return Known(
        name=names[0],
        spellings=frozenset(names),
        url=f"{_NGC}/megatron_bert_345m/versions/{version}/files/release/mp_rank_00/model_optim_rng.pt",
        file="model_optim_rng.pt",
        vocabulary_urls=_bert_vocabulary(casing),
        vocabulary_digest=_VOCABULARIES[casing],
    )


def _bio_megatron(casing: str) -> Known:
    folder = f"{_NGC}/biomegatron345m{casing}/versions/0/files"
    names = (f"biomegatron-bert-345m-{casing}", f"biomegatron-bert-{casing}-345m", f"biomegatron345m{casing}")
    return Known(
        name=names[0],
        spellings=frozenset((*names, f"biomegatron345m-{casing}", f"biomegatron-345m-{casing}")),
        url=f"{folder}/MegatronBERT.pt",
        file="MegatronBERT.pt",
        vocabulary_urls=(f"{folder}/vocab.txt",),
    )


def _bio_vocabulary(size: str, casing: str) -> Known:
    name = f"biomegatron345m_biovocab_{size}_{casing}"
    file = f"BioMegatron345m-biovocab-{size}-{casing}.nemo"
    dashed = canonical(name)
    return Known(
        name=name,
        spellings=frozenset((dashed, dashed.replace("biomegatron345m", "biomegatron-345m"), canonical(file[:-5]))),
        url=f"{_NGC}/nemo/{name}/versions/1/files/{file}",
        file=file,
    )


def _family(casing: str) -> Known:
    names = (f"megatron-bert-{casing}", f"megatron-{casing}")
    return Known(name=names[0], spellings=frozenset(names))


KNOWN: tuple[Known, ...] = (
    _megatron("uncased", "v0.0"),
    _megatron("cased", "v0.1_cased"),
    _bio_megatron("uncased"),
    _bio_megatron("cased"),
    *(_bio_vocabulary(size, casing) for size in ("30k", "50k") for casing in ("uncased", "cased")),
    _family("uncased"),
    _family("cased"),
)
"""Every published Megatron BERT. The underscored `megatron_bert_345m_uncased` of NeMo 1.9 is the same model."""
