"""An executed notebook as a page that opens anywhere: no script and no style from elsewhere."""

from __future__ import annotations

from pathlib import Path

from realm.core.files import atomic_path
from realm.core.secrets import redact

# nbconvert's own page loads libraries from the network: for widgets, formulas and diagrams, none of which is here.
TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
main { max-width: 68rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word }
.jp-RenderedHTMLCommon, .jp-OutputArea-output { overflow-x: auto }
@media (max-width: 44rem) {
  main { padding: 0 } .jp-Cell { padding: 2px !important }
  .jp-InputPrompt, .jp-OutputPrompt { display: none !important }
}
</style>
{%- endblock -%}
"""


def write_page(notebook: Path) -> Path:
    """``NAME.html`` beside ``NAME.ipynb``, without keys."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(raw_template=TEMPLATE, embed_images=True).from_filename(str(notebook))
    page = notebook.with_suffix(".html")
    with atomic_path(page) as temporary:
        temporary.write_text(redact(body), encoding="utf-8")
    return page
