"""Answers kept as they come, by all that shaped them: whatever stops a run, nothing answered is asked again.

A file belongs to one endpoint's words (``serving.words``); in it each answer stands under a hash of what was asked:
messages, seed, temperature, length. So another question, prompt, seed or length is asked anew, and only that, while
pace, patience and code may change as they like.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from realm.conversations.conversation import Message
from realm.core.errors import note
from realm.core.files import ArtefactError, text_sha256
from realm.core.secrets import redacted
from realm.serving.client import Client, Reply
from realm.serving.words import digest, note_words


class KeptReply(NamedTuple):
    """``time``: when it came, seconds since 1970."""

    reply: Reply
    time: float


class Kept:
    """A client whose answers are kept in ``folder``, in ``NAME-HASH.journal.kept``; JSON lines, one an answer.

    Raises ArtefactError if the file cannot be read or written.
    """

    def __init__(self, client: Client, folder: Path, name: str):
        self.client = client
        # The temperature is said with each request, and the profile's is not asked for.
        words = {k: v for k, v in client.words.items() if k != "temperature"}
        self.path = folder / f"{name}-{digest(words)}.journal.kept"
        if why := note_words(self.path, words, folder.glob(f"{name}-*.journal.json")):
            note(why)
        self._known = self._read()

    async def complete(
        self, messages: Sequence[Message], seed: int, *, temperature: float, **options: Any
    ) -> KeptReply:
        """As the client's; an answer that is kept is not asked for. Raises EndpointError."""
        options["temperature"] = temperature
        key = self.key(messages, seed, **options)
        if key not in self._known:
            reply = await self.client.complete(messages, seed, **options)
            self._known[key] = KeptReply(reply, time.time())
            self._write(key, self._known[key])
        return self._known[key]

    def key(self, messages: Sequence[Message], seed: int, **options: Any) -> str:
        """``conversation`` says where to ask, not what."""
        asked = {k: v for k, v in options.items() if k != "conversation"}
        return text_sha256(json.dumps([[[m.role, m.content] for m in messages], seed, asked], sort_keys=True))

    def _read(self) -> dict[str, KeptReply]:
        if not self.path.exists():
            return {}
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ArtefactError(f"{self.path}: cannot be read ({error.strerror}); check permissions") from error
        whole, _, torn = content.rpartition(b"\n")
        if torn:  # a run was killed while it wrote its last answer
            with self.path.open("r+b") as handle:
                handle.truncate(len(content) - len(torn))
        names = {f.name for f in fields(Reply)}
        known = {}
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                record = json.loads(line)
                reply = Reply(**{k: v for k, v in record["reply"].items() if k in names})
                known[record["asked"]] = KeptReply(reply, record["time"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ArtefactError(
                    f"{self.path}: line {number} is no kept answer; take that line out: it alone is asked again"
                ) from error
        return known

    def _write(self, key: str, kept: KeptReply) -> None:
        record = {"asked": key, "time": kept.time, "reply": redacted(asdict(kept.reply))}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ArtefactError(f"{self.path}: cannot write ({error.strerror}); check permissions and space") from error
