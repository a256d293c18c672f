"""The two presets of the ShareGPT funnel: ``paper``, the authors' rules as published, and ``fixed``, the default."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from realm.cleaning import authors
from realm.cleaning.duplicates import exact_duplicates, near_duplicates
from realm.cleaning.funnel import Outcome, Step, each, keep
from realm.cleaning.language import english
from realm.cleaning.markup import html_to_markdown, without_residue
from realm.cleaning.private_data import without_private_data
from realm.conversations.conversation import ENDS_SESSION, Conversation, Message
from realm.conversations.sessions import join_segments
from realm.dialogue.encoder import Encoder
from realm.dialogue.segments import cut_apart, ending_alone, split_long

PRODUCT_NAMES = ("openai", "chatgpt", "chat gpt", "open ai")
NO_PRODUCT = re.compile(r"open ai(?=[a-z])")  # open air, open aisle


def steps(
    preset: str,
    encoder: Encoder,
    *,
    cut_after: Collection[int] = (),
    near_duplicate_threshold: float,
    replace_private_data: bool,
) -> list[Step]:
    """The ordered steps of ``paper`` or ``fixed``: first those on sessions, then those on segments.

    ``encoder`` measures lengths with the training template; ``cut_after``: indices of conversations of unknown end
    (``sessions.unknown_ends``); ``near_duplicate_threshold`` is a Jaccard similarity of 5-word shingles.
    """
    on_sessions = session_steps(preset, encoder, cut_after, near_duplicate_threshold, replace_private_data)
    return on_sessions + segment_steps(preset, encoder, near_duplicate_threshold)


def session_steps(
    preset: str,
    encoder: Encoder,
    cut_after: Collection[int],
    near_duplicate_threshold: float,
    replace_private_data: bool,
) -> list[Step]:
    """Whole sessions, before anything is cut; arguments as for ``steps``."""
    joined = Step("segments joined to sessions", lambda cs: _join(cs, cut_after))
    alternating = Step("alternating turns", each(alternate))
    reserved = Step("no reserved tokens", each(no_reserved_tokens(encoder.format.reserved)))
    if preset == "paper":
        return [
            joined,
            Step("markup converted, product names dropped", each(authors.markup_and_names)),
            Step("English by the paper's rule", each(authors.ascii_or_translation)),
            alternating,
            reserved,
        ]
    private = [Step("private data replaced", each(without_private_data))] if replace_private_data else []
    return [
        joined,
        Step("HTML answers to Markdown", each(html_to_markdown)),
        Step("page captions removed", each(without_residue)),
        alternating,
        Step("no product names", each(no_product_names)),
        Step("human turns in English", each(english)),
        reserved,
        *private,
        Step("no exact duplicates", exact_duplicates),
        Step("no near-duplicates", lambda cs: near_duplicates(cs, near_duplicate_threshold, drop=True)),
    ]


def segment_steps(preset: str, encoder: Encoder, near_duplicate_threshold: float) -> list[Step]:
    """The cut at ``encoder.max_length`` and what follows it; arguments as for ``steps``."""
    if preset == "paper":
        return [
            Step("split at max_length", lambda cs: _authors_split(cs, encoder)),
            Step("two messages or more", each(two_messages)),
            Step("no exact duplicates", authors.same_text_duplicates),
            Step("near-duplicates marked", lambda cs: near_duplicates(cs, near_duplicate_threshold, drop=False)),
        ]
    return [
        Step("split at max_length", lambda cs: _split(split_long(cs, encoder))),
        Step("a human turn or an ending in each segment", each(teaches_the_user(encoder))),
    ]


def _join(conversations: list[Conversation], cut_after: Collection[int]) -> list[Outcome]:
    joined = join_segments(conversations, cut_after)
    return [Outcome([] if j.conversation is None else [j.conversation], j.reason) for j in joined]


def _split(segments: list[list[Conversation]]) -> list[Outcome]:
    return [Outcome(parts, "split" if len(parts) > 1 else "") for parts in segments]


def _shortened(conversation: Conversation, parts: list[Conversation]) -> Outcome:
    """Their rule also loses turns: a trailing human turn, and one too long for any segment."""
    if not parts:
        return Outcome([], "no segment left")
    return Outcome(parts, "split" if len(parts) > 1 else "" if parts == [conversation] else "turns lost")


def _authors_split(conversations: list[Conversation], encoder: Encoder) -> list[Outcome]:
    """Their rule of where to cut, with lengths under the template that training uses."""
    groups = (
        authors.split_turns([m.role for m in c.messages], sizes, encoder.max_length)
        for c, sizes in zip(conversations, encoder.turn_lengths(conversations), strict=True)
    )
    return [
        _shortened(c, cut_apart(c, [g for g in of_one if g])) for c, of_one in zip(conversations, groups, strict=True)
    ]


def alternate(conversation: Conversation) -> Outcome:
    """Turns alternate from a user turn, none empty: leading answers and system turns are taken off, and what
    follows the first turn that is empty or out of turn is cut off."""
    places = [i for i, m in enumerate(conversation.messages) if m.role != "system"]
    opening = next((at for at, i in enumerate(places) if conversation.messages[i].role == "user"), len(places))
    places = places[opening:]
    messages = [Message(m.role, m.content.strip()) for m in (conversation.messages[i] for i in places)]
    if not messages:
        return Outcome([], "no user turn")
    good, stop = _well_formed(messages)
    if not good:
        return Outcome([], stop)
    if good < len(messages):
        kept = conversation.with_turns(places[:good])
        meta = {k: v for k, v in kept.meta.items() if k != ENDS_SESSION}
        return Outcome([replace(kept, messages=tuple(messages[:good]), meta=meta)], f"cut off: {stop}")
    reason = "" if len(messages) == len(conversation.messages) else "leading answer or system turn taken off"
    return Outcome([replace(conversation.with_turns(places), messages=tuple(messages))], reason)


def _well_formed(messages: Sequence[Message]) -> tuple[int, str]:
    """How many turns are as they should be, and what is wrong with the next one."""
    for i, message in enumerate(messages):
        if message.role != ("user", "assistant")[i % 2]:
            return i, "turns do not alternate"
        if not message.content:
            return i, "empty turn"
    return len(messages), ""


def no_product_names(conversation: Conversation) -> Outcome:
    """The paper drops sessions that name OpenAI or ChatGPT."""
    texts = (NO_PRODUCT.sub("", m.content.lower()) for m in conversation.messages)
    if any(name in text for text in texts for name in PRODUCT_NAMES):
        return Outcome([], "names OpenAI or ChatGPT")
    return keep(conversation)


def no_reserved_tokens(reserved: Sequence[str]) -> Callable[[Conversation], Outcome]:
    """Text that spells a token of the template would be read as that token, in training and in serving."""
    pattern = re.compile("|".join(re.escape(token) for token in reserved) or r"(?!)")

    def rule(conversation: Conversation) -> Outcome:
        if any(pattern.search(m.content) for m in conversation.messages):
            return Outcome([], "spells a reserved token")
        return keep(conversation)

    return rule


def two_messages(conversation: Conversation) -> Outcome:
    return keep(conversation) if len(conversation.messages) >= 2 else Outcome([], "one message")


def teaches_the_user(encoder: Encoder) -> Callable[[Conversation], Outcome]:
    """An answer whose question stands in the segment before teaches the user's side one thing at most: that the
    session ends with it."""

    def rule(segment: Conversation) -> Outcome:
        if segment.turns("user"):
            return keep(segment)
        if ending := ending_alone(segment, encoder):
            return Outcome([ending], "no human turn: kept as the place of an ending")
        return Outcome([], "no human turn")

    return rule
