"""One self-contained HTML page of paragraphs, tables and pictures: no script, nothing fetched, readable on paper and on a phone."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

UNDEFINED = "undefined"
"""Stands in a cell for a number that there is none of; "none" could be read as zero."""

_NUMBER = re.compile(rf"([<+-]?[\d.,]+%?( \([^)]*\))?|{UNDEFINED})?")
"""Cells of a column that is set to the right."""

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --tint: #f6f8fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
.lead { color: var(--soft); margin-top: 0; overflow-wrap: anywhere; }
.note { background: #fff8e1; border-left: 4px solid #e69f00; padding: .5rem .75rem; max-width: 46rem; }
nav { font-size: .9rem; margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem; overflow-wrap: anywhere; }
thead th { background: var(--tint); font-weight: 600; white-space: normal; vertical-align: bottom; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
td.long { min-width: 14rem; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .875rem; max-width: 46rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; border-top: 1px solid var(--line); padding-top: .75rem; }
@media print { body { max-width: none; } .scroll { overflow: visible; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Table:
    """A table of texts; a column of nothing but numbers is set to the right, every other to the left.

    Args:
        header: one text a column.
        rows: cells, as many a row as the header has.
        caption: above the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """An encoded picture.

    Args:
        png: the file's bytes.
        text: what it shows, for those who cannot see it.
        caption: below it.
    """

    png: bytes
    text: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page, in this order: paragraphs, notes that stand out, tables, pictures.

    Args:
        title: its heading.
        paragraphs: plain texts.
        notes: plain texts that a reader must not miss.
        tables: tables.
        pictures: pictures.
    """

    title: str
    paragraphs: Sequence[str] = ()
    notes: Sequence[str] = ()
    tables: Sequence[Table] = field(default=())
    pictures: Sequence[Picture] = field(default=())


def render_page(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """Write a page; every text is escaped.

    Args:
        title: of the page.
        lead: a line below it.
        sections: its parts, in order.
        footer: the last line.

    Returns:
        HTML.
    """
    links = "".join(f'<a href="#part{index}">{escape(section.title)}</a>' for index, section in enumerate(sections))
    body = "\n".join(_section(index, section) for index, section in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # else a browser asks for one
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n<nav aria-label="parts of this page">{links}</nav>\n'
        f"{body}\n<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def markdown(table: Table) -> str:
    """The table as Markdown, its caption above it; pipes and line breaks in cells are taken for text."""
    lines = [[_plain(cell) for cell in row] for row in (table.header, *table.rows)]
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    rule = "| " + " | ".join(["---"] * len(table.header)) + " |"
    return "\n".join([*([table.caption, ""] if table.caption else []), rows[0], rule, *rows[1:], ""])


def _plain(text: str) -> str:
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _section(index: int, section: Section) -> str:
    parts = [
        *(f"<p>{escape(text)}</p>" for text in section.paragraphs),
        *(f'<p class="note">{escape(text)}</p>' for text in section.notes),
        *map(_table, section.tables),
        *map(_picture, section.pictures),
    ]
    return f'<section id="part{index}">\n<h2>{escape(section.title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def _table(table: Table) -> str:
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    texts = [not all(_NUMBER.fullmatch(row[column]) for row in table.rows) for column in range(len(table.header))]
    head = "".join(f'<th scope="col"{_kind(text, "")}>{escape(cell)}</th>' for cell, text in zip(table.header, texts, strict=True))
    rows = "".join(
        f"<tr>{''.join(f'<td{_kind(text, cell)}>{escape(cell)}</td>' for cell, text in zip(row, texts, strict=True))}</tr>\n"
        for row in table.rows
    )
    return f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def _kind(text: bool, cell: str) -> str:
    if not text:
        return ""
    return ' class="text long"' if len(cell) > 32 else ' class="text"'


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(picture.text)}">{caption}</figure>'
