"""How the conversations of a plan stand: how much of what the journal holds counts, and why no more is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from realm.conversations.conversation import CUT_TURNS, Conversation
from realm.simulation.endings import EndReason, SimulationError
from realm.simulation.journal import Journal
from realm.simulation.limits import Limits, speaker
from realm.simulation.plan import Start
from realm.simulation.records import Standing


def standings(journal: Journal, starts: Sequence[Start], limits: Limits) -> dict[str, Standing]:
    """Key -> standing under ``limits``; without a reason while the conversation may go on.

    Counted once for the same limits, and noted in the journal: counting tokens of all that was said takes a while.
    """
    known, ended, spoken = journal.stops(str(limits)), journal.ended(), journal.lengths()
    found, new = {}, {}
    for start in starts:
        if start.key in known:
            found[start.key] = known[start.key]
            continue
        turns = journal.turns(start.key) if start.key in spoken else []
        cut = journal.cut_turns(start.key) if limits.ends_at_cut else ()
        length, reason = limits.cut(start.opening, turns, cut)
        fact = ended.get(start.key)
        if fact == EndReason.CONTEXT_FULL:  # a server said so, under other limits than these
            fact = None
        found[start.key] = Standing(length, reason or fact)
        if found[start.key].reason not in (None, EndReason.BUDGET_SPENT):
            new[start.key] = found[start.key]
    journal.stop(new, str(limits))
    return found


def exported(journal: Journal, starts: Sequence[Start], limits: Limits, simulator: str) -> list[Conversation]:
    """The ended conversations of a plan, by id. Raises SimulationError if some have not ended."""
    standing = standings(journal, starts, limits)
    if missing := [s.id for s in starts if standing[s.key].reason is None]:
        raise SimulationError(f"{len(missing)} of {len(starts)} conversations have not ended, {missing[0]} first")
    return [
        Conversation(
            s.id,
            (*s.opening, *journal.turns(s.key)[: standing[s.key].length]),
            s.meta | _meta(s, standing[s.key], simulator, journal.cut_turns(s.key)),
        )
        for s in sorted(starts, key=lambda s: s.id)
    ]


def _meta(start: Start, standing: Standing, simulator: str, cut: list[int]) -> dict[str, Any]:
    meta = {"mode": start.mode, "end_reason": str(standing.reason), "simulator": simulator}
    shown = [place for place in cut if place < len(start.opening) + standing.length]
    return meta | {CUT_TURNS: shown} if shown else meta


def nobody_answered(journal: Journal, starts: Sequence[Start]) -> str | None:
    """Why no answer of one side was ever of use, where conversations failed for want of them; None otherwise."""
    answered, words = journal.answered(), journal.last_words()
    failed = [s for s in starts if s.key in words]
    for start in failed:
        role = speaker([*start.opening, *journal.turns(start.key)])
        if role not in answered:
            return (
                f"no answer of the {role} was of use, {len(failed)} of {len(starts)} conversations failed: "
                f"{words[start.key]}"
            )
    return None


def cut_turns(conversations: Sequence[Conversation]) -> Counter[str]:
    """Role -> how many of its turns stop in the middle."""
    return Counter(c.messages[i].role for c in conversations for i in c.cut_turns)


def end_reasons(conversations: Sequence[Conversation]) -> Counter[str]:
    return Counter(c.meta["end_reason"] for c in conversations)
