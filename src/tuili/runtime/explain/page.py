"""An explanation as one HTML page: no script, nothing fetched, dark and light, wide and narrow screens."""

from __future__ import annotations

from html import escape

from tuili.runtime.explain.drawing import pictures
from tuili.runtime.explain.facts import Explanation
from tuili.runtime.explain.words import Section, sections

_STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf8;--card:#fff;--ink:#22242a;--soft:#6b6f7a;--line:#dcdad4;--c0:#2f6fde;
--c1:#c2572b;--c2:#2f8f5b;--c3:#9a4fb5;--c4:#9aa0ac;--c5:#b58a1b}
@media(prefers-color-scheme:dark){:root{--bg:#15171b;--card:#1e2127;--ink:#e7e6e2;--soft:#9ba0ab;--line:#363a43;
--c0:#6fa2ff;--c1:#f08b5c;--c2:#62c48f;--c3:#c98be0;--c4:#737986;--c5:#dcb54a}}*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:62rem;margin:0 auto;padding:1rem}h1{font-size:1.5rem;margin:.6rem 0}
h2{font-size:1.15rem;margin:0 0 .5rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem;margin:0 0 1rem}
p{margin:.35rem 0;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid var(--c0);padding:.4rem .8rem;margin:.5rem 0;
font-size:.9rem}small,.soft,figcaption,summary{color:var(--soft);font-size:.85rem}
svg{display:block;width:100%;height:auto;margin:.6rem auto}svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg .small{font-size:12px;fill:var(--soft)}svg .tick{font-size:8.5px;fill:var(--soft)}
svg .middle{text-anchor:middle}svg .end{text-anchor:end}svg rect{fill:var(--c4);fill-opacity:.25;stroke:none}
svg rect.h0{fill:var(--c0)}svg rect.h1{fill:var(--c1)}svg rect.h2{fill:var(--c2)}svg rect.h3{fill:var(--c3)}
svg rect.h4{fill:var(--c4)}svg rect.h5{fill:var(--c5)}svg rect.head{fill-opacity:.85}
svg rect.frame{fill:none;stroke:var(--line);stroke-width:1.5}svg rect.heat{fill:var(--c0)}
.flow,.axis{stroke:var(--soft);fill:none;stroke-width:1.5}
.residual{stroke:var(--c5);fill:none;stroke-width:1.5;stroke-dasharray:4 3}
.plus{fill:var(--card);stroke:var(--c5);stroke-width:2}.curve{fill:none;stroke:var(--c0);stroke-width:2.5}
.mark{fill:var(--c1)}.strip{display:flex;flex-wrap:wrap;gap:.3rem;margin:.6rem 0}
.token{border-radius:6px;padding:.1rem .4rem;background:color-mix(in srgb,var(--t,var(--c4)) 22%,transparent);
font-family:ui-monospace,monospace;font-size:.9rem;text-align:center}.token small{display:block;font-size:.7rem}
.token.control{--t:var(--c1);outline:1px dashed var(--c1)}.h0{--t:var(--c0)}.h1{--t:var(--c1)}.h2{--t:var(--c2)}
.h3{--t:var(--c3)}.h4{--t:var(--c4)}.h5{--t:var(--c5)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem;margin:.6rem 0}
figure{margin:0}figcaption{text-align:center}table{border-collapse:collapse;width:100%;font-size:.9rem}
.scroll{overflow-x:auto}
td,th{text-align:left;padding:.15rem .5rem;border-bottom:1px solid var(--line);vertical-align:top}
.bars td{border:0;padding:.1rem .35rem;white-space:nowrap;vertical-align:middle}.bars .wide{width:100%}
.guess{font-family:ui-monospace,monospace;max-width:9rem;overflow:hidden;text-overflow:ellipsis}
.chosen td{font-weight:600}
.track{display:block;height:.7rem;border-radius:3px;background:color-mix(in srgb,var(--c4) 18%,transparent)}
.bar{display:block;height:100%;border-radius:3px;background:var(--t)}
.columns{display:flex;align-items:flex-end;gap:2px;height:5rem;margin-top:.8rem}
.column{flex:1;max-width:2rem;background:var(--c0);border-radius:2px 2px 0 0}
"""


def render_page(e: Explanation) -> str:
    """The whole page."""
    title = f"{e.model.name}: {e.prompt[:80]}"
    body = "".join(_section(e, section) for section in sections(e))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(e.model.name)}</h1><p class='soft'>{escape(e.prompt)}</p>{body}</main></body></html>\n"
    )


def _section(e: Explanation, section: Section) -> str:
    draw = pictures().get(section.picture or "")
    sentences = [f"<p>{escape(sentence)}</p>" for sentence in section.sentences]
    if section.picture == "template":
        sentences[-1] = f"<pre>{escape(section.sentences[-1])}</pre>"
    table = f"<details><summary>as a table</summary>{_table(section)}</details>" if section.rows else ""
    return f"<section><h2>{escape(section.title)}</h2>{''.join(sentences)}{draw(e) if draw else ''}{table}</section>"


def _table(section: Section) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in section.header)
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in section.rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>'
