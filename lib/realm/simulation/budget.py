"""Budget: what a simulation has spent, when it must stop, and what it may come to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from realm.core.profile import Budget, Price, Simulation
from realm.simulation.records import Attempt, Usage

MILLION = 1_000_000


def dollars(budget: Budget, usage: Mapping[str, Usage]) -> float | None:
    """What ``usage`` (role of the speaker -> tokens) costs; None where nothing has a price."""
    prices = {"user": budget.user_price, "assistant": budget.responder_price}
    if not any(prices.values()):
        return None
    return sum(_cost(price, usage.get(role, Usage())) for role, price in prices.items() if price)


def _cost(price: Price, used: Usage) -> float:
    return (price.prompt * used.prompt_tokens + price.completion * used.new_tokens) / MILLION


def share(budget: Budget, of: int) -> Budget:
    """What each of ``of`` shards may spend: they do not know of each other."""
    limits = {
        "requests": budget.requests and max(1, budget.requests // of),
        "tokens": budget.tokens and max(1, budget.tokens // of),
        "dollars": budget.dollars and budget.dollars / of,
    }
    return budget.model_copy(update=limits)


class Ledger:
    """What is spent and in flight. Starts with what earlier runs spent, as the journal has it."""

    def __init__(self, budget: Budget, spent: Mapping[str, Usage]):
        self.budget, self.spent, self.in_flight = budget, dict(spent), 0

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """A request is on its way, or its answer not yet entered."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def open(self) -> bool:
        """Whether one more request may be sent. Requests are exact; tokens are known only after an answer."""
        total, cost = _sum(self.spent), dollars(self.budget, self.spent)
        limits = (
            (self.budget.requests, total.requests + self.in_flight),
            (self.budget.tokens, total.prompt_tokens + total.new_tokens),
            (self.budget.dollars, cost or 0.0),
        )
        return all(limit is None or spent < limit for limit, spent in limits)

    def add(self, paid: Attempt) -> None:
        """What one answer took."""
        role, before = paid.role, self.spent.get(paid.role, Usage())
        added = (1 + paid.gone_on, paid.prompt_tokens, paid.new_tokens)
        self.spent[role] = Usage(*(a + b for a, b in zip(before, added, strict=True)))

    def __str__(self) -> str:
        return _in_words(self.spent, self.budget)


def _sum(usage: Mapping[str, Usage]) -> Usage:
    return Usage(*(sum(column) for column in zip(Usage(), *usage.values(), strict=True)))


def _in_words(usage: Mapping[str, Usage], budget: Budget) -> str:
    total, cost = _sum(usage), dollars(budget, usage)
    words = f"{total.requests:,} requests, {total.prompt_tokens + total.new_tokens:,} tokens"
    return words if cost is None else f"{words}, ${cost:,.2f}"


@dataclass(frozen=True)
class Estimate:
    """What a run comes to if every turn is as long as it may be, until rounds or context end a conversation.

    Shorter turns need fewer tokens and, where the context is what ends a conversation, more requests.
    """

    conversations: int
    usage: Mapping[str, Usage]
    budget: Budget

    def __str__(self) -> str:
        words = _in_words(self.usage, self.budget)
        return f"{self.conversations:,} conversations with turns of full length: {words}"


def estimate(config: Simulation, openings: Iterable[int]) -> Estimate:
    """Of one conversation for each of ``openings``, the tokens of its opening round (0: the user opens)."""
    longest = {"user": config.user.max_new_tokens if config.user else 0, "assistant": config.responder.max_new_tokens}
    sides = {"user": config.user, "assistant": config.responder}
    ends = {role: e.context_length - e.max_new_tokens for role, e in sides.items() if e}

    @lru_cache
    def one(opening: int) -> dict[str, Usage]:
        said, used = opening, {"user": Usage(), "assistant": Usage()}
        for _ in range(config.max_rounds - bool(opening)):
            for role in ("user", "assistant"):
                if role in ends:
                    if said > ends[role]:
                        return used
                    used[role] = Usage(used[role][0] + 1, used[role][1] + said, used[role][2] + longest[role])
                said += longest[role]
        return used

    each = [one(opening) for opening in openings]
    usage = {r: Usage(*(sum(u[r][i] for u in each) for i in range(3))) for r in ("user", "assistant")}
    return Estimate(len(each), usage, config.budget)
