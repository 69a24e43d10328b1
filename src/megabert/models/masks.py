"""Which places may attend to which: every spelling of a mask that users have, as what a kernel takes.

The kernels of this package take an additive mask, [batch or 1, 1, query or 1, key], or None where everybody sees
everybody. It holds the least finite number, not minus infinity, at forbidden places: a row in which everything is
forbidden then gives the mean of the values, as in Transformers' eager mathematics, and never NaN. Kernels for
packed rows take the borders of samples instead (`PackedRows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import MegatronBertConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_bidirectional_mask,
    create_causal_mask,
    is_tracing,
)

OWN_KERNELS = ("sdpa", "eager")


def allowed_places(attention_mask: Tensor) -> Tensor:
    """A user's mask as the places that may be attended to.

    Args:
        attention_mask: [batch, key], [batch, query, key] or [batch, heads or 1, query, key]; boolean or whole numbers,
            True or 1 = attend. In two dimensions floating-point 0 and 1 are taken too.

    Returns:
        bool [batch, heads or 1, query or 1, key].

    Raises:
        ValueError: another number of dimensions, or floating point in three (there it could mean either thing).
    """
    if attention_mask.dim() not in (2, 3, 4):
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)}; [batch, key], [batch, query, key] or "
            "[batch, 1, query, key] is needed"
        )
    if attention_mask.dim() == 3 and attention_mask.is_floating_point():
        raise ValueError(
            f"attention_mask [batch, query, key] must be boolean or whole numbers (1 = attend), not "
            f"{attention_mask.dtype}; an additive mask has four dimensions, [batch, 1, query, key]"
        )
    allowed = attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    if allowed.dim() == 2:
        return allowed[:, None, None, :]
    return allowed[:, None] if allowed.dim() == 3 else allowed


def check_mask_shape(name: str, mask: object, queries: int, keys: int) -> None:
    """Refuse a mask of another sequence: one that forbids nothing would otherwise pass unnoticed.

    Args:
        mask: as `allowed_places`, or additive; anything else is left to whoever takes it.
        queries: places that ask; a mask may have 1 for all of them.
        keys: places that are asked, those in the cache included.

    Raises:
        ValueError: the numbers of keys or queries differ.
    """
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 3, 4):
        return
    shape = list(mask.shape)
    if shape[-1] != keys or (len(shape) > 2 and shape[-2] not in (1, queries)):
        raise ValueError(f"{name} of shape {shape} does not fit {queries} tokens that attend to {keys}")


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `allowed`, the least number of `dtype` elsewhere; same shape."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def same_sample(sample_ids: Tensor) -> Tensor:
    """bool [batch, 1, seq, seq]: both places belong to one sample. Padding (id 0) is a sample of its own.

    Args:
        sample_ids: [batch, seq].
    """
    return (sample_ids[:, :, None] == sample_ids[:, None, :])[:, None]


_unasked: ContextVar[bool] = ContextVar("numbers are not asked for", default=False)


@contextmanager
def numbers_unasked() -> Iterator[None]:
    """In this context masks are made without asking the device for a number, as they are while a graph is captured.

    What comes before a capture must run the same kernels as the capture itself.
    """
    token = _unasked.set(True)
    try:
        yield
    finally:
        _unasked.reset(token)


def _can_ask(tensor: Tensor) -> bool:
    return not is_tracing(tensor) and not _unasked.get()


def _all_true(allowed: Tensor) -> bool:
    """Whether nothing is forbidden, where that can be asked (not while a graph is captured)."""
    return _can_ask(allowed) and not allowed.is_meta and bool(allowed.all())


def own_mask(
    attention_mask: Tensor | None,
    sample_ids: Tensor | None,
    *,
    query_length: int,
    past_length: int,
    causal: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """The additive mask of this package's kernels (see the module's text).

    Args:
        attention_mask: as `allowed_places`, or additive numbers [batch, heads or 1, query, key].
        sample_ids: [batch, seq]; attention stays inside a sample. Not with a cache.
        query_length: places that ask.
        past_length: places before them, in the cache.
        causal: a place sees itself and those before it. A mask of three or four dimensions says all by itself.
        dtype: of the numbers that it is added to.

    Raises:
        ValueError: as `allowed_places`; or `sample_ids` together with a cache.
    """
    if attention_mask is not None and attention_mask.dim() == 4 and attention_mask.is_floating_point():
        mask = attention_mask.to(dtype).clamp_min(torch.finfo(dtype).min)
        return mask if sample_ids is None else mask + additive(same_sample(sample_ids), dtype)
    parts = []
    if attention_mask is not None:
        allowed = allowed_places(attention_mask.to(device))
        if not _all_true(allowed):
            parts.append(allowed)
    if sample_ids is not None:
        if past_length:
            raise ValueError("sample_ids cannot be used with a cache of earlier keys")
        together = same_sample(sample_ids)
        if not _all_true(together):
            parts.append(together)
    if causal and (attention_mask is None or attention_mask.dim() == 2) and query_length > 1:
        places = torch.arange(past_length + query_length, device=device)
        parts.append((places[past_length:, None] >= places[None, :])[None, None])
    if not parts:
        return None
    allowed = parts[0]
    for part in parts[1:]:
        allowed = allowed & part
    return additive(allowed, dtype)


def rows_of_mask(mask: Tensor | PackedRows | None, positions: Tensor) -> Tensor | None:
    """The rows of a mask [batch or 1, heads or 1, query or 1, key] at `positions` [batch, wanted] of the queries."""
    if isinstance(mask, PackedRows):
        return mask.mask_at(positions)
    if mask is None or mask.shape[2] == 1:
        return mask
    batch, key = positions.shape[0], mask.shape[3]
    chosen = positions[:, None, :, None].expand(-1, mask.shape[1], -1, key)
    return mask.expand(batch, -1, -1, -1).gather(2, chosen)


class PackedRows(NamedTuple):
    """Samples side by side, in place of a mask: attention stays inside each.

    Attributes:
        sample_ids: [batch, seq].
        borders: int32 [samples + 1], as `packed_attention.packed_context` takes them; padding is a sample.
        dtype: that attention computes in.
    """

    sample_ids: Tensor
    borders: Tensor
    dtype: torch.dtype

    def mask_at(self, positions: Tensor) -> Tensor:
        """The additive mask [batch, 1, wanted, seq] of queries at `positions` [batch, wanted]."""
        asking = self.sample_ids.gather(1, positions)
        return additive((asking[:, :, None] == self.sample_ids[:, None, :])[:, None], self.dtype)


def packed_rows(sample_ids: Tensor, samples: int | None, *, dtype: torch.dtype) -> PackedRows | Tensor | None:
    """The borders of the samples in `sample_ids` [batch, seq], found once for all layers.

    Usually the host waits for the device once, to count the samples. It cannot while a graph is captured; the borders
    are then made for `samples` in a row and padding, and the device itself ends a run with more of them, or with one
    whose tokens do not stand together.

    Args:
        samples: the most in a row, padding left out; None: unknown.
        dtype: that attention computes in.

    Returns:
        None where every row is one sample; an additive mask where the tokens of one do not stand together, or where the
        number of samples is unknown and cannot be counted.
    """
    first = torch.ones_like(sample_ids, dtype=torch.bool)
    first[:, 1:] = sample_ids[:, 1:] != sample_ids[:, :-1]
    ordered = sample_ids.sort(dim=1).values
    runs, different = first.sum(dim=1), (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1) + 1
    together = (runs == different).all()
    if _can_ask(sample_ids):
        whole, count = torch.stack([together.long(), runs.sum()]).tolist()
        if count == len(sample_ids):
            return None
    else:
        whole, most = samples is not None, (samples or 0) + 1
        count = len(sample_ids) * most
        if whole:
            fits = together & (runs <= most).all()
            torch._assert_async(fits, "sample_ids: more samples than sample_starts, or one in pieces")
    if not whole:
        return additive(same_sample(sample_ids), dtype)
    return PackedRows(sample_ids, _borders(first, count), dtype)


def _borders(first: Tensor, count: int) -> Tensor:
    """int32 [count + 1]: the places in `first` [rows, seq], laid end to end, where it holds, then its size.

    Kernels have work and memory for each of `count`, so it is no more than is known.
    """
    size = first.numel()
    flat = first.flatten()
    number = flat.cumsum(0) - 1
    borders = torch.full((count + 2,), size, dtype=torch.int32, device=first.device)
    # What is no border is written behind the last one; so shapes do not depend on the samples.
    target = torch.where(flat & (number < count), number, count + 1)
    borders.scatter_(0, target, torch.arange(size, dtype=torch.int32, device=first.device))
    return borders[:-1]


def _within(sample_ids: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`same_sample` as a function of indices, the form in which Transformers builds masks."""

    def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sample_ids[batch, query] == sample_ids[batch, key]

    return same


def foreign_mask(
    config: MegatronBertConfig,
    hidden: Tensor,
    attention_mask: Tensor | None,
    sample_ids: Tensor | None,
    *,
    past_key_values: Cache | None,
    causal: bool,
) -> object:
    """The mask of a kernel that Transformers brings or a user registered, in that kernel's own form.

    A registered kernel without a registered mask function gets the additive mask of `own_mask`: leaving the padding
    unsaid, as Transformers does there, would give wrong numbers silently.

    Args:
        hidden: [batch, seq, hidden], for its sizes, device and dtype.

    Raises:
        ValueError: a mask of three dimensions, or `sample_ids`, for FlashAttention, which takes neither.
    """
    kernel = config._attn_implementation or "sdpa"
    past_length = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    if kernel not in ALL_MASK_ATTENTION_FUNCTIONS:
        return own_mask(
            attention_mask, sample_ids, query_length=hidden.shape[1], past_length=past_length, causal=causal,
            dtype=hidden.dtype, device=hidden.device,
        )  # fmt: skip
    if kernel.startswith("flash") and (
        sample_ids is not None or (attention_mask is not None and attention_mask.dim() != 2)
    ):
        raise ValueError(
            f"attention kernel {kernel} takes a mask of [batch, key] only, not packed rows (sample_ids) or masks of "
            "more dimensions; use attn_implementation='sdpa' or 'flex_attention'"
        )
    if attention_mask is not None and isinstance(attention_mask, Tensor) and attention_mask.dim() == 3:
        attention_mask = allowed_places(attention_mask)
    make = create_causal_mask if causal else create_bidirectional_mask
    return make(
        config=config,
        inputs_embeds=hidden,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        and_mask_function=None if sample_ids is None else _within(sample_ids),
    )
