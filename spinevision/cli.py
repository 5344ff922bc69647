"""The command line: thin, and quick to start; the work is done elsewhere."""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn

from spinevision import __version__
from spinevision.commands import (
    benchmark,
    cascade,
    catalogue,
    compare,
    data,
    demo,
    evaluate,
    explain,
    export,
    live,
    predict,
    push,
    quantify,
    readers,
    space,
)

COMMANDS: dict[str, tuple[ModuleType, str]] = {
    "demo": (demo, "train, evaluate, save, reload and predict on generated scenes; needs no data and no network"),
    "predict": (predict, "write masks and overlays (a classifier: probabilities) for images or a video"),
    "live": (live, "show a camera, stream or video with its masks as it comes in"),
    "evaluate": (evaluate, "score a model on a dataset folder, with intervals over patients"),
    "compare": (compare, "score several models on the same frames and test their differences"),
    "cascade": (cascade, "put a trained classifier and segmenter together and choose the gate between them"),
    "readers": (readers, "compare the masks of several people with a reference, with each other and with a model"),
    "quantify": (quantify, "measure how much of the view a class covers, over time with episodes, or beside drawn masks"),
    "explain": (explain, "show what in a frame a model's answer comes from, and whether that can be believed"),
    "push": (push, "upload a trained model to the Hub with its card, loaded back and compared first"),
    "space": (space, "open a page on this machine in which a model is tried on images and clips"),
    "export": (export, "write a model as one file for another engine, with preprocessing and threshold inside"),
    "benchmark": (benchmark, "measure latency, rate and memory, against other engines in the same run"),
    "list": (catalogue, "list the models that can be trained, with parameters, cost, paper and reported result"),
    "data": (data, "look after datasets"),
}
"""Every command but ``fit``, whose options are those of Lightning's own command line."""

DESCRIPTION = "Find nerves, bleeding, bone, ligament and disc in endoscopic frames and video."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``spinevision``; the exit status is 0, 2 for input that cannot be used, or 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _messages():
            if given[:1] == ["fit"]:
                from spinevision.fitting import fit

                say(fit(given[1:]))
            else:
                parsed = _parser().parse_args(given or ["--help"])
                run: Callable[[argparse.Namespace], str] = parsed.run
                say(run(parsed))
        return 0
    except KeyboardInterrupt as stop:
        _complain(f"interrupted: {stop}" if str(stop) else "interrupted")
        return 130
    except (ValueError, OSError) as error:
        _complain(_sentence(error))
        return 2
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search(r"out of memory|allocate memory", str(error)):
            raise
        _complain("not enough memory; make data.batch_size, model.preprocess.size or model.width smaller, or use another --device")
        return 2


def run_steps(steps: Iterable[Sequence[str]]) -> int:
    """Run command lines of ``spinevision`` one after another, each printed before it runs; the first that fails ends it.

    Returns:
        0, or the exit status of the one that failed; 2 where the next one cannot be told.
    """
    try:
        for words in steps:
            say(f"\n$ spinevision {shlex.join(words)}")
            if status := main(words):
                return status
    except (ValueError, OSError) as error:  # of the one who tells the steps
        _complain(_sentence(error))
        return 2
    return 0


@contextmanager
def _messages() -> Iterator[None]:
    """Show what this package says; leave out the advice that the training framework gives to programmers."""
    messages, handler = logging.getLogger("spinevision"), _Messages()
    level = messages.level
    messages.addHandler(handler)
    messages.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning|torch|kornia|jsonargparse")
            yield
    finally:
        messages.removeHandler(handler)
        messages.setLevel(level)


class _Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Print to where errors go at this moment."""
        sys.stderr.write(f"{self.format(record)}\n")


def say(text: str) -> None:
    """Print a result."""
    if text:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"spinevision: {text}\n")


def _sentence(error: Exception) -> str:
    """What an error says; of one from a loader process, the last line, which is the error itself."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else text


class _Parser(argparse.ArgumentParser):
    """Answers what it does not know with one sentence that names the nearest it does."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Look for unknown options first: argparse would complain of what is missing, or take a beginning for the whole."""
        known = self._option_string_actions
        if self._subparsers is None:
            for word in args or ():
                option = word.partition("=")[0]
                if word.startswith("--") and word != "--" and option not in known:
                    raise ValueError(f"unknown option {option}{_nearest(option, known)}; see `{self.prog} --help`")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """One sentence instead of the usage."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            known = re.findall(r"[\w-]+", found[2])
            message = f"{found[1]!r} is not known here{_nearest(found[1], known)}; known are {', '.join(known)}"
        raise ValueError(f"{message}; see `{self.prog} --help`")


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]}?" if near else ""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="spinevision", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("fit", help="train on a folder of frames and masks; `spinevision fit --help` lists every option")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser
