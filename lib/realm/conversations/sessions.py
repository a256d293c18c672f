"""Segments joined back to the session they were cut from, so that a true end can be told from a cut.

Neighbours may share a turn: many splitters start the next segment with the answer that closed the last one, so that
answer is in the file twice. Records are joined where ``evidence`` finds that their turns show it, never for their ids.
"""

from __future__ import annotations

import re
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from realm.conversations.conversation import CONTEXT, ENDS_SESSION, PLACE, SESSION, Conversation, Message
from realm.conversations.evidence import (
    Family,
    Kind,
    Link,
    Piece,
    Style,
    families,
    family_of,
    reasons_to_join,
    style_of,
)
from realm.conversations.readers import ReadReport

NAMELESS = re.compile(r"record (\d+)(?: at byte |\Z)")  # how a report calls a skipped record whose id cannot be read
CONTINUED = "continued by others"
MISSING = "turns missing before it"
ANOTHER = "another talk under the same id"
REASONS = {
    Kind.SHARED: "joined: repeats the turn before it",
    Kind.ANSWER: "joined: answers the turn before it",
    Kind.COUNT: "joined: its number counts the turns before it",
    Kind.SAME: "the same segment again",
}
# Metric -> what became of so many records, all of them together being those that do not stand as they came.
TOLD = {
    "segments_joined_by_shared_turn": REASONS[Kind.SHARED],
    "segments_joined_by_answer": REASONS[Kind.ANSWER],
    "segments_joined_by_turn_count": REASONS[Kind.COUNT],
    "segments_repeated": REASONS[Kind.SAME],
    "segments_continued": CONTINUED,
    "segments_after_missing_turns": MISSING,
    "ids_repeated": ANOTHER,
}


def unknown_ends(report: ReadReport, conversations: Sequence[Conversation]) -> set[int]:
    """Indices of conversations that may go on in what the file does not show: the next segment was unusable, or reading
    stopped.

    ``report`` of the whole file, ``conversations`` as they were read, from the first on.
    """
    numbers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, conversation in enumerate(conversations):
        name, number = family_of(conversation.id)
        insort(numbers[name], (number or 0, i))
    cut = set()
    for skipped_before, identifier in enumerate(report.skipped_ids):
        if nameless := NAMELESS.match(identifier):
            before = [(0, int(nameless[1]) - skipped_before - 1)]  # it may have been the next segment of this one
        else:
            name, number = family_of(identifier)
            pieces = numbers.get(name, [])
            before = pieces[: bisect_right(pieces, (number or 0, len(conversations)))][-1:]
        cut |= {i for _, i in before}
    if report.file_defect or report.stopped or report.read > len(conversations):
        cut.add(len(conversations) - 1)
    return {i for i in cut if 0 <= i < len(conversations)}


@dataclass(frozen=True)
class Joined:
    """What became of one record: the conversation that stands in its place, None where it went into another."""

    conversation: Conversation | None
    reason: str = ""


@dataclass
class _Stretch:
    """Records that follow one another without a gap. ``place``: turns of the session before the first of them."""

    session: str
    place: int
    reason: str
    pieces: list[Piece]
    messages: list[Message]
    last: list[int] = field(default_factory=list)  # indices of the record that ends it, and of repetitions of it
    goes_on: bool = False  # another stretch of the session follows, behind missing turns

    @property
    def apart(self) -> int:
        """How many of its records do not stand right behind the one before, in the file."""
        return sum(b.index - a.index != 1 for a, b in zip(self.pieces, self.pieces[1:], strict=False))


def join_segments(conversations: Sequence[Conversation], cut_after: Collection[int] = ()) -> list[Joined]:
    """One conversation a session, in place of its first segment; where turns are missing, one a stretch.

    ``cut_after``: indices of conversations whose last turn is not known to be an end (``unknown_ends``). Turns that two
    segments share stand once. The result keeps the id of its first segment, if no other has it; ``meta`` names its
    session, and says how many turns of it stand before, and whether its end is known.
    """
    some = families(conversations)
    style = style_of(some)
    outcomes = [Joined(None)] * len(conversations)
    names, ids = _Names(), _Names()
    stretches: list[_Stretch] = []
    for family in some:
        placed = family.could_count_turns and (style.counts_turns or family.shows_that_numbers_count_turns)
        links = reasons_to_join(family, style, placed)
        stretches += _stretches(family, links, style, placed, names)
        for index, link in links.items():
            outcomes[index] = Joined(None, REASONS[link.kind])
    unknown = _without_end(stretches, conversations, cut_after)
    for stretch in sorted(stretches, key=lambda s: s.pieces[0].index):
        first = conversations[stretch.pieces[0].index]
        known = not (stretch.goes_on or unknown.intersection(stretch.last))
        outcomes[stretch.pieces[0].index] = _joined(stretch, ids.unique(first.id), first, known)
    return outcomes


def _without_end(
    stretches: Sequence[_Stretch], conversations: Sequence[Conversation], cut_after: Collection[int]
) -> set[int]:
    """Where the file was not read to its end and segments stand in no order, any session may go on in what is lost."""
    joins = sum(len(s.pieces) - 1 for s in stretches)
    shuffled = 2 * sum(s.apart for s in stretches) > joins
    return set(range(len(conversations)) if shuffled and len(conversations) - 1 in cut_after else cut_after)


def _stretches(family: Family, links: dict[int, Link], style: Style, placed: bool, names: _Names) -> list[_Stretch]:
    made: list[_Stretch] = []
    of_record: dict[int, _Stretch] = {}
    compared = {link.piece.index: link for link in family.links}
    for piece in family.pieces:
        link = links.get(piece.index)
        if link is None:
            inside = style.answers_continue and piece.begins_with("assistant")
            made.append(_opened(piece, compared.get(piece.index), of_record, inside, placed and piece.numbered, names))
            of_record[piece.index] = made[-1]
            continue
        stretch = of_record[piece.index] = of_record[link.last.index]
        if link.kind == Kind.SAME:
            stretch.last += [piece.index] if link.last.index in stretch.last else []
            continue
        stretch.pieces.append(piece)
        stretch.messages += piece.turns[link.repeated :]
        stretch.last = [piece.index]
    return made


def _opened(
    piece: Piece, compared: Link | None, before: dict[int, _Stretch], inside: bool, placed: bool, names: _Names
) -> _Stretch:
    """A stretch that continues nothing in the file: a session, or what is left of one behind missing turns.

    ``inside``: something came before it; ``placed``: its number tells how many turns.
    """
    place = max(piece.number if placed else 0, int(inside))
    if compared and compared.step > 0 and (placed or inside):
        earlier = before[compared.last.index]
        earlier.goes_on = True
        place = max(place, earlier.place + len(earlier.messages) + (not placed))
        return _Stretch(earlier.session, place, MISSING, [piece], list(piece.turns), [piece.index])
    session = names.unique(piece.family if placed else piece.id)
    reason = ANOTHER if compared and compared.step == 0 else ""
    return _Stretch(session, place, reason, [piece], list(piece.turns), [piece.index])


class _Names:
    """Names that were given, so that no two are alike."""

    def __init__(self) -> None:
        self.given: set[str] = set()
        self.times: dict[str, int] = defaultdict(int)

    def unique(self, name: str) -> str:
        wanted = name
        while wanted in self.given:
            self.times[name] += 1
            wanted = f"{name} ({self.times[name] + 1})"
        self.given.add(wanted)
        return wanted


def _joined(stretch: _Stretch, identifier: str, first: Conversation, end_known: bool) -> Joined:
    brought = {k: v for k, v in first.meta.items() if k not in (ENDS_SESSION, CONTEXT)}
    meta = brought | {SESSION: stretch.session, PLACE: stretch.place, "segments": len(stretch.pieces)}
    if end_known:
        meta[ENDS_SESSION] = True
    reason = stretch.reason or (CONTINUED if len(stretch.pieces) > 1 else "")
    return Joined(Conversation(identifier, tuple(stretch.messages), meta), reason)
