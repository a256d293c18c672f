"""The ShareGPT funnel: named, pure, ordered steps that account for every conversation; and a leak-safe split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from realm.conversation import Conversation, Message

EXAMPLES_KEPT = 3


@dataclass
class Outcome:
    """What a step did with one conversation: what comes out (none, one or more) and why it changed or went."""

    kept: list[Conversation]
    reason: str = ""


@dataclass
class StepReport:
    """One row of the funnel."""

    step: str
    conversations_in: int
    conversations_out: int = 0
    sessions_out: int = 0
    changed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in self.reasons.items())
        return {
            "step": self.step,
            "conversations in": self.conversations_in,
            "conversations out": self.conversations_out,
            "sessions out": self.sessions_out,
            "changed": self.changed,
            "why": reasons,
        }


@dataclass(frozen=True)
class Step:
    """``apply`` gives one outcome a conversation, in order, and keeps nothing between two runs."""

    name: str
    apply: Callable[[list[Conversation]], list[Outcome]]


def run_funnel(
    conversations: Iterable[Conversation], steps: Sequence[Step], progress: bool = False
) -> tuple[list[Conversation], list[StepReport]]:
    """Apply the steps in order; returns what is left and one report a step."""
    current = list(conversations)
    reports = []
    for step in tqdm(steps, desc="cleaning", unit="step", disable=not progress):
        current, report = _run_step(step, current)
        reports.append(report)
    return current, reports


def _run_step(step: Step, conversations: list[Conversation]) -> tuple[list[Conversation], StepReport]:
    report, result = StepReport(step.name, len(conversations)), []
    for conversation, outcome in zip(conversations, step.apply(conversations), strict=True):
        result += outcome.kept
        if outcome.reason:
            report.reasons[outcome.reason] = report.reasons.get(outcome.reason, 0) + 1
            report.changed += bool(outcome.kept)
            if len(report.examples) < EXAMPLES_KEPT:
                report.examples.append(conversation.id)
    report.conversations_out = len(result)
    report.sessions_out = len({c.session for c in result})
    return result, report


def _keep(conversation: Conversation) -> Outcome:
    return Outcome([conversation])


# ---------------------------------------------------------------- rules


def alternate(conversation: Conversation) -> Outcome:
    """Turns must alternate from a user turn, none empty; system turns and leading answers are taken off."""
    messages = [m for m in conversation.messages if m.role != "system"]
    opening = next((i for i, m in enumerate(messages) if m.role == "user"), len(messages))
    messages = [Message(m.role, m.content.strip()) for m in messages[opening:]]
    expected = ["user", "assistant"] * len(messages)
    if not messages:
        return Outcome([], "no user turn")
    if any(not m.content for m in messages):
        return Outcome([], "empty turn")
    if any(m.role != e for m, e in zip(messages, expected, strict=False)):
        return Outcome([], "turns do not alternate")
    reason = "" if len(messages) == len(conversation.messages) else "leading answer or system turn taken off"
    return Outcome([replace(conversation, messages=tuple(messages))], reason)


HTML_TAG = re.compile(
    r"</?(?:p|div|span|br|pre|code|ul|ol|li|strong|em|table|tr|td|th|h[1-6]|a|button|svg)\b[^<>]*>", re.I
)
INTERFACE_RESIDUE = re.compile(r"(?m)^\s*(?:Copy code|\d+ / \d+|Share Prompt)\s*$\n?")
PRODUCT_NAMES = re.compile(r"openai|chatgpt|open ai|chat gpt", re.I)


# Tags inside code are what the answer is about; tags of blocks part words, tags within a line do not.
CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.S)
INLINE = re.compile(r"</?(?:span|strong|em|a|code)\b", re.I)


def _plain(text: str) -> str:
    """Markup becomes nothing or a line break, code between backticks stays."""
    parts = CODE.split(text)
    parts[::2] = [HTML_TAG.sub(lambda t: "" if INLINE.match(t.group()) else "\n", part) for part in parts[::2]]
    changed = "".join(parts)
    return INTERFACE_RESIDUE.sub("", changed).strip() if changed != text or INTERFACE_RESIDUE.search(text) else text


def without_interface_residue(conversation: Conversation) -> Outcome:
    """HTML tags and buttons' captions leave answers; what a human typed stays as it is."""
    messages = tuple(
        replace(m, content=_plain(m.content) or m.content) if m.role == "assistant" else m
        for m in conversation.messages
    )
    if messages == conversation.messages:
        return _keep(conversation)
    return Outcome([replace(conversation, messages=messages)], "markup or button captions removed")


def no_product_names(conversation: Conversation) -> Outcome:
    """The paper drops sessions that name OpenAI or ChatGPT."""
    if any(PRODUCT_NAMES.search(m.content) for m in conversation.messages):
        return Outcome([], "names OpenAI or ChatGPT")
    return _keep(conversation)


def ascii_or_translation(conversation: Conversation) -> Outcome:
    """The paper's English rule: no character from U+0080 on, unless the human asks for a translation."""
    if all(m.content.isascii() for m in conversation.messages):
        return _keep(conversation)
    if any("translat" in t.lower() for t in conversation.turns("user")):
        return Outcome([conversation], "kept as a translation task")
    return Outcome([], "a character from U+0080 on")


def no_reserved_tokens(reserved: Sequence[str]) -> Callable[[Conversation], Outcome]:
    """Text that spells a token of the template would be read as that token, in training and in serving."""
    pattern = re.compile("|".join(re.escape(token) for token in reserved) or r"(?!)")

    def rule(conversation: Conversation) -> Outcome:
        if any(pattern.search(m.content) for m in conversation.messages):
            return Outcome([], "spells a reserved token")
        return _keep(conversation)

    return rule


def two_messages(conversation: Conversation) -> Outcome:
    return _keep(conversation) if len(conversation.messages) >= 2 else Outcome([], "one message")


def exact_duplicates(conversations: list[Conversation]) -> list[Outcome]:
    """The second of two conversations with the same roles and texts goes."""
    seen: set[bytes] = set()
    outcomes = []
    for conversation in conversations:
        digest = content_digest(conversation)
        outcomes.append(Outcome([], "exact duplicate") if digest in seen else _keep(conversation))
        seen.add(digest)
    return outcomes


def content_digest(conversation: Conversation) -> bytes:
    """A hash of roles and texts, in order."""
    text = "\x00".join(f"{m.role}\x01{m.content}" for m in conversation.messages)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def each(rule: Callable[[Conversation], Outcome]) -> Callable[[list[Conversation]], list[Outcome]]:
    """A rule that looks at one conversation at a time, as a step's ``apply``."""
    return lambda conversations: [rule(c) for c in conversations]


def paper_steps(reserved: Sequence[str], split: Callable[[list[Conversation]], list[list[Conversation]]]) -> list[Step]:
    """The paper's funnel (clean_sharegpt.ipynb) in its order; ``split`` cuts conversations into segments."""

    def segments(conversations: list[Conversation]) -> list[Outcome]:
        return [Outcome(parts, "split" if len(parts) > 1 else "") for parts in split(conversations)]

    return [
        Step("alternating turns", each(alternate)),
        Step("markup removed", each(without_interface_residue)),
        Step("no product names", each(no_product_names)),
        Step("English by the paper's rule", each(ascii_or_translation)),
        Step("no reserved tokens", each(no_reserved_tokens(reserved))),
        Step("split at max_length", segments),
        Step("two messages or more", each(two_messages)),
        Step("no exact duplicates", exact_duplicates),
    ]


# ---------------------------------------------------------------- splitting into train, valid and test


def split_by_session(
    conversations: Sequence[Conversation], valid_share: float, test_share: float, seed: int
) -> dict[str, list[Conversation]]:
    """train, valid and test with no session on two sides.

    A session's side is a hash of its name and the seed: the same whatever else is in the data.
    """
    sides: dict[str, list[Conversation]] = {"train": [], "valid": [], "test": []}
    for conversation in conversations:
        position = unit_hash(f"{seed}:{conversation.session}")
        side = "test" if position < test_share else "valid" if position < test_share + valid_share else "train"
        sides[side].append(conversation)
    return sides


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()) / 2**64


def one_per_session(conversations: Sequence[Conversation], seed: int) -> list[Conversation]:
    """The first segment of each session, in a seeded order: rows that are independent of each other."""
    first: dict[str, Conversation] = {}
    for conversation in conversations:
        first.setdefault(conversation.session, conversation)
    return sorted(first.values(), key=lambda c: unit_hash(f"order:{seed}:{c.session}"))
