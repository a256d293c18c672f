"""One run of the engine between two stub servers, its seeds and limits, and what others say of it."""

from __future__ import annotations

import asyncio
import contextlib

from realm.conversations.conversation import Conversation, Message
from realm.core.profile import Budget, Guardrails
from realm.dialogue.format import ChatFormat
from realm.serving.client import Address, Client
from realm.simulation.engine import Simulation
from realm.simulation.journal import Journal
from realm.simulation.plan import plan
from realm.simulation.simulators import USERGPT

HEADERS = {role: f"<{role}>" for role in ("system", "user", "assistant")}
FORMAT = ChatFormat("test", "<user>", HEADERS, dict.fromkeys(HEADERS, "<end>"), "\n", ("<user>", "<end>"))
SEEDS = [
    Conversation(f"seed-{i}", (Message("user", f"Question {i}?"), Message("assistant", f"Answer {i}.")))
    for i in range(5)
]


OFF = Guardrails(resample_tries=0, max_turn_characters=None, role_drift=False)
FREE = Budget(requests=None, tokens=None, dollars=None, user_price=None, responder_price=None)


class Stage:
    """One run of the simulation: settings in, conversations out; what the servers were asked stays with them."""

    def __init__(
        self,
        servers,
        folder,
        simulator=USERGPT,
        max_rounds=3,
        seed=7,
        rules=OFF,
        budget=FREE,
        counters=None,
        cut_turns="mark",
        **endpoint,
    ):
        self.servers, self.folder, self.simulator = servers, folder, simulator
        self.max_rounds, self.seed, self.endpoint = max_rounds, seed, endpoint
        self.rules, self.budget, self.counters = rules, budget, counters or {}
        self.cut_turns = cut_turns

    def run(self, starts):
        return asyncio.run(self.simulate(starts))

    async def simulate(self, starts):
        block = lambda server: server.endpoint(**{"context_length": 2048, **self.endpoint})  # noqa: E731
        user, responder = (
            server and Client(Address(server.url, "stub"), block(server), role)
            for server, role in zip(self.servers, ("user", "responder"), strict=True)
        )
        async with contextlib.AsyncExitStack() as stack:
            for client in filter(None, (user, responder)):
                stack.push_async_callback(client.close)
            with contextlib.closing(Journal(self.folder / "journal.sqlite")) as journal:
                engine = Simulation(
                    self.simulator,
                    user,
                    responder,
                    journal,
                    self.max_rounds,
                    self.seed,
                    lambda text: len(text.split()),
                    FORMAT,
                    self.rules,
                    self.budget,
                    counters=self.counters,
                    cut_turns=self.cut_turns,
                )
                try:
                    conversations = await engine.run(starts)
                finally:
                    self.resumed_turns, self.usage = engine.resumed_turns, journal.usage()
                    self.interventions = {i.outcome: i.answers for i in journal.interventions()}
                    self.effects, self.rejected = journal.interventions(), journal.rejected(9)
                    self.ended, self.reasons, self.thoughts = journal.ended(), journal.reasons(), journal.thoughts()
        return conversations


def as_told(conversations):
    return [c.to_record() for c in conversations]


def ended(servers, folder, **values):
    [talk] = Stage(servers, folder, **values).run(plan(1, 0, []))
    return talk.meta["end_reason"], [m.content for m in talk.messages]
