"""The texts of the page: HTML in which nothing that comes from a model or a person is taken for HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

from spinevision.models.cascade import SpineCascade
from spinevision.serving.space.answers import Answer, Model, class_colors, gate_in_words
from spinevision.structures import MaskPrediction

NOT_A_DEVICE = "Not a medical device. For research alone: nothing shown here may decide about a patient."

_TABLE = '<table class="sv-table">'
_TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\"})


def escaped(text: str) -> str:
    """A text inside HTML, and inside the templates that Gradio makes of it."""
    return html.escape(text).translate(_TEMPLATE_SIGNS)


def header(model: Model, name: str) -> str:
    """What the page says first: model, architecture, classes, commit with its link, and what this is not.

    Args:
        model: what is asked here.
        name: what people call it.
    """
    kind = type(model).__name__
    if isinstance(model, SpineCascade):
        kind = f"cascade of {type(model.classifier).__name__} and {type(model.segmenter).__name__}"
    facts = [kind, f"finds {', '.join(class_colors(model))}"]
    if model.clip_length is not None:
        facts.append(f"made for clips of {model.clip_length} frames; a single frame is answered as a still")
    info = model.hub_info
    origin = "from a folder on this computer"
    if info is not None:
        address = f"https://huggingface.co/{info.repo_id}/tree/{info.commit}"
        origin = f'<a href="{escaped(address)}" target="_blank" rel="noopener noreferrer">{escaped(info.repo_id)}</a> '
        origin += f"at commit <code>{escaped(info.commit[:12])}</code>"
    return (
        f'<div class="sv-head"><h1>{escaped(name)}</h1><p>{escaped(" · ".join(facts))} · {origin}</p>'
        f'<p class="sv-warning">{escaped(NOT_A_DEVICE)}</p></div>'
    )


def note(text: str) -> str:
    """A line of small print."""
    return f'<p class="sv-note">{escaped(text)}</p>'


def numbers(model: Model, answer: Answer) -> str:
    """Presence and area of each class, or the probability of each label."""
    if isinstance(answer, MaskPrediction):
        gate, areas = gate_in_words(model, answer), answer.area_fraction
        cells = {
            name: _percent(areas[name]) if (answer.mask == index).any() else "not found"
            for index, name in answer.labels.foreground.items()
        }
        table = _table(model, "Area, share of the field of view", areas, cells)
        return table + (f"<p>{escaped(gate)}</p>" if gate else "")
    verdicts = [f"{name} is {'' if there else 'not '}called present" for name, there in answer.present.items()]
    text = f"{', '.join(verdicts)} (threshold {answer.threshold:.2f})."
    cells = {name: f"{100 * chance:.1f} %" for name, chance in answer.probability.items()}
    return _table(model, "Probability", answer.probability, cells) + f"<p>{escaped(text[:1].upper() + text[1:])}</p>"


def holds_numbers(text: str) -> bool:
    """Whether this is what :func:`numbers` gave, and no message."""
    return text.startswith(_TABLE)


def sentences(texts: Iterable[str]) -> str:
    """A list of sentences in small print."""
    return f'<ul class="sv-note">{"".join(f"<li>{escaped(text)}</li>" for text in texts)}</ul>'


def style(model: Model) -> str:
    """The page's own style sheet; the switches have the colours of their classes."""
    colors = "".join(
        f".sv-classes label:nth-of-type({place}) {{ border-left: 8px solid rgb{color} !important; }}\n"
        for place, color in enumerate(class_colors(model).values(), 1)
    )
    return _STYLE + colors


def _percent(share: float) -> str:
    """The area of a class that is found: never nothing."""
    text = f"{100 * share:.1f} %"
    return "< 0.1 %" if text == "0.0 %" else text


def _table(model: Model, title: str, shares: Mapping[str, float], cells: Mapping[str, str]) -> str:
    rows = [(name, shares[name], color) for name, color in class_colors(model).items()]
    body = "".join(
        f'<tr><td><i style="background: rgb{color}"></i>{escaped(name)}</td><td>{escaped(cells[name])}</td>'
        f'<td class="sv-bar"><b style="width: {100 * min(share, 1):.1f}%; background: rgb{color}"></b></td></tr>'
        for name, share, color in rows
    )
    return f"{_TABLE}<caption>{escaped(title)}</caption>{body}</table>"


_STYLE = """
.sv-head h1 { font-size: 1.5rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.sv-head p { margin: 0.2rem 0; overflow-wrap: anywhere; }
.sv-head a { text-decoration: underline; }
.sv-warning { font-weight: 600; border-left: 6px solid #d97706; padding-left: 0.6rem; }
.sv-note { font-size: 0.85rem; color: var(--body-text-color); opacity: 0.75; overflow-wrap: anywhere; }
ul.sv-note { padding-left: 1.2rem; list-style: disc; }
.sv-table { width: 100%; border-collapse: collapse; }
.sv-table caption { text-align: left; font-size: 0.85rem; opacity: 0.75; }
.sv-table, .sv-table tr, .sv-table tbody { border: 0 !important; }
.sv-table td { padding: 0.3rem 0.5rem 0.3rem 0 !important; border: 0 !important; overflow-wrap: anywhere; }
.sv-table td:nth-child(2) { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.sv-table i { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.5em; border: 1px solid #8888; }
.sv-timeline img { padding-top: 2.2rem; background: white; }
.sv-bar { width: 40%; }
.sv-bar b { display: block; height: 0.7em; min-width: 1px; }
.sv-classes label { max-width: 100%; overflow-wrap: anywhere; }
.gradio-container .html-container { padding-left: 0 !important; padding-right: 0 !important; }
@media (max-width: 500px) { .gradio-container .main.fillable { padding: 14px !important; } .sv-head h1 { font-size: 1.25rem; } }
"""
