"""Does RealChat teach? Students of corpora that differ in who asks, evaluated on answers to real humans.

The responder's answers to held-out humans' turns are what a good student of that responder should give, so their
perplexity says which user's questions make an assistant ready for real users. No judge is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from realm.conversations.conversation import CONTEXT, Conversation
from realm.core.errors import TooFewError
from realm.core.fine_tunes import Teaching
from realm.dialogue.encoder import Encoded, Encoder
from realm.dialogue.segments import from_their_opening
from realm.simulation.plan import OF
from realm.training.base import TrainingError
from realm.training.controls import trained_by
from realm.training.launch import Job
from realm.training.likelihood import likelihood
from realm.training.rows import Selection, rows_sha256

BASE, REALCHAT, HUMANS = "base", "realchat", "humans"
EQUAL_TOKENS = "equal_tokens"
SHARE_NAMES = {0.25: "quarter", 0.5: "half", 0.75: "three_quarters"}


# ---------------------------------------------------------------- what students learn from


@dataclass(frozen=True)
class Student:
    """Who learned from what. ``way``: ``""`` for as many conversations as every other, ``equal_tokens`` for as many
    supervised tokens, or the share of RealChat; ``job``: None for the untrained base model."""

    corpus: str
    way: str = ""
    job: Job | None = None
    digest: str = ""  # of its rows: students of the same rows are one
    conversations: int = 0
    supervised: int = 0

    @property
    def name(self) -> str:
        """As metrics and folders call it."""
        return f"{self.corpus}_{self.way}" if self.way else self.corpus


def students(block: Teaching, job: Job, corpora: Mapping[str, Path]) -> list[Student]:
    """The base model first, then students by name, in the order in which they are shown.

    ``job`` trains ReaLM; ``corpora``: name -> conversations, those of the block. Of each corpus as many conversations
    as the smallest has, drawn by the seed; of RealChat the shares of that too; and, where asked for, rows of as many
    supervised tokens as the corpus with the fewest has in all, equal within one row.
    """
    encoder = job.encoder()
    jobs = {REALCHAT: job, **{name: replace(job, train=path) for name, path in corpora.items()}}
    whole = {name: _whole(name, one, encoder) for name, one in jobs.items()}
    sizes = {name: _conversations(found) for name, found in whole.items()}
    count, tokens = min(sizes.values()), min(found.supervised for found in whole.values())
    made = [Student(BASE)]
    for name, one in jobs.items():
        made.append(_student(name, "", replace(one, conversations=_limit(count, sizes[name])), job, encoder))
    for share in sorted(s for s in block.shares if s < 1):
        few = replace(job, conversations=max(1, round(share * count)))
        made.append(_student(REALCHAT, SHARE_NAMES.get(share, f"share_{round(100 * share)}"), few, job, encoder))
    if block.equal_tokens:
        for name, one in jobs.items():
            limited = replace(one, supervised_tokens=_limit(tokens, whole[name].supervised))
            made.append(_student(name, EQUAL_TOKENS, limited, job, encoder))
    return made


def _whole(name: str, job: Job, encoder: Encoder) -> Selection:
    try:
        return job.selection(encoder)
    except TrainingError as error:
        raise TooFewError(f"teaching.corpora: {name} has 0 conversations with an answer to learn from") from error


def _limit(most: int, there: int) -> int | None:
    """No limit where all is taken: then the rows are those of a training that has none."""
    return most if most < there else None


def _student(corpus: str, way: str, own: Job, realm: Job, encoder: Encoder) -> Student:
    student = Student(corpus, way)
    own, chosen = replace(own, folder=realm.folder / f"student_{student.name}"), own.selection(encoder)
    numbers = rows_sha256(chosen.rows), _conversations(chosen), chosen.supervised
    return Student(corpus, way, own, *numbers)


def _conversations(chosen: Selection) -> int:
    """Rows are segments, named after their conversation."""
    return len({row.id.rpartition("/")[0] or row.id for row in chosen.rows})


# ---------------------------------------------------------------- what they are evaluated on


@dataclass(frozen=True)
class Exam:
    """Rows of held-out conversations, by part: the responder's answers to the first human turn and to later ones, and
    ShareGPT's own answers of the same sessions (``first_round``, ``later_rounds``, ``own``)."""

    ids: list[str]
    parts: dict[str, list[Encoded]]


@dataclass(frozen=True)
class Marks:
    """Of one student: part -> (nll in nats, tokens), arrays of shape (conversations,); zero where there is nothing."""

    parts: dict[str, tuple[np.ndarray, np.ndarray]]

    def of(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """``answers`` are those of the responder, to first and later turns."""
        if part != "answers":
            return self.parts[part]
        first, later = self.parts["first_round"], self.parts["later_rounds"]
        return first[0] + later[0], first[1] + later[1]


def exam_of(answered: Sequence[Conversation], test: Sequence[Conversation], encoder: Encoder) -> Exam:
    """``answered``: held-out humans' turns replayed to the responder; ``test``: the split that they are from.

    Raises TooFewError for fewer than two conversations with an answer: nothing could be compared.
    """
    answered = [c for c in answered if c.rounds]
    if len(answered) < 2:
        raise TooFewError(
            f"teaching.held_out: {len(answered)} held-out conversations were answered, at least 2 are needed; raise "
            "seeded of that corpus in simulation.beside, or data_inspection.test_share"
        )
    real = {c.id: c for c in from_their_opening(test)}
    first = [c.with_turns(range(_after_first_round(c))) for c in answered]
    later = [replace(c, meta={**c.meta, CONTEXT: 2}) for c in answered if c.rounds > 1]
    own = [replace(_own(real[c.meta[OF]], c.rounds), id=c.id) for c in answered if c.meta.get(OF) in real]
    parts = {"first_round": first, "later_rounds": later, "own": own}
    return Exam([c.id for c in answered], {name: list(encoder.encode_all(some)) for name, some in parts.items()})


def _after_first_round(conversation: Conversation) -> int:
    return 2 + (conversation.messages[0].role == "system")


def _own(session: Conversation, rounds: int) -> Conversation:
    """So many rounds of a real session, up to where an answer is missing."""
    kept: list[int] = []
    for i, message in enumerate(session.messages):
        if kept and message.role == session.messages[kept[-1]].role:
            break
        if message.role == "user" and sum(session.messages[k].role == "user" for k in kept) == rounds:
            break
        kept.append(i)
    return session.with_turns(kept)


def marks_of(model: torch.nn.Module, exam: Exam, tokenizer: PreTrainedTokenizerBase, desc: str) -> Marks:
    """How likely the answers of an exam are under a model."""
    place = {name: i for i, name in enumerate(exam.ids)}
    parts = {}
    for part, rows in exam.parts.items():
        nll, tokens = np.zeros(len(place)), np.zeros(len(place))
        if any(row.supervised for row in rows):
            found = likelihood(model, rows, tokenizer, f"{desc}, {part.replace('_', ' ')}")
            where = [place[name] for name in found.ids]
            nll[where], tokens[where] = found.nll, found.tokens
        parts[part] = nll, tokens
    return Marks(parts)


def taught(
    found: Sequence[Student], known: Mapping[str, Marks], evaluate: Callable[[torch.nn.Module, str], Marks]
) -> dict[str, Marks]:
    """Name of a student -> its marks. ``known``: digest of rows -> marks of a model that is trained already ("" is the
    base model); each other student is trained, evaluated and let go. Raises TrainingError."""
    marks = dict(known)
    for student in found:
        if student.digest not in marks:
            marks[student.digest] = evaluate(trained_by(student.job), student.name)
    return {student.name: marks[student.digest] for student in found}
