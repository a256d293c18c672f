"""A whole talk written as one string, a marker before each turn: Anthropic's HH, Baize, guanaco, chat templates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from realm.conversations.layouts import ASSISTANT, SYSTEM, USER, role_of

INTRODUCTION = "introduction"  # in place of a role: words about a talk that nobody in it says
_ROLES = r"human|user|assistant|ai|gpt|bot|system|prompter|model"


@dataclass(frozen=True)
class Style:
    """``marker``: before a turn, its group the role's name. ``ends``: what closes a turn and is no part of it.

    ``opening``: the text begins with a marker; else words before the first one introduce the talk.
    """

    marker: re.Pattern[str]
    ends: tuple[str, ...] = ()
    opening: bool = True


STYLES = (
    Style(re.compile(r"\[\|(human|ai|user|assistant)\|\]", re.I), opening=False),
    Style(re.compile(r"<\|im_start\|>[ ]?(\w+)\n?"), ("<|im_end|>",)),
    Style(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n*"), ("<|eot_id|>", "<|end_of_text|>")),
    Style(re.compile(r"<start_of_turn>(\w+)\n?"), ("<end_of_turn>", "<eos>")),
    Style(re.compile(rf"<\|({_ROLES})\|>:?\s?", re.I), ("<|endoftext|>", "<|end|>", "</s>", "<eoh>", "<eom>")),
    Style(re.compile(r"<(human|bot|user|assistant)>:\s?", re.I)),
    Style(re.compile(rf"### ?({_ROLES}|instruction|response):[ \t]*\n?", re.I), ("</s>",), opening=False),
    Style(re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|H|A):[ \t]?")),
    Style(re.compile(r"(?:\A\s*|\n)(human|user|ai|assistant|bot|gpt):[ \t]?", re.I)),
    Style(re.compile(r"(?:\A\s*|(?<=[\s>]))(USER|ASSISTANT):[ \t]?"), ("</s>",), opening=False),
)
LLAMA = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=\[INST\]|\Z)", re.S)
LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.S)
WAITS = re.compile(r"(?:\b(?:assistant|ai|gpt|bot|model)[\]|>:]*|\[/INST\]|\nA:)\s*\Z", re.I)
BEGINNINGS = ("<s>", "<|begin_of_text|>", "<bos>")
PREFIX = re.compile(rf"\s*({_ROLES})\s?:\s+", re.I)
OTHER_NAMES = {"h": USER, "a": ASSISTANT, "instruction": USER, "response": ASSISTANT}


def turns_in(text: str) -> list[tuple[str, str]]:
    """(role, text) of each turn of a transcript, without the marker of a turn that was never said; none for prose.

    What introduces a talk is its system message in Vicuna's and Alpaca's way, and ``INTRODUCTION`` in Baize's.
    """
    for beginning in BEGINNINGS:
        text = text.removeprefix(beginning)
    if "[INST]" in text[:200] or text.lstrip().startswith("[INST]"):
        return list(_llama(text))
    for style in STYLES:
        found = list(style.marker.finditer(text))
        if not found or (style.opening and text[: found[0].start()].strip()):
            continue
        turns = [
            (_role(m[1]), _between(text, m, after, style)) for m, after in zip(found, [*found[1:], None], strict=True)
        ]
        if None in {role for role, _ in turns} or ASSISTANT not in {role for role, _ in turns}:
            continue
        if turns[-1][1] == "":
            del turns[-1]
        before = text[: found[0].start()].strip()
        introduced = [(INTRODUCTION if "[|" in found[0][0] else SYSTEM, before)] if before else []
        return introduced + [(role, said) for role, said in turns if role]
    return []


def _role(name: str) -> str | None:
    return OTHER_NAMES.get(name.lower()) or role_of(name)


def _between(text: str, marker: re.Match[str], after: re.Match[str] | None, style: Style) -> str:
    said = text[marker.end() : after.start() if after else len(text)].strip()
    for end in style.ends:
        said = said.removesuffix(end).rstrip()
    return said


def _llama(text: str) -> Iterator[tuple[str, str]]:
    for asked, said in LLAMA.findall(text):
        system = LLAMA_SYSTEM.match(asked)
        if system:
            yield SYSTEM, system[1].strip()
        yield USER, asked[system.end() if system else 0 :].strip()
        answer = said.strip().removesuffix("<s>").rstrip().removesuffix("</s>").rstrip()
        if answer:
            yield ASSISTANT, answer


def waiting_turns(text: str) -> list[tuple[str, str]]:
    """The turns of a prompt that ends where the assistant is to speak; none for a question that quotes a talk."""
    return turns_in(text) if WAITS.search(text[-40:]) else []


def prefixed(text: str) -> tuple[str, str] | None:
    """``"Human: words"`` as (role, words); None without such a prefix."""
    found = PREFIX.match(text)
    role = role_of(found[1]) if found else None
    return (role, text[found.end() :]) if found and role else None
