"""A plan in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megabert.parallel.mesh import remarks
from megabert.planning.cost import axis_of
from megabert.planning.plan import RESERVED, Plan, peak_of, recomputation_of

GB = 1e9


def collectives_of(plan: Plan, rank: int) -> list[dict[str, Any]]:
    """One line for each kind of collective, axis and size of group of a rank in a step; most bytes first."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for collective, count in plan.traces[rank].work.all_collectives.items():
        axis = axis_of(collective, plan.subject.layout)
        key = (axis, collective.kind, len(collective.ranks))
        row = rows.setdefault(
            key, {"axis": axis, "kind": collective.kind, "ranks": len(collective.ranks), "count": 0, "bytes": 0,
                  "sent_bytes": 0}
        )  # fmt: skip
        row["count"] += count
        row["bytes"] += count * collective.size
        row["sent_bytes"] += count * collective.wire
    for row in rows.values():
        row.update({name: round(row[name]) for name in ("count", "bytes", "sent_bytes")})
    return sorted(rows.values(), key=lambda row: -row["bytes"])


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything that the text says and more, sizes in bytes, times in seconds."""
    subject, layout, times = plan.subject, plan.subject.layout, plan.times
    return {
        "world_size": layout.world,
        "layout": {
            "tensor": layout.tensor, "pipeline": layout.pipeline, "virtual": layout.virtual, "data": layout.data,
            "sequence_parallel": layout.sequence_parallel, "sharding": layout.sharding,
        },
        "recomputation": recomputation_of(subject),
        "micro_batch_rows": subject.options.batch_size,
        "micro_batches": subject.micro_batches,
        "rows": subject.rows,
        "hardware": plan.hardware.title,
        "notes": list(_notes(plan)),
        "device_bytes": plan.hardware.memory,
        "reserved_bytes": RESERVED,
        "fits": plan.fits,
        "ranks": {
            str(rank): {
                "pipeline": layout.place(rank)[0],
                "parameters": trace.holdings.parameters,
                "weight_bytes": trace.holdings.weights,
                "master_bytes": trace.holdings.masters,
                "gradient_bytes": trace.holdings.gradients,
                "optimizer_bytes": trace.holdings.optimizer,
                "activation_bytes": trace.passing,
                "peak_bytes": peak_of(trace),
                "collectives": collectives_of(plan, rank),
            }
            for rank, trace in plan.traces.items()
        },
        "activation_bytes_by_recomputation": plan.activations,
        "seconds": {
            "step": times.step, "compute": times.compute, "tensor": times.tensor, "pipeline": times.pipeline,
            "bubble": times.bubble, "data": times.data, "update": times.update, "ideal": plan.ideal,
        },
        "efficiency": plan.efficiency,
        "model_flops_per_second_and_device": plan.rate,
        "share_of_peak": plan.rate / plan.hardware.matrix,
        "tokens_per_second": plan.tokens,
    }  # fmt: skip


def as_text(plan: Plan) -> Iterator[str]:
    """The plan as lines for a person."""
    yield from _heading(plan)
    yield ""
    yield from _memory(plan)
    yield ""
    yield from _messages(plan)
    yield ""
    yield from _time(plan)


def _precision(options: Any) -> str:
    return "fp16" if options.fp16 else "bf16" if options.bf16 else "fp32"


def _heading(plan: Plan) -> Iterator[str]:
    subject, options = plan.subject, plan.subject.options
    yield (
        f"model     {options.num_layers} layers x {options.hidden_size}, {options.num_attention_heads} heads, "
        f"vocabulary {subject.vocabulary:,}, {_precision(options)}, recomputation: {recomputation_of(subject)}"
    )
    yield (
        f"batch     {subject.rows:,} rows of {options.seq_length} tokens: {subject.layout.data} data ranks x "
        f"{subject.micro_batches} micro-batches x {options.batch_size} rows"
    )
    yield f"layout    {subject.layout} = {subject.layout.world:,} processes"
    yield f"hardware  {plan.hardware.title}"
    yield from _notes(plan)


def _notes(plan: Plan) -> Iterator[str]:
    layout, gpus = plan.subject.layout, plan.hardware.gpus
    yield from remarks(plan.subject.options, layout, [str(rank // gpus) for rank in range(layout.world)])
    if layout.world > gpus and layout.world % gpus:
        idle = gpus - layout.world % gpus
        yield f"note: {layout.world:,} processes do not fill nodes of {gpus} GPUs: {idle} stay idle"


def _memory(plan: Plan) -> Iterator[str]:
    layout = plan.subject.layout
    heads = [f"stage {layout.place(rank)[0]}" for rank in plan.traces]
    if len(heads) == 3 and layout.pipeline > 3:
        heads[1] = f"stages 1-{layout.pipeline - 2}"
    traces = list(plan.traces.values())
    rows = [["memory of a rank, GB", *heads]]
    rows.append(["parameters, millions", *(f"{trace.holdings.parameters / 1e6:,.1f}" for trace in traces)])
    for name in ("weights", "masters", "gradients", "optimizer"):
        rows.append([name, *(_gb(getattr(trace.holdings, name)) for trace in traces)])
    rows.append(["activations and buffers", *(_gb(trace.passing) for trace in traces)])
    rows.append(["driver and libraries", *(_gb(RESERVED) for _ in traces)])
    rows.append([f"peak, of {_gb(plan.hardware.memory)}", *(_gb(peak_of(trace)) for trace in traces)])
    yield from table(rows)
    yield f"it {'fits' if plan.fits else 'DOES NOT FIT'}: the fullest rank takes {plan.peak / plan.hardware.memory:.0%}"
    choices = ", ".join(f"{name} {_gb(size)}" for name, size in plan.activations.items())
    yield f"activations and buffers by recomputation, GB: {choices}"


def _messages(plan: Plan) -> Iterator[str]:
    for rank in plan.traces:
        found = collectives_of(plan, rank)
        where = f" of stage {plan.subject.layout.place(rank)[0]}" if len(plan.traces) > 1 else ""
        rows = [[f"collectives of a rank{where} in a step", "axis", "ranks", "count", "GB", "GB sent"]]
        for row in found:
            sizes = [f"{row[name] / GB:,.3f}" for name in ("bytes", "sent_bytes")]
            rows.append([row["kind"], row["axis"], str(row["ranks"]), f"{row['count']:,}", *sizes])
        if found:
            yield from table(rows)
        else:
            yield f"no collectives{where}"


def _time(plan: Plan) -> Iterator[str]:
    times = plan.times
    names = {"compute": "computing", "tensor": "tensor parallelism", "pipeline": "between stages",
             "bubble": "pipeline bubble", "data": "data parallelism, not hidden", "update": "update"}  # fmt: skip
    rows = [["time of a step, ms", f"{times.step * 1e3:,.1f}", "100%"]]
    for name, title in names.items():
        seconds = getattr(times, name)
        if seconds:
            rows.append([title, f"{seconds * 1e3:,.1f}", f"{seconds / times.step:.0%}"])
    yield from table(rows)
    yield (
        f"{plan.rate / 1e12:,.0f} TFLOP/s of the model on each device ({plan.rate / plan.hardware.matrix:.0%} of "
        f"peak), {plan.tokens:,.0f} tokens/s in all"
    )
    yield f"efficiency {plan.efficiency:.0%} of as many single devices, had each the memory for the whole model"


def as_search(plans: Sequence[Plan], most: int = 10) -> Iterator[str]:
    """The layouts that fit, fastest first, as a table."""
    rows = [["tensor", "pipeline", "data", "sharding", "pieces", "sequence", "recomputation", "peak GB", "step ms",
             "tokens/s", "efficiency"]]  # fmt: skip
    for plan in plans[:most]:
        layout = plan.subject.layout
        rows.append(
            [
                *map(str, (layout.tensor, layout.pipeline, layout.data, layout.sharding, layout.virtual)),
                "yes" if layout.sequence_parallel else "no", recomputation_of(plan.subject), _gb(plan.peak),
                f"{plan.times.step * 1e3:,.1f}", f"{plan.tokens:,.0f}", f"{plan.efficiency:.0%}",
            ]
        )  # fmt: skip
    yield from table(rows)


def _gb(size: int) -> str:
    return f"{size / GB:,.2f}"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of equal width: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = row
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
