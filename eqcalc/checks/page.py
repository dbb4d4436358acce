"""The suite as one HTML page that needs nothing but itself, and as JSON beside it."""

from __future__ import annotations

import base64
import struct
from html import escape
from pathlib import Path

from eqcalc.checks.report import Table, write_json
from eqcalc.checks.suite import CheckOutcome, Suite
from eqcalc.errors import InputError
from eqcalc.files import write_bytes

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #444; --line: #ccc;
        --faint: #e4e4e4; --head: #f4f4f4; --pass: #176b2c; --fail: #b00020; --skip: #6b6b6b;
        --undecided: #8a5a00; --link: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181c; --soft: #b4b8bf; --line: #4a4e55; --faint: #2c3036;
          --head: #23262c; --pass: #6fcf86; --fail: #ff8a8f; --skip: #a0a4ab;
          --undecided: #e6b450; --link: #8ab4f8; }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1080px; margin: 2em auto; padding: 0 1em; }
a { color: var(--link); }
h1 { font-size: 1.5em; } h1, h2 { overflow-wrap: break-word; }
h2 { font-size: 1.2em; margin-top: 2.2em; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-size: 0.88em; margin: 0.8em 0; }
th, td { padding: 0.15em 0.8em; text-align: right; vertical-align: top;
         border-bottom: 1px solid var(--faint); }
th { background: var(--head); }
.caption { font-size: 0.88em; font-weight: 600; margin: 1.2em 0 -0.5em; }
th:first-child, td:first-child, .words td { text-align: left; }
.words td:first-child { white-space: nowrap; }
.scroll { overflow-x: auto; } .scroll td { white-space: nowrap; }
img { max-width: 100%; height: auto; background: #fff; }
.PASS { color: var(--pass); } .FAIL { color: var(--fail); } .SKIPPED { color: var(--skip); }
.UNDECIDED { color: var(--undecided); }
.time { white-space: nowrap; } .verdict { font-weight: 700; }
.method, .note { color: var(--soft); white-space: pre-line; }
pre { overflow-x: auto; font-size: 0.8em; color: var(--soft); }
.hash { font-family: ui-monospace, monospace; font-size: 0.92em; word-break: break-all; }
@media (max-width: 600px) {
  body { margin: 1em auto; }
  .words, .words tbody, .words tr, .words td { display: block; }
  .words tr { padding: 0.3em 0; border-bottom: 1px solid var(--faint); }
  .words td { border: 0; padding: 0; } .words td:first-child { font-weight: 600; }
  .words td:empty { display: none; }
  .words .verdict, .words .time { display: inline; margin-right: 1em; }
  img.wide { max-width: none; width: 50em; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --soft: #333; --line: #999;
          --faint: #ddd; --head: #eee; --pass: #176b2c; --fail: #b00020; --skip: #555;
          --undecided: #8a5a00; --link: #000; }
  body { max-width: none; margin: 0; padding: 0; font-size: 10.5pt; }
  .scroll { overflow: visible; } .scroll table { font-size: 7.5pt; }
  .scroll th, .scroll td { padding: 0.1em 0.5em; }
  .scroll td { white-space: normal; }
  h2 { break-after: avoid; } tr, img { break-inside: avoid; }
  .caption { break-after: avoid; } table { break-inside: avoid; }
  img { max-height: 20cm; } a { text-decoration: none; }
}
"""

#: pixels; a picture that is wider has panels side by side
SINGLE_PANEL = 800


def _table(table: Table) -> str:
    caption = f'<p class="caption">{escape(table.title)}</p>' if table.title else ""
    head = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'{caption}<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _words(rows: dict[str, str]) -> str:
    mark = {"SHA-256": ' class="hash"'}  # the one word that may be broken anywhere
    cells = (
        f"<tr><td>{escape(k)}</td><td{mark.get(k, '')}>{escape(v)}</td></tr>"
        for k, v in rows.items()
    )
    return f'<table class="words"><tbody>{"".join(cells)}</tbody></table>'


def _image(title: str, picture: bytes) -> str:
    """On a phone, pictures with panels side by side keep a legible width and scroll."""
    (width,) = struct.unpack(">I", picture[16:20])  # PNG, clause 11.2.2
    wide = ' class="wide"' if width > SINGLE_PANEL else ""
    data = base64.b64encode(picture).decode()
    return f'<div class="scroll"><img{wide} alt="{title}" src="data:image/png;base64,{data}"></div>'


def _section(outcome: CheckOutcome) -> str:
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
            parts.append(_image(title, outcome.picture))
        parts += [_table(table) for table in report.tables()]
    return "\n".join(parts)


def render(suite: Suite) -> str:
    """The page, complete."""
    verdict = suite.verdict
    summary = "".join(
        f'<tr><td><a href="#{o.name}">{escape(o.title)}</a></td>'
        f'<td class="verdict {o.verdict}">{o.verdict}</td><td class="time">{o.seconds:.0f} s</td>'
        f"<td>{escape(o.reasons[0] if o.reasons else '')}"
        f"{f' (and {len(o.reasons) - 1} more)' if len(o.reasons) > 1 else ''}</td></tr>"
        for o in suite.outcomes
    )
    name = escape(suite.model["file"].split(",")[0])
    body = "\n".join(_section(outcome) for outcome in suite.outcomes)
    training = [_table(table) for table in suite.errors]
    training += [_image("Errors over deviations", suite.coverage)] if suite.coverage else []
    training += [_words(suite.domain)] if suite.domain else []
    if training:
        training.insert(0, '<h2 id="training">Training, as the file says</h2>')
    labelled = []
    if suite.labelled:
        labelled = [f'<h2 id="frames">{escape(suite.labelled.title)}</h2>']
        labelled += [_table(table) for table in suite.labelled.tables]
        if suite.labelled.picture:
            labelled.append(_image("Errors over deviations of these", suite.labelled.picture))
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
{_words(suite.model | {"structure": suite.structure} | suite.run)}
{"".join(training)}
{"".join(labelled)}
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
