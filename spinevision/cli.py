"""The command line: thin, and quick to start; the work is done elsewhere."""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from spinevision import __version__

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
                run: Callable[[argparse.Namespace], None] = parsed.run
                run(parsed)
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

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "train, evaluate, save, reload and predict on generated scenes; needs no data and no network")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for the results (default: %(default)s)")
    commands.add_parser("fit", help="train on a folder of frames and masks; `spinevision fit --help` lists every option")
    predict = command("predict", _predict, "write masks and overlays (a classifier: probabilities) for images or a video")
    _add_model(predict)
    predict.add_argument("input", type=Path, help="image, folder of images or video")
    predict.add_argument("--output", type=Path, required=True, help="folder for masks, overlays and areas.csv")
    evaluate = command("evaluate", _evaluate, "score a model on a dataset folder, with intervals over patients")
    _add_model(evaluate)
    evaluate.add_argument("data", help="dataset folder or Hub id")
    evaluate.add_argument("--output", type=Path, required=True, help="folder for report.html, results.json, tables and figures")
    evaluate.add_argument("--part", choices=["train", "validation", "test", "all"], help="which frames (default: test)")
    evaluate.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the intervals (default: the coarsest known)")
    evaluate.add_argument(
        "--intervals",
        choices=["group", "frame"],
        default="group",
        help="over patients or sequences, or over frames, which is too narrow and said so (default: %(default)s)",
    )
    compare = command("compare", _compare, "score several models on the same frames and test their differences")
    compare.add_argument("models", nargs="+", metavar="MODEL", help="run folder, model folder or Hub id; at least two")
    compare.add_argument("--data", required=True, help="dataset folder or Hub id")
    compare.add_argument("--output", type=Path, required=True, help="new folder for comparison.html and a report of each model")
    compare.add_argument("--part", choices=["train", "validation", "test", "all"], help="which frames (default: test)")
    compare.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the tests (default: the coarsest known)")
    compare.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    cascade = command("cascade", _cascade, "put a trained classifier and segmenter together and choose the gate between them")
    cascade.add_argument("classifier", help="run folder, model folder or Hub id")
    cascade.add_argument("segmenter", help="likewise")
    cascade.add_argument("data", help="dataset folder or Hub id that both were trained on")
    cascade.add_argument("--output", type=Path, required=True, help="new folder for the model and its results")
    cascade.add_argument(
        "--sensitivity",
        type=float,
        default=0.95,
        help="share of validation frames with the tissue that the gate lets through (default: %(default)s, ours)",
    )
    cascade.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    readers = command("readers", _readers, "compare the masks of several people with a reference, with each other and with a model")
    readers.add_argument("reference", type=Path, help="folder of PNG masks, with a classes.json in it or beside it")
    readers.add_argument("reader", type=Path, nargs="+", help="folder of one person's PNG masks, named as the reference's")
    readers.add_argument("--output", type=Path, required=True, help="folder for readers.html, results.json and per_frame.csv")
    readers.add_argument("--model", type=Path, metavar="MASKS", help="folder of a model's masks, as `spinevision predict` writes")
    readers.add_argument("--names", nargs="+", metavar="NAME", help="one name a reader (default: the names of their folders)")
    readers.add_argument("--groups", metavar="CSV", help="table with the columns reader and group, such as senior or junior")
    readers.add_argument(
        "--patients",
        metavar="CSV",
        help="table with the columns frame and patient (or sequence), or a dataset's metadata.csv; without it no interval is given",
    )
    readers.add_argument(
        "--margin",
        type=float,
        help="loss of Dice, stated beforehand, up to which the model is not inferior to the mean reader",
    )
    explain = command("explain", _explain, "show what in a frame a model's answer comes from, and whether that can be believed")
    _add_model(explain)
    explain.add_argument("frame", type=Path, help="image")
    explain.add_argument("--output", type=Path, required=True, help="folder for explanation.png, explanation.json and the maps")
    explain.add_argument("--label", help="class to explain (default: the one with the largest mask, or the likeliest)")
    explain.add_argument(
        "--region", choices=["mask", "frame"], default="mask", help="where a segmenter's logits are summed (default: %(default)s)"
    )
    command("list", _list, "list the models that can be trained, with parameters, cost, paper and reported result")

    data = commands.add_parser("data", help="look after datasets", description="Look after datasets.")
    tasks = data.add_subparsers(metavar="TASK", required=True)
    check = tasks.add_parser("check", help="read every file of a dataset folder and say what is wrong")
    check.set_defaults(run=_check)
    check.add_argument("folder", help="dataset folder or Hub id")
    check.add_argument("--split-by", choices=["patient", "sequence"], help="unit of the split (default: the coarsest known)")
    check.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    phantom = tasks.add_parser("phantom", help="draw a dataset of generated scenes with exact masks")
    phantom.set_defaults(run=_phantom)
    phantom.add_argument("folder", type=Path, help="new folder")
    phantom.add_argument("--patients", type=int, default=6, help="number of patients (default: %(default)s)")
    phantom.add_argument("--frames", type=int, default=40, help="frames a patient (default: %(default)s)")
    phantom.add_argument(
        "--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"), help="pixels (default: 256 256)"
    )
    phantom.add_argument(
        "--classes", choices=["nerve", "tissue"], default="nerve", help="one class or several (default: %(default)s)"
    )
    phantom.add_argument("--seed", type=int, default=0, help="another seed draws other patients (default: %(default)s)")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="Hub id, model folder or run folder")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")


def _demo(arguments: argparse.Namespace) -> None:
    from spinevision.demo import run_demo

    say(run_demo(arguments.output))


def _predict(arguments: argparse.Namespace) -> None:
    from spinevision.data.wording import counted
    from spinevision.inference.predictor import predict_to_folder, presence_to_folder
    from spinevision.models.classifier import SpineClassifier
    from spinevision.models.segmenter import SpineSegmenter
    from spinevision.runs import open_on

    model = open_on(arguments.model, arguments.device).model
    if isinstance(model, SpineClassifier):
        count, written = presence_to_folder(model, arguments.input, arguments.output), "presence.csv"
    else:
        assert isinstance(model, SpineSegmenter)
        count, written = predict_to_folder(model, arguments.input, arguments.output), "masks, overlays and areas.csv"
    say(f"{counted(count, 'frame')}: {written} in {arguments.output}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from spinevision.runs import open_on
    from spinevision.scoring import evaluate_model

    loaded = open_on(arguments.model, arguments.device)
    chosen = {"part": arguments.part, "split_by": arguments.split_by, "intervals": arguments.intervals}
    say(evaluate_model(loaded, arguments.data, arguments.output, **chosen))
    say(f"report.html, results.json, the tables and the figures are in {arguments.output}")


def _compare(arguments: argparse.Namespace) -> None:
    from spinevision.comparing import compare_models, model_names
    from spinevision.runs import open_on

    model_names(arguments.models)  # before anything is loaded
    models = [open_on(source, arguments.device) for source in arguments.models]
    say(compare_models(models, arguments.data, arguments.output, part=arguments.part, split_by=arguments.split_by))
    say(f"comparison.html, comparison.csv, panel.png and a folder for each model are in {arguments.output}")


def _cascade(arguments: argparse.Namespace) -> None:
    from spinevision.cascading import make_cascade
    from spinevision.runs import open_on

    first, second = (open_on(source, arguments.device) for source in (arguments.classifier, arguments.segmenter))
    say(make_cascade(first, second, arguments.data, arguments.output, arguments.sensitivity))


def _readers(arguments: argparse.Namespace) -> None:
    from spinevision.analysis.reader_tables import named_folders, read_frame_groups, read_reader_groups
    from spinevision.analysis.readers import reader_study, readers_text, write_reader_results

    study = reader_study(
        named_folders(arguments.reader, arguments.names),
        arguments.reference,
        arguments.model,
        groups=read_frame_groups(arguments.patients) if arguments.patients else None,
        reader_groups=read_reader_groups(arguments.groups) if arguments.groups else None,
        margin=arguments.margin,
    )
    say(readers_text(write_reader_results(study, arguments.output)))
    say(f"readers.html, results.json, per_frame.csv and the figures are in {arguments.output}")


def _explain(arguments: argparse.Namespace) -> None:
    from spinevision.analysis.explain import explain
    from spinevision.analysis.explanation_panel import write_explanation
    from spinevision.models.classifier import SpineClassifier
    from spinevision.models.segmenter import SpineSegmenter
    from spinevision.runs import open_on

    model = open_on(arguments.model, arguments.device).model
    assert isinstance(model, (SpineSegmenter, SpineClassifier))
    explanation = explain(model, arguments.frame, target=arguments.label, region=arguments.region)
    write_explanation(explanation, arguments.output)
    say("\n".join(explanation.sentences))
    say(f"explanation.png, explanation.json and the maps are in {arguments.output}")


def _list(arguments: argparse.Namespace) -> None:
    from spinevision.catalogue import list_table

    say(list_table())


def _check(arguments: argparse.Namespace) -> None:
    from spinevision.data.check import check_dataset

    text, sound = check_dataset(arguments.folder, split_by=arguments.split_by, seed=arguments.seed)
    say(text)
    if not sound:
        raise ValueError(f"{arguments.folder} has problems, listed above")


def _phantom(arguments: argparse.Namespace) -> None:
    from spinevision.data.phantom import write_phantoms

    folder = write_phantoms(
        arguments.folder,
        patients=arguments.patients,
        frames=arguments.frames,
        size=tuple(arguments.size),
        classes=arguments.classes,
        seed=arguments.seed,
        progress=True,
    )
    say(f"wrote {folder}")
