"""Long conversations cut into segments that fit, without losing a turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from realm.conversations.conversation import (
    CONTEXT,
    CUT_TURNS,
    ENDS_SESSION,
    PLACE,
    SESSION,
    Conversation,
    Message,
)
from realm.dialogue.encoder import Encoder, with_ending

MORE_BY_CUTTING = 4  # tokens that a text may gain when it is cut inside a word


def split_long(conversations: Sequence[Conversation], encoder: Encoder) -> list[list[Conversation]]:
    """For each conversation, segments that encode within ``encoder.max_length``; joined again they are it.

    A segment ends before the round (user turn and answer) that no longer fits. A round longer than the
    limit is split between its turns, and a turn longer than the limit stands alone: the encoder cuts it and
    says so (``Encoded.cut``). No turn is lost, no segment is empty, a trailing user turn is kept. With
    ``encoder.ending`` the ending that training adds has its place too; with ``encoder.context`` a segment that begins
    with a human turn from within a session opens with the end of the answer before it, and says so (``meta[CONTEXT]``).
    """
    room = encoder.max_length - max(map(encoder.system_length, ("user", "assistant")))
    reserve = _reserve(encoder)
    lengths = encoder.turn_lengths([with_ending(c) for c in conversations] if encoder.ending else conversations)
    cut = (_segments(c, _own_turns(c, sizes), room, reserve) for c, sizes in zip(conversations, lengths, strict=True))
    return [
        [_in_context(c, s, place, encoder) for place, s in of_one] for c, of_one in zip(conversations, cut, strict=True)
    ]


def _reserve(encoder: Encoder) -> int:
    """Tokens kept free for the context: what it brings, its frame, and some that cutting a word may add."""
    if not encoder.context:
        return 0
    [[frame]] = encoder.turn_lengths([Conversation("frame", (Message("assistant", ""),))])
    return encoder.context + frame + MORE_BY_CUTTING


def _in_context(whole: Conversation, segment: Conversation, place: int, encoder: Encoder) -> Conversation:
    """``segment``, whose first turn is the ``place``-th of ``whole``, with the end of the answer before it."""
    turns = whole.messages[max(0, place - 1) : place + 1]
    if not encoder.context or [m.role for m in turns] != ["assistant", "user"]:
        return segment
    before = Message("assistant", encoder.last_tokens(turns[0].content, encoder.context))
    shown = segment.with_turns(range(len(segment.messages)), before=[before])
    return replace(shown, meta=shown.meta | {CONTEXT: 1})


def without_context(segment: Conversation) -> Conversation:
    """A segment's own turns alone; none are left of an ending that stands alone."""
    own = segment.with_turns(range(segment.meta.get(CONTEXT, 0), len(segment.messages)))
    return replace(own, meta={key: value for key, value in own.meta.items() if key != CONTEXT})


def from_their_opening(segments: Sequence[Conversation]) -> list[Conversation]:
    """Each session that shows its first turn, a human's: its segments joined from there on, under the id of the first.

    A split holds no segment of a long answer alone: where only that is missing, the next human turn follows the one
    before it. At any other gap the conversation ends.
    """
    sessions: dict[str, list[Conversation]] = {}
    for segment in segments:
        sessions.setdefault(segment.session, []).append(segment)
    ordered = (sorted(parts, key=lambda c: c.meta.get(PLACE, 0)) for parts in sessions.values())
    return [_joined_again(parts) for parts in ordered if parts[0].opens_session]


def _joined_again(parts: Sequence[Conversation]) -> Conversation:
    messages: list[Message] = []
    cut: list[int] = []
    place, ends = 0, False
    for part in parts:
        own = without_context(part)
        missing = part.meta.get(PLACE, 0) - place
        between_humans = messages and own.messages and messages[-1].role == own.messages[0].role == "user"
        if missing != (1 if between_humans else 0):
            break
        cut += [len(messages) + i for i in sorted(own.cut_turns)]
        messages += own.messages
        place, ends = place + missing + len(own.messages), bool(part.meta.get(ENDS_SESSION))
    meta = {k: v for k, v in parts[0].meta.items() if k not in (CUT_TURNS, ENDS_SESSION)}
    meta |= ({CUT_TURNS: cut} if cut else {}) | ({ENDS_SESSION: True} if ends else {})
    return replace(parts[0], messages=tuple(messages), meta=meta)


def ending_alone(segment: Conversation, encoder: Encoder) -> Conversation | None:
    """What a closing answer without a human turn still teaches: that the human has nothing more to say. None if the end
    of its session is not known or not learned.

    The answer is shown like any answer before a segment, by its end, so that its length does not tell that it was the
    last; where ``encoder.context`` is 0, as much of it as fits.
    """
    if not encoder.ending or not segment.meta.get(ENDS_SESSION) or segment.messages[-1].role != "assistant":
        return None
    [frames] = encoder.turn_lengths([Conversation("frames", (Message("assistant", ""), Message("user", "")))])
    room = encoder.max_length - encoder.system_length("assistant") - sum(frames) - MORE_BY_CUTTING
    shown = min(encoder.context or room, room)
    if shown < 1:
        return None
    answer = Message("assistant", encoder.last_tokens(segment.messages[-1].content, shown))
    bare = segment.with_turns([], before=[answer])
    return replace(bare, meta=bare.meta | {CONTEXT: 1})


def _own_turns(conversation: Conversation, lengths: list[int]) -> list[int]:
    """The ending, if one was measured, belongs to the last turn."""
    last = len(conversation.messages) - 1
    return [*lengths[:last], sum(lengths[last:])]


def _segments(
    conversation: Conversation, lengths: list[int], room: int, reserve: int
) -> list[tuple[int, Conversation]]:
    """(place of its first turn, segment); all but the first leave ``reserve`` tokens of the room free."""
    groups: list[list[int]] = []
    used = 0
    for unit in _units(conversation, lengths, room - reserve):
        size = sum(lengths[i] for i in unit)
        if groups and used + size <= room:
            groups[-1] += unit
            used += size
        else:
            used = size + (reserve if groups else 0)
            groups.append(list(unit))
    return list(zip((group[0] for group in groups), cut_apart(conversation, groups), strict=True))


def cut_apart(conversation: Conversation, groups: Sequence[Sequence[int]]) -> list[Conversation]:
    """A conversation's segments from the indices of their turns; only the last one may end the session. ``meta`` says
    where in it they stand."""
    if len(groups) == 1 and len(groups[0]) == len(conversation.messages):
        return [conversation]
    inside = {k: v for k, v in conversation.meta.items() if k != ENDS_SESSION} | {SESSION: conversation.session}
    return [
        _part(replace(conversation, meta=inside), conversation, number, group) for number, group in enumerate(groups)
    ]


def _part(inside: Conversation, whole: Conversation, number: int, group: Sequence[int]) -> Conversation:
    part = inside.with_turns(group)
    meta = part.meta | {PLACE: whole.meta.get(PLACE, 0) + group[0]}
    if whole.meta.get(ENDS_SESSION) and group[-1] == len(whole.messages) - 1:
        meta[ENDS_SESSION] = True
    return replace(part, id=f"{whole.id}/{number}", meta=meta)


def _units(conversation: Conversation, lengths: list[int], room: int) -> Iterator[list[int]]:
    """Indices of turns that should stay together: a round where it fits, else each turn alone."""
    i = 0
    roles = [m.role for m in conversation.messages]
    while i < len(roles):
        is_round = roles[i] == "user" and roles[i + 1 : i + 2] == ["assistant"]
        if is_round and lengths[i] + lengths[i + 1] <= room:
            yield [i, i + 1]
            i += 2
        else:
            yield [i]
            i += 1
