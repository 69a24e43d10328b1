"""The front door: `megabert VERB ...` finds the verb's module, reads its config and runs it.

A verb's module is imported only when it is chosen, and holds `Config`, `SUMMARY` and `run(config)`. Every mistake of a
user ends here, as one line on stderr and exit status 2.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from megabert import config as configuration

VERBS = {
    "demo": "the whole job on built-in text, in a few minutes, with no download",
    "train-tokenizer": "learn a WordPiece vocabulary from text",
    "tokenize": "turn text into indexed token files (.bin and .idx)",
    "pretrain": "train a Megatron BERT from text or indexed files",
    "predict": "fill masks, or judge whether a sentence follows another",
    "convert": "turn a checkpoint of any format into one of another",
    "plan": "tell memory, messages and speed of a run on any number of GPUs, before running it",
    "inspect": "say what a checkpoint, a data set or a run folder holds",
}


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items()]
    return "\n".join(
        [
            "usage: megabert VERB [flags]",
            "",
            "From raw text to a model that answers, for the Megatron family of BERT encoders.",
            "",
            *lines,
            "",
            "`megabert VERB --help` lists the verb's flags; `megabert demo` shows everything at work.",
        ]
    )


def fail(program: str, error: Exception) -> int:
    """Print one line for a user's mistake and return its exit status; raise it when MEGABERT_TRACEBACK is set."""
    if os.environ.get("MEGABERT_TRACEBACK"):
        raise error
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror}"
    else:
        message = " ".join(str(error).split())
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 done, 2 a mistake of the user, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    verb = arguments[0]
    if verb in ("-V", "--version"):
        from importlib.metadata import version

        print(f"megabert {version('megabert')}")
        return 0
    if verb not in VERBS:
        hint = configuration.nearest(verb, list(VERBS))
        print(f"megabert: error: unknown verb {verb!r}{hint}; verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    program = f"megabert {verb}"
    module = importlib.import_module(f"megabert.commands.{verb.replace('-', '_')}")
    try:
        config = configuration.parse(module.Config, arguments[1:], program=program, description=module.__doc__ or "")
        module.run(config)
    except (ValueError, OSError) as error:
        return fail(program, error)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
