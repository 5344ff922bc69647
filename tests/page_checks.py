"""What every page must hold: it parses, fetches nothing, runs nothing, and its tables are whole."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page read back.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.links: list[str] = []
        self.targets: set[str] = set()
        self.alternatives: list[str] = []
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.words: list[str] = []
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what stands open, links, tables."""
        given = {key: value or "" for key, value in attrs}
        assert tag not in ("script", "iframe", "object")
        assert not any(key.startswith("on") for key in given)
        self.links += [given[key] for key in ("href", "src") if key in given]
        self.targets.add(given.get("id", ""))
        if tag == "img":
            self.alternatives.append(given["alt"])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append((given.get("class", ""), ""))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Every tag closes the one opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep texts, those of cells apart."""
        if self.open and self.open[-1] in ("td", "th"):
            kind, text = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (kind, text + data)
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def check(self) -> None:
        """All that holds of any page."""
        assert self.open == []
        assert "http:" not in self.text
        assert "https:" not in self.text
        assert "@import" not in self.text
        assert all(link.startswith(("#", "data:")) for link in self.links)
        assert all(link[1:] in self.targets for link in self.links if link.startswith("#"))
        assert all(self.alternatives)
        for table in self.tables:
            assert len({len(row) for row in table}) == 1
            assert len(table) > 1
        assert not any(word.strip() in ("nan", "None", "inf") for word in self.words)

    def table(self, *columns: str) -> list[dict[str, str]]:
        """The rows of the first table that has these columns."""
        for table in self.tables:
            header = [text for _, text in table[0]]
            if set(columns) <= set(header):
                return [dict(zip(header, (text for _, text in row), strict=True)) for row in table[1:]]
        raise AssertionError(f"no table has the columns {columns}")
