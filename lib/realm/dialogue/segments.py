"""Long conversations cut into segments that fit, without losing a turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from realm.conversations.conversation import ENDS_SESSION, Conversation
from realm.dialogue.encoder import Encoder, with_ending


def split_long(conversations: Sequence[Conversation], encoder: Encoder) -> list[list[Conversation]]:
    """For each conversation, segments that encode within ``encoder.max_length``; joined again they are it.

    A segment ends before the round (user turn and answer) that no longer fits. A round longer than the
    limit is split between its turns, and a turn longer than the limit stands alone: the encoder cuts it and
    says so (``Encoded.cut``). No turn is lost, no segment is empty, a trailing user turn is kept. With
    ``encoder.ending`` the ending that training adds has its place too.
    """
    room = encoder.max_length - max(map(encoder.system_length, ("user", "assistant")))
    lengths = encoder.turn_lengths([with_ending(c) for c in conversations] if encoder.ending else conversations)
    return [_segments(c, _own_turns(c, sizes), room) for c, sizes in zip(conversations, lengths, strict=True)]


def _own_turns(conversation: Conversation, lengths: list[int]) -> list[int]:
    """The ending, if one was measured, belongs to the last turn."""
    last = len(conversation.messages) - 1
    return [*lengths[:last], sum(lengths[last:])]


def _segments(conversation: Conversation, lengths: list[int], room: int) -> list[Conversation]:
    groups: list[list[int]] = []
    used = 0
    for unit in _units(conversation, lengths, room):
        size = sum(lengths[i] for i in unit)
        if groups and used + size <= room:
            groups[-1] += unit
            used += size
        else:
            groups.append(list(unit))
            used = size
    return cut_apart(conversation, groups)


def cut_apart(conversation: Conversation, groups: Sequence[Sequence[int]]) -> list[Conversation]:
    """A conversation's segments from the indices of their turns; only the last one may end the session."""
    if len(groups) == 1 and len(groups[0]) == len(conversation.messages):
        return [conversation]
    inside = {k: v for k, v in conversation.meta.items() if k != ENDS_SESSION} | {"session": conversation.session}
    ending = {ENDS_SESSION: True} if conversation.meta.get(ENDS_SESSION) else {}
    return [
        Conversation(
            f"{conversation.id}/{number}",
            tuple(conversation.messages[i] for i in group),
            inside | (ending if group[-1] == len(conversation.messages) - 1 else {}),
        )
        for number, group in enumerate(groups)
    ]


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
