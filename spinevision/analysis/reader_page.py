"""A reader study as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spinevision.analysis.page import UNDEFINED, Picture, Section, Table, markdown, render_page
from spinevision.analysis.reader_masks import MODEL
from spinevision.data.wording import counted, listed
from spinevision.files import write_text

DEFINITIONS = (
    ("Dice, IoU", "of each frame whose reference holds the class, averaged over frames"),
    (
        "found, left unmarked",
        "share of the frames with the class where anything is marked; of those without it, where nothing is",
    ),
    ("false area", "share of the frame marked by mistake, averaged over the frames whose reference lacks the class"),
    (
        "area less reference",
        "mean difference of the marked area, and limits between which 95% of differences lie (Bland-Altman)",
    ),
    (
        "p",
        "chance of a difference at least this large if both were equally good; signs of whole patients flipped; Holm: adjusted",
    ),
    ("Cohen's dz", "mean difference beside its spread from patient to patient"),
    ("kappa", "agreement beyond chance: 1 is perfect, 0 is what chance gives (Cohen for two, Fleiss for all readers)"),
    (
        "ICC",
        "correlation of the readers' areas; for agreement, a reader who always marks more disagrees, for consistency not",
    ),
    ("majority, STAPLE", "consensus of the readers, each alike, or weighted by how well each fits the consensus"),
)
"""The measures of the page in words."""

_TITLES = {
    "agreement": "mean Dice of every two raters",
    "ranking": "readers and model by Dice",
    "reader_groups": "Dice of each group of readers",
    "dice_dependence": "Dice over the readers' agreement and over the area",
}


def write_reader_page(results: Mapping[str, Any], figures: Mapping[str, Mapping[str, bytes]], output: Path) -> None:
    """Write ``readers.html`` into a folder.

    Args:
        results: what ``results.json`` holds.
        figures: for each class what its figures show, and their PNG bytes.
        output: the folder.
    """
    sections = [Section("Who marked what", _policies(results), _notes(results), [_people(results)])]
    for name, entry in results["classes"].items():
        sections += _class_sections(name, entry, figures[name])
    sections.append(Section("What the numbers mean", tables=[Table(("measure", "meaning"), DEFINITIONS)]))
    people = counted(len(results["readers"]), "reader") + (" and a model" if results["model"] else "")
    lead = f"{counted(results['frames'], 'frame')} of {counted(results['groups'], 'group')} (patients or sequences)"
    footer = "Research software, not a medical device. Made by spinevision; results.json beside this page holds every number."
    write_text(output / "readers.html", render_page(f"Reader study: {people}", lead, sections, footer))


def readers_markdown(results: Mapping[str, Any]) -> str:
    """The tables of a study that stand for the rest, as Markdown: scores, differences, and Dice by agreement and by area.

    Args:
        results: what ``results.json`` holds.
    """
    parts = []
    frames, groups = counted(results["frames"], "frame"), counted(results["groups"], "group")
    for name, entry in results["classes"].items():
        rows = [(rater, *_scores(one)) for rater, one in entry["raters"].items()]
        chosen = {one["presence"]["chosen_on"] for one in entry["raters"].values()}
        rule = f"chosen for each on {max(chosen)} other frames" if None not in chosen else "which is any pixel"
        caption = (
            f"Masks of {name} against the reference: {frames} of {groups} (patients or sequences), "
            f"{entry['frames_with_class']} with it. Dice and IoU are over frames whose reference holds it. A frame counts as "
            f'holding it where more than the share under "present above" is marked, {rule}. Intervals (95%) are over groups.'
        )
        header = ("masks", "Dice", "median Dice", "median IoU", "present above", "accuracy", "sensitivity", "specificity")
        parts.append(Table(header, rows, caption))
        if MODEL in entry["raters"]:
            parts += _difference_tables(entry)
        for key, by in (("dice_by_agreement", "agreement of the readers"), ("dice_by_area", "area of the frame")):
            table = _bin_table([one for one in entry[key] if one["items"]], by)
            what = "mean pairwise Dice of the readers" if key == "dice_by_agreement" else "share of the frame in the reference"
            parts.append(Table(table.header, table.rows, f"Dice of the {entry['dice_of']} by the {what}."))
    return "\n".join(map(markdown, parts))


def _scores(one: Mapping[str, Any]) -> tuple[str, ...]:
    presence = one["presence"]
    rates = (_interval(presence[rate]) for rate in ("accuracy", "sensitivity", "specificity"))
    medians = _number(one["dice_median"]), _number(one["iou_median"])
    return (_interval(one["dice_per_image"]), *medians, f"{presence['above']:.2%}", *rates)


def _policies(results: Mapping[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ').capitalize()}: {text}." for name, text in results["policies"].items()]


def _notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must not miss, each once."""
    notes = []
    for what, table in (("has not marked", results["not_marked"]), ("has masks the reference lacks:", results["not_in_reference"])):
        notes += [f"{rater} {what} {listed(names)}." for rater, names in table.items() if names]
    if unknown := results["frames_without_known_pixels"]:
        notes.append(f"Left out, because no pixel is known: {listed(unknown)}.")
    raters: dict[str, list[str]] = {}
    for name, entry in results["classes"].items():
        for rater, one in entry["raters"].items():
            if note := one["dice_per_image"]["note"]:
                raters.setdefault(note, []).append(f"{name}, {rater}")
    return [*notes, *(f"{'; '.join(names)}: {note}." for note, names in raters.items())]


def _people(results: Mapping[str, Any]) -> Table:
    frames = next(iter(results["classes"].values()))["raters"]
    rows = [(rater, results["reader_groups"].get(rater, ""), str(entry["frames"])) for rater, entry in frames.items()]
    return Table(("rater", "group", "frames marked"), rows)


def _class_sections(name: str, entry: Mapping[str, Any], figures: Mapping[str, bytes]) -> Iterator[Section]:
    def shown(*kinds: str) -> list[Picture]:
        return [Picture(figures[kind], f"{name}: {_TITLES[kind]}") for kind in kinds if kind in figures]

    yield Section(
        f"{name}: against the reference",
        [f"{counted(entry['frames_with_class'], 'frame')} with it. Intervals, in brackets, are over patients or sequences."],
        tables=[_rater_table(entry), _area_table(entry), *_group_table(entry)],
        pictures=shown("ranking", "reader_groups"),
    )
    if MODEL in entry["raters"]:
        yield Section(f"{name}: the model less people", _non_inferiority(entry), tables=[*_difference_tables(entry)])
    yield Section(
        f"{name}: agreement and consensus",
        tables=[*_agreement_tables(entry["agreement"]), *_consensus_tables(entry["consensus"])],
        pictures=shown("agreement"),
    )
    if any(one["items"] for one in entry["dice_by_area"]):
        yield Section(
            f"{name}: what Dice depends on",
            [f"Shown is the Dice of the {entry['dice_of']}."],
            tables=[_bin_table(entry["dice_by_agreement"], "agreement"), _bin_table(entry["dice_by_area"], "area of the frame")],
            pictures=shown("dice_dependence"),
        )


def _rater_table(entry: Mapping[str, Any]) -> Table:
    rows = []
    for rater, one in entry["raters"].items():
        rows.append(
            (
                rater,
                _interval(one["dice_per_image"]),
                _interval(one["iou_per_image"]),
                _share(one["presence_sensitivity"]),
                _share(one["presence_specificity"]),
                _share(one["empty_frame_area"]),
            )
        )
    return Table(("rater", "Dice", "IoU", "found", "left unmarked", "false area"), rows)


def _area_table(entry: Mapping[str, Any]) -> Table:
    rows = []
    for rater, one in entry["raters"].items():
        ends = [one["area_less_reference"][end]["estimate"] for end in ("bias", "lower", "upper")]
        rows.append((rater, *(UNDEFINED if end is None else f"{end:+.2%}" for end in ends)))
    return Table(("rater", "area less reference", "lower limit", "upper limit"), rows, "areas as shares of the frame")


def _group_table(entry: Mapping[str, Any]) -> Iterator[Table]:
    rows = [(group, ", ".join(one["readers"]), _interval(one["dice_per_image"])) for group, one in entry["reader_groups"].items()]
    if rows:
        yield Table(("group", "readers", "mean Dice"), rows, "frames that all of a group marked; for these very readers")


def _non_inferiority(entry: Mapping[str, Any]) -> list[str]:
    rank, found = entry["ranking"].get("model_rank"), entry.get("non_inferior_to_mean_reader")
    texts = []
    if rank and rank["estimate"] is not None:
        among = len(entry["ranking"]["order"])
        frames = counted(entry["ranking"]["frames"], "frame")
        texts.append(f"Rank of the model among {among}, by Dice on {frames} that all marked: {_interval(rank, 1)}.")
    if found:
        verdict = {True: "not inferior", False: "non-inferiority is not shown", None: "cannot be told with so few groups"}
        difference = _interval(found["difference"])
        texts.append(
            f"Model less mean reader: {difference}; at the stated margin of {found['margin']:g}: {verdict[found['non_inferior']]}."
        )
    return texts


def _difference_tables(entry: Mapping[str, Any]) -> Iterator[Table]:
    header = ("", "frames", "difference of Dice", "p", "p (Holm)", "p (Wilcoxon)", "Cohen's dz")
    for family in ("model_less_reader", "model_less_reader_group"):
        rows = [
            (
                f"model less {name}",
                str(one["items"]),
                _interval(one["difference"]),
                *(_p(one[key]) for key in ("p_permutation", "p_permutation_holm", "p_wilcoxon")),
                _number(one["cohen_dz"], 2),
            )
            for name, one in entry[family].items()
        ]
        if rows:
            yield Table(header, rows, "means over patients or sequences, every one counting alike")


def _agreement_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    yield Table(
        ("all readers", "value"),
        [
            ("mean pairwise Dice", _interval(found["mean_pairwise_dice_of_readers"])),
            ("Fleiss' kappa, pixels", _number(found["fleiss_kappa_pixels"])),
            ("Fleiss' kappa, presence in frames", _number(found["fleiss_kappa_presence"])),
            ("ICC of areas, agreement", _interval(found["icc_area_agreement"])),
            ("ICC of areas, consistency", _interval(found["icc_area_consistency"])),
        ],
    )
    for key, caption in (("mean_dice", "mean Dice"), ("cohen_kappa_pixels", "Cohen's kappa over pixels")):
        rows = [(rater, *map(_number, row)) for rater, row in zip(found["raters"], found[key], strict=True)]
        yield Table(("", *found["raters"]), rows, caption)


def _consensus_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    if "note" in found:
        return
    rules = {"majority": found["majority"], "STAPLE": found["staple"]}
    raters = [key.removesuffix("_dice_per_image") for key in found["majority"]]
    rows = [(rater, *(_interval(rule[f"{rater}_dice_per_image"]) for rule in rules.values())) for rater in raters]
    yield Table(("Dice against the readers' consensus", *rules), rows)
    rates = found["staple"]
    rows = [(name, _number(rates["sensitivity"][name]), _number(rates["specificity"][name])) for name in rates["sensitivity"]]
    yield Table(("reader", "sensitivity by STAPLE", "specificity by STAPLE"), rows)


def _bin_table(bins: Sequence[Mapping[str, Any]], by: str) -> Table:
    rows = [
        (f"{one['low']:g} to {one['high']:g}", str(one["items"]), str(one["groups"]), _number(one["mean"]), _number(one["median"]))
        for one in bins
    ]
    return Table((by, "frames", "patients or sequences", "mean Dice", "median Dice"), rows)


def _interval(interval: Mapping[str, Any], decimals: int = 3) -> str:
    if interval["low"] is None:
        return _number(interval["estimate"], decimals)
    value, low, high = (f"{interval[key]:.{decimals}f}" for key in ("estimate", "low", "high"))
    return f"{value} ({low} to {high})"


def _number(value: float | None, decimals: int = 3) -> str:
    return UNDEFINED if value is None else f"{value:.{decimals}f}"


def _share(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.1%}"


def _p(value: float | None) -> str:
    return UNDEFINED if value is None else "<0.0001" if value < 0.0001 else f"{value:.4f}"
