"""The suite as one HTML page that needs nothing but itself, and as JSON beside it."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from eqcalc.checks.report import Table, write_json
from eqcalc.checks.suite import Outcome, Suite
from eqcalc.errors import InputError
from eqcalc.files import write_bytes

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 1080px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2.2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 0.88em; margin: 0.8em 0; }
th, td { padding: 0.15em 0.8em; text-align: right; border-bottom: 1px solid #e4e4e4; }
th { background: #f4f4f4; } caption { text-align: left; font-weight: 600; padding: 0.3em 0; }
th:first-child, td:first-child, .words td { text-align: left; }
.scroll { overflow-x: auto; } img { max-width: 100%; height: auto; }
.PASS { color: #176b2c; } .FAIL { color: #b00020; } .SKIPPED { color: #6b6b6b; }
.UNDECIDED { color: #8a5a00; }
.verdict { font-weight: 700; } .method, .note { color: #444; white-space: pre-line; }
pre { overflow-x: auto; font-size: 0.8em; color: #444; }
.hash { word-break: break-all; }
"""


def _table(table: Table) -> str:
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    head = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _words(rows: dict[str, str]) -> str:
    cells = (
        f'<tr><td>{escape(k)}</td><td class="hash">{escape(v)}</td></tr>' for k, v in rows.items()
    )
    return f'<table class="words"><tbody>{"".join(cells)}</tbody></table>'


def _section(outcome: Outcome) -> str:
    report = outcome.report
    title = escape(report.title if report else outcome.title)
    verdict = f'<span class="{outcome.verdict}">{outcome.verdict}</span>'
    parts = [f'<h2 id="{outcome.name}">{title}: {verdict}</h2>']
    if report:
        parts.append(f'<p class="method">{escape(report.method)}</p>')
    if outcome.reasons:
        items = "".join(f"<li>{escape(reason)}</li>" for reason in outcome.reasons)
        parts.append(f'<ul class="{outcome.verdict}">{items}</ul>')
    if outcome.trace:
        parts.append(f"<pre>{escape(outcome.trace)}</pre>")
    if report:
        if outcome.picture:
            data = base64.b64encode(outcome.picture).decode()
            parts.append(f'<img alt="{title}" src="data:image/png;base64,{data}">')
        parts += [_table(table) for table in report.tables()]
    return "\n".join(parts)


def render(suite: Suite) -> str:
    """The page, complete."""
    verdict = suite.verdict
    summary = "".join(
        f'<tr><td><a href="#{o.name}">{escape(o.title)}</a></td>'
        f'<td class="verdict {o.verdict}">{o.verdict}</td><td>{o.seconds:.0f} s</td>'
        f"<td>{escape(o.reasons[0] if o.reasons else '')}"
        f"{f' (and {len(o.reasons) - 1} more)' if len(o.reasons) > 1 else ''}</td></tr>"
        for o in suite.outcomes
    )
    name = escape(suite.model["file"].split(",")[0])
    body = "\n".join(_section(outcome) for outcome in suite.outcomes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: checks</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Checks of the potential {name}: <span class="{verdict}">{verdict}</span></h1>
<table class="words"><tbody>{summary}</tbody></table>
{_words(suite.model | {"structure": suite.structure})}
{body}
</body>
</html>
"""


def write_report(suite: Suite, path: Path) -> list[Path]:
    """Writes NAME.html, NAME.json and what checks find as structures; returns what was written."""
    if path.suffix != ".html":
        raise InputError(f"The report '{path}' must end in .html; the JSON is written beside it.")
    written = [
        write_json(path.with_suffix(".json"), suite.to_dict()),
        write_bytes(path, render(suite).encode()),
    ]
    for outcome in suite.outcomes:
        if outcome.report:
            written += outcome.report.write_holes(path.parent)
    return written
