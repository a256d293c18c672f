"""Does this journal belong to these words? What shapes what is said in a simulation, and nothing else.

It lies here and not beside ``pipeline.identity``, which asks whether a stage may be skipped, because the simulation is
run by itself too (``python -m realm.simulation``), and wings import downwards only. What an endpoint adds is in
``serving.words``; what a conversation adds, the hash of its opening, in ``plan.Start.key``. How many conversations
there are, how long they may go on, what they may cost, and at what pace: all that goes on with what was said.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from realm.core.profile import Profile, Simulation
from realm.dialogue.format import ChatFormat
from realm.serving.words import endpoint_words
from realm.simulation.engine import RESPONDER_SYSTEM_PROMPT
from realm.simulation.simulators import Simulator


def responder_system(config: Simulation) -> str:
    """What the responder is told first, unless a conversation brings its own system turn."""
    return config.responder_prompt or RESPONDER_SYSTEM_PROMPT


def journal_identity(
    chosen: Profile, seed: int, folder: Path, simulator: Simulator, chat: ChatFormat
) -> dict[str, Any]:
    """All that shapes what is said: it names the journal. ``folder``: the run's, for the weights of its stages."""
    config = chosen.simulation
    sides = {"user": config.user, "responder": config.responder}
    return {
        "seed": seed,
        **{role: endpoint_words(e, folder) for role, e in sides.items() if e},
        # Of a script nothing is asked, so no prompt of it is sent.
        "simulator": asdict(simulator) if config.user else {"name": simulator.name},
        "responder_system": responder_system(config),
        # The other two ways say the same words: where a conversation ends is a view on them.
        **({"cut_turns": "continue"} if config.cut_turns == "continue" else {}),
        "guardrails": config.guardrails.model_dump(mode="json"),
        "template": asdict(chat),
    }
