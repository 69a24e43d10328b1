"""The layouts of a number of processes that fit a machine, fastest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from megabert.parallel.mesh import divisors
from megabert.parallel.pipeline import check_interleaving
from megabert.planning.cost import Work
from megabert.planning.hardware import Hardware
from megabert.planning.plan import Plan, make_plan, recomputations
from megabert.planning.subject import Subject
from megabert.planning.trace import Assemble

LONGEST_PIPELINE = 64
STATE_BYTES = 12
"""Master and two moments of a weight; what data-parallel processes share first."""


def search(
    subject: Subject, hardware: Hardware, assemble: Assemble, say: Callable[[str], None] = lambda line: None
) -> list[Plan]:
    """Plans of the layouts of the world size that fit the device, fastest first.

    Tensor sizes go up to a node, with sequence parallelism. Each is tried with longer and longer pipelines until a
    longer one is slower; each of these with nothing shared and with a sharded optimizer, with sharded weights if
    neither fits, and with recomputation if nothing fits without. Of a pipeline that fits, two pieces a stage are tried.

    Args:
        say: told of each layout that was looked at.
    """
    found: list[Plan] = []
    options, world = subject.options, subject.layout.world
    looking = _Search(subject, hardware, assemble, say)
    for tensor in divisors(world):
        best = 0.0
        if tensor > min(hardware.gpus, options.num_attention_heads):
            break
        for pipeline in divisors(options.num_layers):
            if pipeline > LONGEST_PIPELINE or world % (tensor * pipeline):
                continue
            fitting = list(looking.fitting(tensor, pipeline))
            found += fitting
            fastest = max((plan.tokens for plan in fitting), default=0.0)
            if best > 0.0 and fastest <= best:
                break
            best = max(best, fastest)
    # Not by the time of a step: without --global-batch-size its rows differ from layout to layout.
    return sorted(found, key=lambda plan: -plan.tokens)


class _Search:
    """What looks at one layout after the other."""

    def __init__(self, subject: Subject, hardware: Hardware, assemble: Assemble, say: Callable[[str], None]):
        self.subject = subject
        self.hardware = hardware
        self.assemble = assemble
        self.say = say
        self.known: dict[str, Work] = {}

    def fitting(self, tensor: int, pipeline: int) -> Iterator[Plan]:
        """The plans of a tensor and a pipeline size that fit, with as little spared as that takes."""
        stage = self.subject.options.num_layers // pipeline
        pieces = (None, stage // 2) if pipeline > 1 and stage % 2 == 0 else (None,)
        for recomputation in ("none", "full"):
            some = False
            for sharding in ("none", "optimizer", "full"):
                if sharding == "full" and some:
                    continue
                for each in pieces:
                    plan = self.planned(recomputation, {
                        "tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline,
                        "num_layers_per_virtual_pipeline_stage": each, "sequence_parallel": tensor > 1,
                        "data_parallel_sharding": sharding,
                    })  # fmt: skip
                    if plan is None or not plan.fits:
                        break
                    some = True
                    yield plan
            if some:
                return

    def planned(self, recomputation: str, flags: dict[str, Any]) -> Plan | None:
        """The plan of one layout; None where it is none of this run's, or its weights alone do not fit."""
        fixed = {"use_distributed_optimizer": False, "distribute_saved_activations": False}
        try:
            candidate = recomputations(self.subject)[recomputation].with_options(**flags, **fixed)
            if candidate.layout.virtual > 1:
                check_interleaving(candidate.micro_batches, candidate.layout.pipeline)
            assert candidate.micro_batches
        except ValueError:
            return None
        layout = candidate.layout
        if (layout.sharding != "none" and layout.data == 1) or least_bytes(candidate) > self.hardware.memory:
            return None
        plan = make_plan(candidate, self.hardware, self.assemble, quick=True, known=self.known)
        told = f"{plan.times.step * 1e3:,.1f} ms, {plan.tokens:,.0f} tokens/s" if plan.fits else "does not fit"
        self.say(f"{layout}, recomputation {recomputation}: {told}")
        return plan


def least_bytes(subject: Subject) -> int:
    """Less than a rank's weights, gradients and optimizer take: what is too much already need not be built."""
    options, layout = subject.options, subject.layout
    inside = options.intermediate_size or 4 * options.hidden_size
    layers = options.num_layers * (4 * options.hidden_size**2 + 2 * options.hidden_size * inside)
    weights = layers // (layout.tensor * layout.pipeline)
    half = 2 if options.fp16 or options.bf16 else 0
    if layout.sharding == "none":
        return weights * (4 + STATE_BYTES + half)
    return weights * (4 + STATE_BYTES) // layout.data + (weights * half if layout.sharding == "optimizer" else 0)
