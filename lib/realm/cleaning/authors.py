"""The authors' cleaning rules as their code applies them, written anew: for the preset ``paper``, and to count
how many conversations each of their slips would hit.

Sources: remove_html.py, clean_sharegpt.ipynb, split_long_conversation.py and datasets.py in the repository
FreedomIntelligence/PlatoLM.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import bs4
from markdownify import markdownify

from realm.cleaning.duplicates import content_digest
from realm.cleaning.funnel import Outcome, keep
from realm.cleaning.language import human_language
from realm.conversations.conversation import Conversation, Message

NAMES = re.compile("openai|chatgpt", re.I)
TRANSLATION = re.compile(r"\b[Tt]ranslat\w+")
BEYOND_ASCII = re.compile("[\u0080-\uffff]")
CONTAINER_TAG = re.compile("<div.*?>|<span.*?>")
COPY_IN_FENCE = re.compile(r"```\s*(.*?)(?:Copy code)+(.+?)\s*?```", re.S)
COPIED = re.compile(r"Copy\d+ chars / \d+ words|```(.*?)Copy code\s*```")
VARIANT = re.compile(r"\A\d+ / \d+")
ESCAPED = re.compile(r"\w\\_\w")  # snake\_case, as the converter writes it


def markdown_of(text: str) -> str:
    """remove_html.py: every turn of either side goes through markdownify, whether it holds HTML or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bs4.UnusualUsageWarning)
        value = markdownify(CONTAINER_TAG.sub("", text)).strip()
    value = VARIANT.sub("", COPY_IN_FENCE.sub("```\\1\n\\2\n```", value))
    return COPIED.sub("", value).replace("\n\n\n", "\n").strip()


def markup_and_names(conversation: Conversation) -> Outcome:
    """remove_html.py: sessions of one message and those that name OpenAI or ChatGPT go, the rest is converted."""
    if len(conversation.messages) <= 1:
        return Outcome([], "one message")
    if any(NAMES.search(m.content) for m in conversation.messages):
        return Outcome([], "names OpenAI or ChatGPT")
    try:
        messages = tuple(Message(m.role, markdown_of(m.content)) for m in conversation.messages)
    except (bs4.ParserRejectedMarkup, RecursionError):
        return Outcome([], "markup that the converter cannot read")
    if messages == conversation.messages:
        return keep(conversation)
    return Outcome([replace(conversation, messages=messages)], "text altered by the conversion")


def ascii_or_translation(conversation: Conversation) -> Outcome:
    """clean_sharegpt.ipynb: a human turn that speaks of translating keeps the session, else one character from
    U+0080 to U+FFFF in any turn drops it (emoji beyond U+FFFF pass)."""
    if any(TRANSLATION.search(t) for t in conversation.turns("user")):
        return Outcome([conversation], "kept as a translation task")
    if any(BEYOND_ASCII.search(m.content) for m in conversation.messages):
        return Outcome([], "a character from U+0080 to U+FFFF")
    return keep(conversation)


def split_turns(roles: Sequence[str], lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """split_long_conversation.py: indices of the turns of each segment, its faults included.

    The turn that no longer fits closes the segment if it is an answer (which is then too long, and opens the
    next segment as well); a human turn opens the next one, together with the answer before it.
    """
    turns = list(range(len(roles)))
    segments, start, used = [], 0, 0

    def close(last: int) -> None:
        segments.append(turns[start : last + (roles[last] != "user")])

    for i, length in enumerate(lengths):
        if used + length > max_length:
            close(i)
            start = i - 1 if roles[i] == "user" else i
            used = length + lengths[i - 1] if roles[i] == "user" else length
        else:
            used += length
            if i == len(lengths) - 1:
                close(i)
    return segments


def same_text_duplicates(conversations: list[Conversation]) -> list[Outcome]:
    """clean_sharegpt.ipynb: all values in one string, roles unseen (a hash set decides what their list decides)."""
    seen: set[str] = set()
    outcomes = []
    for conversation in conversations:
        text = "".join(m.content for m in conversation.messages)
        outcomes.append(Outcome([], "same text as an earlier one") if text in seen else keep(conversation))
        seen.add(text)
    return outcomes


def slips(
    sessions: Sequence[Conversation],
    lengths: Sequence[Sequence[int]],
    max_length: int,
    prompt_length: int,
    progress: Callable[[Sequence[Conversation]], Any] = lambda c: c,
) -> list[dict[str, Any]]:
    """One row a slip: how many of ``sessions`` (joined, alternating) it hits, of how many, and our treatment.

    ``lengths``: tokens of each turn under the training template, as ``Encoder.turn_lengths`` gives them;
    ``prompt_length``: tokens of the system prompt, which their splitting does not count.
    """
    n = len(sessions)
    foreign = [c for c in sessions if ascii_or_translation(c).kept == [] and human_language(c) in ("en", "")]
    altered = sum(any(map(_alters, c.turns("user"))) for c in progress(sessions))
    escaped = sum(any(map(ESCAPED.search, c.turns("user"))) for c in sessions)
    by_text = sum(not o.kept for o in same_text_duplicates(list(sessions)))
    by_roles = len(sessions) - len({content_digest(c) for c in sessions})
    rows = [
        ("English with é, £ or a curly quote dropped as foreign", len(foreign), "language told from human words"),
        ("human turns rewritten by the HTML conversion", altered, "only answers that are HTML are converted"),
        ("human turns that hold its backslashes: this dump went through such a conversion", escaped, "left as it came"),
        ("taken for a duplicate though roles differ", by_text - by_roles, "the hash includes roles"),
        ("part 1 of the dump merged with itself (all again)", n, "each file is read once; duplicate ids are told"),
        *_split_slips(sessions, lengths, max_length, prompt_length),
        ("mask: the begin token, which the prompt supplies, supervised", n, "header and begin token never are"),
        ("training and serving prompts differ by a line break", n, "tests hold both equal, token by token"),
    ]
    return [
        {"the authors' code": what, "conversations hit": hit, "of": n, "preset fixed": ours} for what, hit, ours in rows
    ]


def _alters(text: str) -> bool:
    try:
        return markdown_of(text) != text.strip()
    except (bs4.ParserRejectedMarkup, RecursionError):
        return True


def _split_slips(
    sessions: Sequence[Conversation], lengths: Sequence[Sequence[int]], max_length: int, prompt_length: int
) -> list[tuple[str, int, str]]:
    empty = lost = twice = over = uncounted = unmasked = nothing = 0
    for conversation, sizes in zip(sessions, lengths, strict=True):
        roles = [m.role for m in conversation.messages]
        segments = split_turns(roles, sizes, max_length)
        held = [i for segment in segments for i in segment]
        human = [[i for i in segment if roles[i] == "user"] for segment in segments]
        empty += any(not segment for segment in segments)
        lost += any(roles[i] == "user" and i not in held for i in range(len(roles)))
        twice += len(held) != len(set(held))
        totals = [sum(sizes[i] for i in segment) for segment in segments]
        too_long = [total > max_length for total in totals]
        over += any(too_long)
        uncounted += any(total <= max_length < total + prompt_length for total in totals)
        unmasked += any(
            long and _starts_beyond(segment, sizes, max_length, roles)
            for long, segment in zip(too_long, segments, strict=True)
        )
        nothing += any(segment and not asked for segment, asked in zip(segments, human, strict=True))
    return [
        ("split: an empty segment", empty, "never: a turn over the limit stands alone and its cut is told"),
        ("split: a human turn lost", lost, "every turn stands in one segment, a trailing human turn too"),
        ("split: a turn in two segments", twice, "every turn stands in exactly one segment"),
        ("split: a segment over max_length", over, "measured with the training template, always within"),
        ("split: over it by the prompt, which another template measures", uncounted, "the training prompt is counted"),
        ("mask: last token unmasked for a human turn past the cut", unmasked, "nothing past the cut is supervised"),
        ("mask: a segment with nothing supervised", nothing, "dropped and counted; none at all is an error"),
    ]


def _starts_beyond(segment: Sequence[int], sizes: Sequence[int], max_length: int, roles: Sequence[str]) -> bool:
    position = 0
    for i in segment:
        if roles[i] == "user" and position >= max_length:
            return True
        position += sizes[i]
    return False
