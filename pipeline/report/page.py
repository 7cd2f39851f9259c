"""The report's Markdown, and one HTML file of it that needs nothing else: no script, no network, pictures inside."""

import base64
import re
from html import escape

import markdown

NONE = "–"
Section = tuple[list[str], dict[str, bytes]]  # Markdown lines, and charts by file name

# Characters with a meaning in Markdown. Names and error lines of others go through `words`.
_MARKS = re.compile(r"([\\`*_\[\]|])")

_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 74rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.6rem 0 0.8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 0.6rem; padding-bottom: 0.25rem; border-bottom: 2px solid #1a1a1a; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 0.4rem; overflow-wrap: anywhere; }
p, ul { max-width: 48rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
.wide { overflow-x: auto; margin: 0.6rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.32rem 0.7rem; border-bottom: 1px solid #ddd; white-space: nowrap; vertical-align: baseline; }
thead th { border-bottom: 1.5px solid #1a1a1a; text-align: left; font-weight: 600; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; padding-left: 0; white-space: normal;
  min-width: 8rem; max-width: 24rem; overflow-wrap: anywhere; }
td strong { color: #0b4f8a; }
em { color: #444; }
pre { background: #f5f5f2; padding: 0.7rem 0.9rem; overflow-x: auto; font-size: 0.82rem; line-height: 1.45; }
code { font-family: ui-monospace, "DejaVu Sans Mono", "Liberation Mono", monospace; }
.pictures { display: flex; flex-wrap: wrap; gap: 0.8rem 1.6rem; max-width: none; margin: 0.8rem 0; }
.pictures img { width: 100%; max-width: 27rem; height: auto; flex: 0 1 27rem; min-width: 0; }
.pictures img[src^="data:image/png"] { max-width: 48rem; flex-basis: 48rem; }
@media (max-width: 600px) {
  body { font-size: 15px; padding: 0.6rem 0.8rem 3rem; }
  th, td { padding: 0.3rem 0.5rem; }
  th:first-child, td:first-child { min-width: 6.5rem; max-width: 10.5rem; }
}
@media print {
  @page { size: A4; margin: 14mm 12mm; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  h1, h2, h3 { break-after: avoid; }
  h2 { margin-top: 1.4rem; }
  table { font-size: 7.5pt; break-inside: avoid; }
  thead { display: table-header-group; }
  tr, img { break-inside: avoid; }
  th, td { padding: 0.18rem 0.35rem; }
  th, td { white-space: normal; }
  th:first-child, td:first-child { position: static; min-width: 5.5rem; overflow-wrap: break-word; }
  h2 + p, h3 + p, p:has(+ .pictures) { break-after: avoid; }
  .wide { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 7.5pt; }
  .pictures img { flex-basis: 47%; max-width: 47%; }
}
"""

# Nothing but inline style and inline pictures may ever load, whatever a name in the text contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def words(text: object) -> str:
    """Somebody's text as Markdown that shows it as it is, in one line."""
    return _MARKS.sub(r"\\\1", escape(" ".join(str(text).split()), quote=False))


def table(head: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """A Markdown table of ready Markdown cells; columns after the first ``left`` ones are right-aligned."""
    line = ["---" if number < left else "---:" for number in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, line, *rows)]


def linked(charts: dict[str, bytes], kind: str) -> list[str]:
    """Links to charts, in one paragraph so that they stand side by side."""
    if not charts:
        return []
    return [*(f"![{kind}: {name.removesuffix('.svg').partition('-')[2]}]({name})" for name in charts), ""]


def html(title: str, text: str, pictures: dict[str, bytes]) -> str:
    """The page of a Markdown ``text``. ``pictures``: SVG or PNG by the file name that the text links to."""
    body = markdown.markdown(text, extensions=["tables"], output_format="html")
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    body = re.sub(r"<p>(?=<img [^>]*>)", '<p class="pictures">', body)
    for name, picture in pictures.items():
        data = base64.b64encode(picture).decode()
        kind = "image/png" if name.endswith(".png") else "image/svg+xml"
        body = body.replace(f'src="{name}"', f'src="data:{kind};base64,{data}"')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
