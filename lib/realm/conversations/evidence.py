"""How the turns of two records show that one continues the other. Ids only say which records to compare.

Long sessions are cut up for training, and splitters name the segments in two ways: ``SESSION_N`` with N the place of
the segment's first turn in the session (FastChat's and the authors' splitters), or N counting segments. But numbered
names are also how people name talks that have nothing to do with each other. So what a number means is settled file by
file, and only by turns.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

from realm.conversations.conversation import CONTEXT, PLACE, SESSION, Conversation, Message

LOOK_BACK = 8  # loose ends of one family that a record is compared with: an id may stand in a file several times
NAMELESS = re.compile(r"record-\d+")  # how readers call a record without an id: its neighbours in the file are compared
DIGITS = 18  # a longer number counts neither turns nor segments


class Kind(IntEnum):
    """What a record shows about one before it; the higher, the stronger."""

    NOTHING = 0
    GAP = 1  # by its number, turns are missing between them
    COUNT = 2  # its number is the count of turns before it
    ANSWER = 3  # it begins with an answer, the one before it ended with a human turn
    SHARED = 4  # it repeats the turns that the one before it ended with
    SAME = 5  # all of it stands at the beginning of the one before it


SHOWN = (Kind.ANSWER, Kind.SHARED)  # by turns, whatever the numbers


@dataclass(frozen=True)
class Piece:
    """One record: what it may be a piece of, which, and its own turns. ``index``: its place in the file."""

    index: int
    id: str
    family: str
    number: int
    numbered: bool
    turns: tuple[Message, ...]

    @property
    def first(self) -> int:
        """The index of its first turn besides system turns."""
        return next((i for i, m in enumerate(self.turns) if m.role != "system"), len(self.turns))

    def begins_with(self, role: str) -> bool:
        return [m.role for m in self.turns[self.first : self.first + 1]] == [role]

    def ends_with(self, role: str) -> bool:
        return [m.role for m in self.turns[-1:]] == [role]


@dataclass(frozen=True)
class Link:
    """``piece`` compared with ``last``, the end of what stands before it. ``repeated``: turns at its beginning that are
    not new. ``fits``: its number is where its first turn stands, if ``last``'s is."""

    last: Piece
    piece: Piece
    kind: Kind
    repeated: int = 0
    fits: bool = False

    @property
    def step(self) -> int:
        return self.piece.number - self.last.number

    @property
    def counts(self) -> bool:
        """It speaks for numbers that count turns: they fit, and the speakers take turns."""
        if self.kind == Kind.COUNT:
            return {m.role for m in (self.last.turns[-1], *self.piece.turns[:1])} == {"user", "assistant"}
        return self.fits and self.kind in SHOWN

    @property
    def clashes(self) -> bool:
        """It speaks against it: by their numbers both would hold a turn that they do not share, or one of a single
        turn is followed by the next number, and the same side speaks again."""
        neutral = self.kind in (Kind.GAP, Kind.SAME) or (self.kind == Kind.COUNT and self.step > 1)
        return self.step > 0 and not neutral and not self.counts


@dataclass(frozen=True)
class Family:
    """Records whose ids differ in their number at most, ordered by it, each linked to one before it if there is one."""

    pieces: list[Piece]
    links: list[Link]  # of all pieces but the first

    def tally(self) -> tuple[int, int, int]:
        """Links that fit numbers which count turns, that clash with them, and that leave a gap."""
        return (
            sum(link.step > 0 and link.counts for link in self.links),
            sum(link.clashes for link in self.links),
            sum(link.kind == Kind.GAP for link in self.links),
        )

    @property
    def could_count_turns(self) -> bool:
        fits, clashes, gaps = self.tally()
        return any(p.numbered for p in self.pieces) and 4 * clashes <= fits and gaps <= fits + 1

    @property
    def shows_that_numbers_count_turns(self) -> bool:
        """By a turn that stands where the number says; steps of one could as well count segments."""
        return self.could_count_turns and any(k.kind in SHOWN and k.counts and k.step > 1 for k in self.links)


@dataclass(frozen=True)
class Style:
    """What holds for a whole file. ``counts_turns``: numbers in ids are places of turns. ``answers_continue``: who
    begins with an answer continues something, and does not merely greet."""

    counts_turns: bool
    answers_continue: bool


def family_of(identifier: str) -> tuple[str, int | None]:
    """``"abc_3"`` -> ``("abc", 3)``: piece 3 of abc, perhaps. An id without a number -> ``(id, None)``."""
    name, _, number = identifier.rpartition("_")
    if name and number.isascii() and number.isdigit() and len(number) <= DIGITS:
        return name, int(number)
    return identifier, None


def families(conversations: Sequence[Conversation]) -> list[Family]:
    """All records by family, in the order of the file."""
    members: dict[str, list[Piece]] = defaultdict(list)
    for i, conversation in enumerate(conversations):
        piece = _piece(i, conversation)
        members[piece.family].append(piece)
    pieces = [sorted(some, key=lambda p: (p.number, p.index)) for some in members.values()]
    common = _commonplaces(pieces)
    return [Family(some, _links(some, common)) for some in pieces]


def _piece(index: int, conversation: Conversation) -> Piece:
    """Segments that this package cut say in ``meta`` where they stand; of others the id is all there is."""
    meta, (name, number) = conversation.meta, family_of(conversation.id)
    session, place, context = meta.get(SESSION), meta.get(PLACE), meta.get(CONTEXT, 0)
    if isinstance(session, str) and type(place) is int:
        own = conversation.messages[context if type(context) is int else 0 :]
        return Piece(index, conversation.id, session, place, True, own)
    if NAMELESS.fullmatch(conversation.id):
        return Piece(index, conversation.id, "", index, False, conversation.messages)
    return Piece(index, conversation.id, name, number or 0, number is not None, conversation.messages)


def _commonplaces(pieces: Sequence[Sequence[Piece]]) -> Collection[Message]:
    """First turns that many records begin with ("hi"): that two share one shows nothing."""
    begins = Counter(p.turns[p.first] for some in pieces for p in some if p.first < len(p.turns))
    few = max(2, begins.total() // 100)
    return {turn for turn, n in begins.items() if n > few}


def _links(pieces: Sequence[Piece], common: Collection[Message]) -> list[Link]:
    ends, links = [pieces[0]], []
    below = number = pieces[0].number
    for piece in pieces[1:]:
        if piece.number > number:
            below, number = number, piece.number
        near = [end for end in reversed(ends) if end.number >= below]
        links.append(
            max((_link(end, piece, common) for end in near), key=lambda link: link.kind)
        )  # the nearest of these
        if links[-1].kind == Kind.SAME:
            continue
        if links[-1].kind >= Kind.COUNT:
            ends.remove(links[-1].last)
        ends = [*ends[1 - LOOK_BACK :], piece]
    return links


def _link(last: Piece, piece: Piece, common: Collection[Message]) -> Link:
    step = piece.number - last.number
    overlap = len(last.turns) - step  # turns that both hold, if numbers count turns
    if step == 0 and last.turns[: len(piece.turns)] == piece.turns:
        return Link(last, piece, Kind.SAME, len(piece.turns))
    if repeated := _repeated(last, piece, overlap, common):
        return Link(last, piece, Kind.SHARED, repeated, fits=repeated == overlap)
    answers = last.ends_with("user") and piece.begins_with("assistant") and piece.turns[piece.first] not in common
    if answers and (step in (0, 1) or overlap == 0):
        return Link(last, piece, Kind.ANSWER, piece.first, fits=overlap == 0)
    if step > 0 and overlap <= 0 and last.turns:
        return Link(last, piece, Kind.GAP if overlap else Kind.COUNT, fits=overlap == 0)
    return Link(last, piece, Kind.NOTHING)


def _repeated(last: Piece, piece: Piece, overlap: int, common: Collection[Message]) -> int:
    """How many turns at its beginning repeat the end of ``last``: as many as its number says, else as many as can be.

    A record that repeats another from its first turn on is a talk that opens alike, unless both have one number, or it
    is an answer that they begin with.
    """
    before, turns, first = last.turns, piece.turns, piece.first
    counted = 0 < overlap <= min(len(before), len(turns)) and before[-overlap:] == turns[:overlap]
    if counted and (overlap > 1 or turns[0] not in common or piece.number > last.number + 1):
        return overlap
    inside = last.begins_with("assistant") and turns[first : first + 1] and turns[first] not in common
    longest = len(before) if piece.number == last.number or inside else len(before) - 1
    for length in range(min(longest, len(turns) - first - 1), 0, -1):
        if before[-length] == turns[first] and before[-length:] == turns[first : first + length]:
            return 0 if length == 1 and turns[first] in common else first + length
    return 0


def style_of(some: Sequence[Family]) -> Style:
    """What the turns of a file show about its ids and its first turns.

    Numbers count turns where sessions that show it by a shared turn, or by an answer, are at least as many as those
    whose turns contradict it. A splitter that cuts before human turns leaves no such trace; then at least three
    sessions must fit from 0 on in every number, and three times as many as do not: numbers of unrelated talks hit the
    count of turns now and then, never all the time.
    """
    several = [f for f in some if f.links and any(p.numbered for p in f.pieces)]
    tallies = [f.tally() for f in several]
    shown = sum(f.shows_that_numbers_count_turns for f in several)
    against = sum(clashes > fits for fits, clashes, _ in tallies)
    fitting = sum(
        fits > 0 and not clashes and f.pieces[0].number == 0
        for f, (fits, clashes, _) in zip(several, tallies, strict=True)
    )
    counts_turns = shown >= max(1, against) or fitting >= max(3, 3 * (len(several) - fitting))
    return Style(counts_turns, _answers_continue(some))


def _answers_continue(some: Sequence[Family]) -> bool:
    """Not where most talks begin with the assistant, nor where answers come first whatever stood before."""
    greeted = sum(f.pieces[0].begins_with("assistant") for f in some)
    near = [k for f in some for k in f.links if k.piece.begins_with("assistant") and (k.step == 1 or k.fits)]
    explained = sum(k.kind >= Kind.ANSWER for k in near)
    return 2 * greeted <= len(some) and 10 * explained >= 9 * len(near)


def reasons_to_join(family: Family, style: Style, placed: bool) -> dict[int, Link]:
    """By the index of a record, the link to the one that it continues, where there is evidence enough.

    ``placed``: the family's numbers are the places of first turns.
    """
    enough = {
        Kind.SAME: lambda link: True,
        Kind.SHARED: lambda link: True,
        Kind.ANSWER: lambda link: style.answers_continue or (placed and link.fits),
        Kind.COUNT: lambda link: placed,
    }
    return {k.piece.index: k for k in family.links if k.kind in enough and enough[k.kind](k)}
