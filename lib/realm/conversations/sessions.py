"""Segments joined back to the session they were cut from, so that a true end can be told from a cut.

ShareGPT dumps were split for training: ``SESSION_N`` holds the turns from the session's N-th on (FastChat's and
the authors' splitters; other dumps number the segments themselves). Neighbours may share a turn: the splitter
starts the next segment with the answer that closed the last one, so that answer is in the file twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from realm.conversations.conversation import ENDS_SESSION, Conversation, split_segment_id
from realm.conversations.readers import ReadReport

NAMELESS = re.compile(r"record (\d+)(?: at byte |\Z)")  # how a report calls a skipped record whose id cannot be read


def unknown_ends(report: ReadReport, conversations: Sequence[Conversation]) -> set[str]:
    """Sessions whose end the file does not show: a segment was unusable, or reading stopped within.

    ``report`` of the whole file, ``conversations`` as they were read, from the first on.
    """
    sessions = {split_segment_id(identifier)[0] for identifier in report.skipped_ids}
    for skipped_before, identifier in enumerate(report.skipped_ids):
        nameless = NAMELESS.match(identifier)
        place = int(nameless[1]) - skipped_before - 1 if nameless else -1
        if 0 <= place < len(conversations):
            sessions.add(conversations[place].session)  # the record may have been its next segment
    if conversations and (report.file_defect or report.read > len(conversations)):
        sessions.add(conversations[-1].session)
    return sessions


@dataclass(frozen=True)
class Joined:
    """What became of one segment: the conversation that stands in its place, None where it went into another."""

    conversation: Conversation | None
    reason: str = ""


def join_segments(conversations: Sequence[Conversation], no_end: Collection[str] = ()) -> list[Joined]:
    """One conversation a session, in place of its first segment; where turns are missing, one a stretch.

    ``no_end``: sessions whose last turn is not known to be their end. Turns that two segments share stand
    once. The result keeps the id of its first segment.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for i, conversation in enumerate(conversations):
        places[conversation.session].append(i)
    places_taken = [Joined(None, "joined to the segments before it") for _ in conversations]
    for session, indices in places.items():
        # By length too: an answer that closed a segment alone opens the next one under the same number.
        ordered = sorted(
            indices, key=lambda i: (split_segment_id(conversations[i].id)[1] or 0, len(conversations[i].messages))
        )
        stretches = _stretches([conversations[i] for i in ordered])
        for number, (first, parts) in enumerate(stretches):
            known = number == len(stretches) - 1 and session not in no_end
            places_taken[ordered[first]] = _joined(session, parts, known, broken=number > 0)
    return places_taken


def _stretches(segments: list[Conversation]) -> list[tuple[int, list[Conversation]]]:
    """(index of the first segment, segments whose turns follow one another) with shared turns taken off."""
    stretches: list[tuple[int, list[Conversation]]] = []
    start, end = None, None  # the session's turns that the last segment holds: [start, end)
    last: Conversation | None = None
    for i, segment in enumerate(segments):
        number = split_segment_id(segment.id)[1]
        shared = _shared_turns(last, start, end, segment, number)
        if shared is None:
            stretches.append((i, [segment]))
        else:
            stretches[-1][1].append(_from_turn(segment, shared))
        start, last = number, segment
        end = None if number is None else number + len(segment.messages)
    return stretches


def _shared_turns(
    last: Conversation | None, start: int | None, end: int | None, segment: Conversation, number: int | None
) -> int | None:
    """How many turns the segment repeats from the one before it; None if it does not follow on."""
    if last is None or number is None or end is None:
        return None
    shared = end - number
    if 0 <= shared <= len(segment.messages) and (
        shared == 0 or last.messages[len(last.messages) - shared :] == segment.messages[:shared]
    ):
        return shared
    return 0 if number == start + 1 else None  # segments numbered one by one


def _from_turn(segment: Conversation, turn: int) -> Conversation:
    return Conversation(segment.id, segment.messages[turn:], segment.meta)


def _joined(session: str, parts: list[Conversation], end_known: bool, broken: bool) -> Joined:
    messages = tuple(m for part in parts for m in part.messages)
    brought = {k: v for k, v in parts[0].meta.items() if k != ENDS_SESSION}
    meta = brought | {"session": session, "segments": len(parts)}
    if end_known:
        meta[ENDS_SESSION] = True
    reason = "turns missing before it" if broken else "joined" if len(parts) > 1 else ""
    return Joined(Conversation(parts[0].id, messages, meta), reason)
