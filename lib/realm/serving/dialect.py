"""How one service wants to be asked: which fields it takes, under what names, and where the system message goes.

The profile says what is known beforehand; what a service itself names in a refusal is learned once and kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from realm.conversations.conversation import Message
from realm.core.profile import Endpoint
from realm.serving.faults import Complaint

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
SAMPLING = ("temperature", "top_p", "seed")

_NOT_TAKEN = re.compile(
    r"unsupported|not support|support(?:s|ed)? only|unrecogni[sz]ed|unknown|unexpected|not permitted|extra[_ ]"
    r"(?:forbidden|inputs?|fields?)|not allowed|only .{0,40}(?:allowed|supported|be set)|deprecated|not available"
    r"|cannot find field|not implemented|incompatible|invalid (?:parameter|field|argument)|unsupported_value|no longer"
)
_RANGE = re.compile(
    r"must be|should be|between|(?:less|greater|larger|smaller) than|out of range|at (?:most|least)|[<>]"
)
_BOTH = re.compile(r"\bboth\b|same time|simultaneously|mutually")
_NO_SYSTEM = re.compile(
    r"system.{0,30}(?:role|message|prompt|instruction).{0,60}(?:not|unsupported|un|in)\W?(?:support|allow|enabl|valid|accept)"
    r"|(?:not|un)\W?support\w*.{0,20}['\"`]?system|only (?:\w+,? (?:and )?)*roles? (?:is|are) supported"
    r"|unexpected (?:message )?role|invalid role|(?:developer|system) instruction is not enabled"
    r"|roles must alternate|(?:first|conversation).{0,30}must (?:be|start with).{0,20}user|got system"
)
_NO_DEVELOPER = re.compile(r"['\"`]developer['\"`]|developer (?:role|message)|unexpected message role")
# What makes an engine go on with the assistant's last message; others would answer it anew.
GO_ON = {"llama.cpp": {}, "vllm": {"continue_final_message": True, "add_generation_prompt": False}}


class Dialect:
    """The fields of a request to one endpoint. ``version`` counts what was learned."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint, self.version = endpoint, 0
        self._left_out = set(endpoint.leave_out)
        self._limit, self._limits_tried = endpoint.token_limit, {endpoint.token_limit}
        self._system_as, self._systems_tried = endpoint.system_as, {endpoint.system_as}

    def request(
        self, model: str, messages: Sequence[Message], seed: int, temperature: float | None, limit: int
    ) -> dict[str, Any]:
        """The words of a call: of the protocol's own fields those that this service takes.

        A last message of the assistant is a beginning that is to be gone on with; engines in GO_ON can do that.
        """
        e = self._endpoint
        values = {"temperature": e.temperature if temperature is None else temperature, "top_p": e.top_p, "seed": seed}
        values["max_tokens"] = limit
        taken = {name: value for name, value in values.items() if name not in self._left_out}
        if "max_tokens" in taken and self._limit != "max_tokens":
            taken[self._limit] = taken.pop("max_tokens")
        said = _placed(messages, self._system_as)
        fields = {**e.extra_body, **(GO_ON.get(e.engine, {}) if messages[-1].role == "assistant" else {})}
        extra = {"extra_body": fields} if fields else {}
        return {"model": model, "messages": [{"role": r, "content": c} for r, c in said], **taken, **extra}

    def learn(self, said: Complaint, request: dict[str, Any]) -> str | None:
        """Adapt to what a service says it does not take; the profile's line that says the same, None if none does."""
        if said.status in (401, 402, 403, 429):
            return None
        line = self._other_system(said, request) or self._fewer_fields(said, request)
        self.version += line is not None
        return line

    def _fewer_fields(self, said: Complaint, request: dict[str, Any]) -> str | None:
        sent = [n for n in (*SAMPLING, *TOKEN_LIMITS) if n in request]
        named = [n for n in sent if n in said.named] or [n for n in sent if re.search(rf"\b{n}\b", said.words)]
        neutral = [n for n in named if n == "top_p" and request[n] == 1.0]  # it does nothing
        if _BOTH.search(said.all) or (_RANGE.search(said.words) and not _NOT_TAKEN.search(said.all)):
            named = neutral  # of its value, not of the field
        elif not _NOT_TAKEN.search(said.all):
            return None
        if limits := [n for n in named if n in TOKEN_LIMITS]:
            [other] = set(TOKEN_LIMITS) - set(limits)
            if other not in self._limits_tried:
                self._limit = other
                self._limits_tried.add(other)
                return f"token_limit: {other}"
            named = [n for n in named if n not in limits]
        if not named:
            return None
        self._left_out |= set(named)
        return f"leave_out: [{', '.join(sorted(self._left_out))}]"

    def _other_system(self, said: Complaint, request: dict[str, Any]) -> str | None:
        roles = {m["role"] for m in request["messages"]}
        words = said.words.lower()
        if "developer" in roles and _NO_DEVELOPER.search(words):
            wanted = ["system", "first_user"]
        elif "system" in roles and _NO_SYSTEM.search(words):
            wanted = ["first_user"]
        else:
            return None
        for way in wanted:
            if way not in self._systems_tried:
                self._system_as = way
                self._systems_tried.add(way)
                return f"system_as: {way}"
        return None


def _placed(messages: Sequence[Message], system_as: str) -> list[tuple[str, str]]:
    said = [(m.role, m.content) for m in messages]
    if system_as == "developer":
        return [("developer" if role == "system" else role, content) for role, content in said]
    if system_as == "first_user" and said and said[0][0] == "system":
        (_, system), *rest = said
        if rest and rest[0][0] == "user":
            return [("user", f"{system}\n\n{rest[0][1]}"), *rest[1:]]
        return [("user", system), *rest]
    return said
