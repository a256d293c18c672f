from __future__ import annotations

import re

import pytest
from growth import LINEAR_AT_MOST, growth
from hypothesis import given
from hypothesis import strategies as st

from realm.cleaning.funnel import Outcome
from realm.cleaning.markup import html_to_markdown, is_page, to_markdown, without_captions, without_residue
from realm.conversations.conversation import Conversation, Message

CODE = "def f(x):\n    if x < 1:\n        return None\n\n\n\ndef g():\n    pass"
BLOCK = (
    '<pre><div class="box"><div><span>python</span><button>Copy code</button></div>'
    '<div><code class="hljs language-python">{}\n</code></div></div></pre>'
)
PAGE = "<p>Like so:</p>" + BLOCK.format(CODE.replace("<", "&lt;")) + "<p>That is all.</p>"
TYPED = ["<p>why?</p>", "<div>why?</div>\nCopy code\n1 / 2", "1 / 2\nCopy12 chars / 3 words", "use <br> or < or &amp;"]
MARKDOWN = [
    "| a | b |\n|---|---|\n| one<br>two | x |",
    "Use the `<br>` tag.",
    "Like this:\n```html\n<div><p>hi</p></div>\n```",
    "<p>shown</p> in a sentence",
    "if a < b and b > c",
    "<br>",
    "<person>Ann</person><p>x</p>",
    "<p>a</p>\n```\n<p>b</p>\n```\n<p>c</p>",
]


def answer(outcome: Outcome) -> str:
    (kept,) = outcome.kept
    return kept.turns("assistant")[0]


# ---------------------------------------------------------------- HTML


def test_a_code_block_keeps_language_indentation_and_blank_lines(talk):
    outcome = html_to_markdown(talk("q", PAGE))
    assert answer(outcome) == f"Like so:\n\n```python\n{CODE}\n```\n\nThat is all."
    assert outcome.reason == "answer converted from HTML"


def test_a_code_block_without_language_is_fenced():
    assert to_markdown("<pre><code>a\n  b</code></pre>") == "```\na\n  b\n```"


@pytest.mark.parametrize(
    ("page", "markdown"),
    [
        ("<ul><li>one<ul><li>inner</li></ul></li><li>two</li></ul>", "- one\n  - inner\n- two"),
        ("<ol><li>a</li><li>b</li></ol>", "1. a\n2. b"),
        ("<h2>Head</h2><p>text</p>", "## Head\n\ntext"),
        ("<table><tr><th>A</th></tr><tr><td>1</td></tr></table>", "| A |\n| --- |\n| 1 |"),
        ('<p>See <a href="https://example.com/x">there</a></p>', "See [there](https://example.com/x)"),
        ("<p>Hello <strong>you</strong> and <em>me</em></p>", "Hello **you** and *me*"),
        ("<p>one</p><p>two</p>", "one\n\ntwo"),
        ("<p>snake_case * 2 &lt; 3 and <code>a_b</code></p>", "snake_case * 2 < 3 and `a_b`"),
        ('<div class="markdown prose"><p>Hi</p></div>', "Hi"),
        ("2 / 2<p>Hello</p>", "2 / 2\n\nHello"),
    ],
)
def test_pages_read_as_markdown(talk, page, markdown):
    assert is_page(page)
    assert answer(html_to_markdown(talk("q", page))) == markdown


@pytest.mark.parametrize("text", MARKDOWN)
def test_tags_inside_markdown_and_code_stay(talk, text):
    whole = talk("q", text)
    assert html_to_markdown(whole) == Outcome([whole])


@pytest.mark.parametrize("typed", TYPED)
def test_what_a_human_typed_stays(talk, typed):
    whole = talk(typed, "fine", typed)
    assert html_to_markdown(whole) == without_residue(whole) == Outcome([whole])


def test_only_the_answers_that_are_pages_change(talk):
    (left,) = html_to_markdown(talk("<p>q</p>", "<p>a</p>", "r", "`<p>b</p>`")).kept
    assert [m.content for m in left.messages] == ["<p>q</p>", "a", "r", "`<p>b</p>`"]


@pytest.mark.parametrize("depth", [50, 5_000])
@pytest.mark.parametrize("tag", ["p", "ul", "blockquote"])
def test_deep_nesting_is_read_or_told(talk, depth, tag):
    outcome = html_to_markdown(talk("q", f"<{tag}>" * depth + "x" + f"</{tag}>" * depth))
    told = outcome.reason == "HTML that the converter cannot read" and not outcome.kept
    assert told or "x" in answer(outcome)


@given(st.lists(st.sampled_from(["<p>", "</p>", "<pre>", "</pre>", "<", "&#", "<!--", "<![CDATA[", "x", "<code", ">"])))
def test_broken_markup_never_raises(parts):
    page = "<p>" + "".join(parts) + "</p>"
    html_to_markdown(Conversation("c", (Message("user", page), Message("assistant", page))))


# ---------------------------------------------------------------- captions


@pytest.mark.parametrize(
    ("shown", "written"),
    [
        ("python\nCopy code\nprint(1)", "python\nprint(1)"),
        ("```\npythonCopy code\nprint(1)\n```", "```python\nprint(1)\n```"),
        ("```c++ Copy code\nx;\n```", "```c++\nx;\n```"),
        ("```\nCopy code\n    x\n```", "```\n    x\n```"),
        ("Copy12 chars / 3 words\ntext", "text"),
        ("text\nCopy1204 chars / 310 words", "text\n"),
        ("2 / 2\nHello", "Hello"),
        ("2 / 2", ""),
        ("Hello\n\nShare Prompt", "Hello"),
        ("HelloShare Prompt\n", "Hello"),
    ],
)
def test_captions_leave_answers(talk, shown, written):
    outcome = without_residue(talk("q", shown))
    assert answer(outcome) == written
    assert outcome.reason == "captions of the web page removed"


@pytest.mark.parametrize("end", ["\r\n", "\r"], ids=["CRLF", "CR"])
@pytest.mark.parametrize(
    ("shown", "written"),
    [
        ("python\nCopy code\nprint(1)\nx", "python\nprint(1)\nx"),
        ("```\npythonCopy code\nprint(1)\n```", "```python\nprint(1)\n```"),
        ("```\nCopy code\n    x\n```", "```\n    x\n```"),
        ("Copy12 chars / 3 words\ntext", "text"),
        ("text\nCopy1204 chars / 310 words\n", "text\n"),
        ("2 / 2\nHello", "Hello"),
        ("Hello\n\nShare Prompt\n", "Hello"),
    ],
)
def test_captions_leave_answers_whatever_ends_a_line(talk, shown, written, end):
    assert answer(without_residue(talk("q", shown.replace("\n", end)))) == written.replace("\n", end)


@pytest.mark.parametrize("end", ["\r\n", "\r"], ids=["CRLF", "CR"])
@pytest.mark.parametrize("button", ["Share Prompt", "14 / 14"])
def test_buttons_under_a_human_turn_go_whatever_ends_a_line(talk, button, end):
    (left,) = without_residue(talk(f"please go on{end}{button}{end}", "yes")).kept
    assert left.turns("user") == ["please go on"]


@pytest.mark.parametrize(
    "text",
    [
        "I'll copy code for you",
        "Copy code from the first file into the second.",
        "page 2 / 2 of it",
        "2 / 2 = 1",
        "Share Prompt is a button",
        "Copy12 chars",
    ],
)
def test_sentences_that_speak_of_captions_stay(talk, text):
    assert without_residue(talk("q", text)) == Outcome([talk("q", text)])


def test_the_banner_at_the_end_of_a_human_turn_goes(talk):
    (left,) = without_residue(talk("please go on Share Prompt", "yes")).kept
    assert left.turns("user") == ["please go on"]


@given(st.text(st.sampled_from("ab \n`<>/p"), max_size=30), st.sampled_from(["user", "assistant"]))
def test_text_without_captions_stays(text, role):
    assert without_captions(text, role) == text


BUTTONS = [
    "Share Prompt",
    "\n \n \n지금 번역하기",
    " Translate now",
    "CopyCopy HTMLRead Aloud\u23f9\ufe0f Stop7 chars | 2 words",
]


@pytest.mark.parametrize("buttons", [*BUTTONS, BUTTONS[1] + "\n" + BUTTONS[3], "\n2 / 2", "\n\n14 / 14\n"])
def test_buttons_and_counters_under_a_human_turn_go(talk, buttons):
    (left,) = without_residue(talk("please go on" + buttons, "yes")).kept
    assert left.turns("user") == ["please go on"]


@pytest.mark.parametrize(
    "typed", ["is it 2 / 2", "score:\n1 / 2", "what does 지금 번역하기 mean?", "7 chars | 2 words", "1 / 1"]
)
def test_what_a_human_typed_like_a_button_stays(talk, typed):
    assert without_residue(talk(typed, "fine")) == Outcome([talk(typed, "fine")])


@pytest.mark.parametrize(
    "make",
    [
        lambda n: "Copy ```" + " " * n + "x",
        lambda n: "\n" * n + "Share Prompt x",
        lambda n: "x" + " " * n + "Share Prompt x Copy",
        lambda n: " " * n + "x words",
        lambda n: "Copy" + "\r\n" * n + "x",
    ],
)
def test_work_on_long_runs_of_blanks_is_linear(make):
    assert without_captions(make(50_000), "assistant") == make(50_000)
    assert growth(lambda text: without_captions(text, "assistant"), make) < LINEAR_AT_MOST


def test_what_is_not_linear_shows():
    backtracking = re.compile(r"\s+x")
    assert growth(lambda text: backtracking.search(text), lambda n: " " * n) > LINEAR_AT_MOST
