"""The front door: `megabert VERB ...` finds the verb's module, reads its config and runs it.

A verb's module is imported only when it is chosen, and holds `Config`, `SUMMARY` and `run(config)`. Every mistake of a
user ends here, as one line on stderr and exit status 2.
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from megabert import config as configuration
from megabert import runtime

CLOSED_PIPE = 128 + 13
SILENT_SECONDS = 2.0
INTERRUPTED, TERMINATED = 128 + 2, 128 + 15

VERBS = {
    "demo": "the whole job on built-in text, in a few minutes, with no download",
    "extract": "take the text out of a Wikipedia dump",
    "train-tokenizer": "learn a WordPiece or SentencePiece tokenizer from text",
    "tokenize": "turn text into indexed token files (.bin and .idx)",
    "data": "join, cut or check indexed data",
    "pretrain": "train a Megatron BERT from text or indexed files",
    "finetune": "teach a pretrained encoder a task: questions, classes, entities, GLUE",
    "evaluate": "score a fine-tuned model on a file of examples",
    "predict": "answer with a model: what it was fine-tuned for, masked words, or the next sentence",
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
        if isinstance(error, FileExistsError) and error.filename and Path(error.filename).is_file():
            message = f"{place}is a file, where a folder is needed; give another path"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += "; make room, or write elsewhere, and give the same command again"
    else:
        message = " ".join(str(error).split())
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2


def _has_no_reader() -> bool:
    """Whether standard output is a pipe (or socket) that nobody reads any more."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return False  # standard output is no file
    return bool(poll.poll(0))


def to_the_end(command: Callable[[], int]) -> int:
    """Run `command` and flush what it printed; its exit status, or 141 when nobody reads standard output any more.

    That is the status that a shell gives a program that was ended by SIGPIPE, as `head` and `less` end others.
    """
    try:
        status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError as error:
        if not _has_no_reader():
            return fail("megabert", error)  # another pipe broke
        # What is still in the buffer would be tried once more, and complained about, when Python ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return CLOSED_PIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 done, 2 a mistake of the user, 130 interrupted,
    141 closed pipe, 143 terminated.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return to_the_end(lambda: _main(given))


def _main(arguments: list[str]) -> int:
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
    # Torch's C++ warns of every try to reach a process with a page of frames; the job says itself what it waits for.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with runtime.termination_interrupts():
        return _run(verb, arguments[1:], program)


def has_the_word() -> bool:
    """Whether a mistake is this process's to say: of many that were started together, most make the same.

    Here they do not know each other yet. So the first one speaks at once, and its launcher then ends the others, who
    wait so long; a mistake of theirs alone is said after that time.
    """
    from megabert.training.launch import launched

    try:
        launch = launched(os.environ)
        if launch is not None and launch.rank:
            time.sleep(SILENT_SECONDS * (1 if launch.local_rank == 0 else 2))
    except ValueError:
        return True  # the launcher's variables are the mistake
    except (runtime.Terminated, KeyboardInterrupt):
        return False
    return True


def _run(verb: str, arguments: list[str], program: str) -> int:
    def job() -> None:
        module = importlib.import_module(f"megabert.commands.{verb.replace('-', '_')}")
        config = configuration.parse(module.Config, arguments, program=program, description=module.__doc__ or "")
        module.run(config)

    return guarded(program, job)


def guarded(program: str, job: Callable[[], None]) -> int:
    """Run `job` and return the exit status of `main`; its mistakes and its early end are said in one line."""
    try:
        job()
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return fail(program, error) if has_the_word() else TERMINATED
    except runtime.Terminated:
        print(f"{program}: ended by SIGTERM", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
