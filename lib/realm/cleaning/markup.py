"""What is in a ShareGPT turn that nobody wrote: the page's HTML and the captions of its buttons.

Only an answer that is a web page's fragment is taken for HTML. Tags inside Markdown (``<br>`` in a table, code
without a fence) are what the answer says, and whatever a human typed stays as typed.
"""

from __future__ import annotations

import re
from dataclasses import replace

from bs4 import BeautifulSoup, ParserRejectedMarkup
from markdownify import MarkdownConverter

from realm.cleaning.funnel import Outcome, keep
from realm.conversations.conversation import Conversation, Message

OPENS_AS_PAGE = re.compile(
    r"\s*(?:\d+ / \d+\s*)?"
    r"<(?:(?:p|ol|ul|pre|h[1-6]|table|blockquote)(?=[\s>])|div\s[^>]*class=[\"'][^\"']*\bmarkdown\b)[^>]*>",
    re.I,
)
CLOSES_BLOCK = re.compile(r"</(?:p|ol|ul|pre|h[1-6]|table|blockquote|div)>\s*\Z", re.I)
# Captions of the page: switching between answers, copying code, sharing.
LINE_END = r"(?:\r?\n|\r)"  # texts keep the line ends of the system that they were copied on
VARIANT = re.compile(rf"\A\s*\d+ / \d+[ \t]*(?:{LINE_END}|\Z)")
# Possessive, so that long runs of blanks stay linear.
COPY_IN_FENCE = re.compile(rf"```[ \t]*+{LINE_END}?[ \t]*+([\w+#.-]*?)[ \t]*+Copy code[ \t]*({LINE_END}?)")
COPY_LINE = re.compile(rf"(?:\A|(?<=[\r\n]))[ \t]*+(?:Copy code|Copy\d+ chars / \d+ words)[ \t]*+(?:{LINE_END}|\Z)")
# Buttons that the page and browser extensions put under a turn, in the browser's language, and under a human turn
# that was edited the counter of its versions.
BUTTON = (
    r"Share Prompt|Translate now|지금 번역하기"
    r"|CopyCopy HTMLRead Aloud(?:\N{BLACK SQUARE FOR STOP}\ufe0f? Stop)?\d+ chars \| \d+ words"
)
BUTTONS = {"assistant": re.compile(rf"(?:{BUTTON})\Z"), "user": re.compile(rf"(?:{BUTTON}|(?<=[\r\n])(\d+) / \1)\Z")}
LONGEST_BUTTON = 80
BLANK_LINES = re.compile(r"(```.*?```)|\n{3,}", re.S)


class _Converter(MarkdownConverter):
    class Options:
        heading_style = "atx"
        bullets = "-"
        escape_asterisks = False
        escape_underscores = False
        escape_misc = False


def is_page(text: str) -> bool:
    """Whether an answer is an HTML fragment from its first to its last tag, not text that holds tags."""
    return bool(OPENS_AS_PAGE.match(text) and CLOSES_BLOCK.search(text) and "```" not in text)


def to_markdown(page: str) -> str:
    """An answer's HTML as Markdown; buttons go, code blocks keep their language and their indentation."""
    soup = BeautifulSoup(page, "html.parser")
    for button in soup("button"):
        button.decompose()
    for block in soup("pre"):
        code = block.find("code")
        if code:
            block.clear()
            block.append(code)
    converter = _Converter(code_language_callback=_language)
    return BLANK_LINES.sub(lambda m: m[1] or "\n\n", converter.convert_soup(soup)).strip()


def _language(block) -> str:
    code = block.find("code")
    names = [c.removeprefix("language-") for c in (code or {}).get("class", []) if c.startswith("language-")]
    return names[0] if names else ""


def without_captions(text: str, role: str) -> str:
    """The page's captions taken off; in a human turn only the buttons at its end."""
    if role == "assistant" and ("Copy" in text or VARIANT.match(text)):
        text = COPY_LINE.sub("", COPY_IN_FENCE.sub(lambda m: f"```{m[1]}{m[2] or chr(10)}", VARIANT.sub("", text)))
    return _without_buttons(text, BUTTONS[role]) if role in BUTTONS else text


def _without_buttons(text: str, buttons: re.Pattern[str]) -> str:
    shown = text.rstrip()
    while button := buttons.search(shown, max(0, len(shown) - LONGEST_BUTTON)):
        text = shown = shown[: button.start()].rstrip()
    return text


def html_to_markdown(conversation: Conversation) -> Outcome:
    """Answers that are HTML become Markdown; a conversation whose HTML cannot be read goes."""
    try:
        return _rewritten(
            conversation,
            lambda m: to_markdown(m.content) if m.role == "assistant" and is_page(m.content) else m.content,
            "answer converted from HTML",
        )
    except (ParserRejectedMarkup, RecursionError):
        return Outcome([], "HTML that the converter cannot read")


def without_residue(conversation: Conversation) -> Outcome:
    """Captions of the web page leave the conversation."""
    return _rewritten(conversation, lambda m: without_captions(m.content, m.role), "captions of the web page removed")


def _rewritten(conversation: Conversation, rewrite, reason: str) -> Outcome:
    messages = tuple(_with_content(m, rewrite(m)) for m in conversation.messages)
    if all(new is old for new, old in zip(messages, conversation.messages, strict=True)):
        return keep(conversation)
    return Outcome([replace(conversation, messages=messages)], reason)


def _with_content(message: Message, content: str) -> Message:
    return message if content == message.content else Message(message.role, content)
