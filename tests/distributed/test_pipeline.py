"""Pipelines of two and four stages beside the whole model."""

from __future__ import annotations

from . import pipeline_checks
from .jobs import succeed, world


def run(checks):
    with world():
        import torch.distributed as dist

        for name, arguments in checks:
            getattr(pipeline_checks, name)(*arguments)
            dist.barrier()  # a send that nobody waits for must be through before its engine goes


def test_two_stages():
    checks = [
        ("check_steps", (1, 4, 2)),
        ("check_steps", (1, 1)),
        ("check_steps", (2, 4)),
        ("check_heads", (1,)),
        ("check_heads", (2,)),
        ("check_evaluation", (1,)),
        ("check_evaluation", (2,)),
        ("check_dropout", (1,)),
        ("check_dropout", (2,)),
        ("check_refusals", ()),
    ]
    succeed(run, 2, checks, seconds=240)


def test_four_stages():
    checks = [
        ("check_steps", (1, 6, 2)),
        ("check_steps", (1, 3, 1)),
        ("check_steps", (2, 4, 2, 8)),
        ("check_heads", (1,)),
        ("check_evaluation", (1,)),
    ]
    succeed(run, 4, checks, seconds=240)
