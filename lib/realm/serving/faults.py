"""What a service says when it does not answer: its own words, of what kind they are, and what to change.

Status codes alone tell little: a 403 is a refused key at one service and one flagged sentence at another, a 429 a
pace or an empty account, a 400 nearly anything, and some errors come inside a 200.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from realm.core.errors import OneLineError
from realm.core.secrets import redact
from realm.serving.reply import BROKEN_OFF, Reply

SHOWN = 300  # characters of a service's words
STOPPING = ("refused", "no_credit")
PASSING = "unreachable"


class EndpointError(OneLineError, RuntimeError):
    """An endpoint that does not do what is asked; one line with address, reason and fix.

    ``kind``: ``unreachable`` (it may work in a while: down, too busy, too slow), ``refused`` (key, permission, model
    name or path) and ``no_credit`` (nobody can ask on); and of one request alone: ``context`` (too long), ``filtered``
    (by moderation), ``reasoning`` (nothing else came), ``failed``.
    ``reason``: the message without the endpoint's name. ``paid``: the answer that came all the same and cannot be
    used; its tokens count. ``wait``: seconds that the service asks to be left alone.
    """

    def __init__(
        self, kind: str, message: str, paid: Reply | None = None, *, reason: str = "", wait: float | None = None
    ):
        super().__init__(redact(message))
        self.kind, self.paid, self.wait = kind, paid, wait
        self.reason = redact(reason or message)

    @property
    def passing(self) -> bool:
        return self.kind == PASSING

    @property
    def stops(self) -> bool:
        """Whether asking on, for whatever conversation, is of no use."""
        return self.kind in STOPPING


@dataclass(frozen=True)
class Complaint:
    """An error as a service put it. ``codes``: its short names for it; ``named``: fields of the request at fault."""

    status: int
    words: str
    codes: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()

    @property
    def all(self) -> str:
        return " ".join([self.words.lower(), *sorted(self.codes)])


_SPOKEN = ("message", "msg", "detail", "error", "errors", "raw", "error_msg", "status_msg", "description", "title")
_CODES = ("code", "type", "status", "error_type", "status_code")


def complaint_of(status: int, text: str) -> Complaint:
    """An error's body, JSON or a page, as a complaint."""
    try:
        body = json.loads(text)
    except ValueError:
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        page = title[1] if title else re.sub(r"<[^>]*>", " ", text)
        return Complaint(status, _line([page]) or "no words")
    return _complaint(status, body)


def complaint_inside(body: dict[str, Any]) -> Complaint | None:
    """The error inside an answer of status 200, or None where there is none: beside the choices, or in one."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    if choice is None:
        told = body.get("error") or body.get("detail") or body.get("message") or body.get("base_resp")
        return _complaint(200, body) if told else None
    if choice.get("error"):
        return _complaint(502, choice["error"])
    if str(choice.get("finish_reason")).lower() in BROKEN_OFF:
        return Complaint(502, f"the answer broke off (finish_reason {choice['finish_reason']})")
    return None


def _complaint(status: int, body: Any) -> Complaint:
    words, codes, named = [], set(), set()
    for key, value in _leaves(body):
        if key in _SPOKEN:
            words.append(value)
        elif key in _CODES:
            codes.add(str(value).lower())
        elif key == "param":
            named.add(str(value))
        elif key == "loc":
            named.add(value.rpartition(".")[2])
            words.append(value)
    inside = sorted(int(c) for c in codes if c.isdecimal() and 400 <= int(c) < 600)
    # Within a 200, and where a server wraps another's error, the number in the body is the better one.
    status = inside[0] if inside and status == 200 else status
    return Complaint(status, _line(words) or _line([json.dumps(body)]), frozenset(codes), frozenset(named))


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of all that is said anywhere in an error's body, JSON inside strings included."""
    if isinstance(value, dict):
        if isinstance(value.get("loc"), list):
            yield "loc", ".".join(map(str, value["loc"]))
        for name, inner in value.items():
            if name not in ("loc", "input", "flagged_input", "url"):
                yield from _leaves(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    elif isinstance(value, str) and value.strip()[:1] in ("{", "["):
        try:
            yield from _leaves(json.loads(value), key)
        except ValueError:
            yield key, value
    elif isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        yield key, str(value) if key in _SPOKEN else value


def _line(words: list[str]) -> str:
    # Redacted before it is cut: half a key is one too.
    text = redact(" ".join("; ".join(dict.fromkeys(words)).split()))
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


# ---------------------------------------------------------------- of what kind

_FILTER_CODES = {
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "data_inspection_failed",
    "datainspectionfailed",
    "moderation_blocked",
    "moderation",
    "1301",
}
_FILTERED = re.compile(
    r"flagged|moderation|content (?:management |filter|policy|violat)|content_?filter|contentpolicy|inappropriate"
    r"|safety (?:system|policy|filter|guideline|check)|violat\w+ .{0,40}(?:polic|guideline|terms)|usage guidelines"
    r"|harmful|prohibited content|blocked by .{0,30}(?:guardrail|polic|filter)|sensitive (?:content|information|words)"
)
_CREDIT_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "arrearage",
    "budget_exceeded",
    "insufficient_balance",
    "insufficient_credits",
    "credits_exhausted",
    "credit_required",
    "exceeded_current_quota_error",
}
_CREDIT = re.compile(
    r"insufficient (?:balance|credit|fund|quota)|not enough (?:balance|credit|fund|quota)|out of (?:credit|quota)"
    r"|credit balance is too low|no credits|any credits|available credits|requires more credits|spending limit"
    r"|credits? (?:are |is |has been |have been )?(?:depleted|exhausted|used up)|exceeded your current quota"
    r"|billing (?:hard )?limit|check your (?:plan and )?billing|account is not active|budget has been exceeded"
    r"|exceeded (?:your|its|the) (?:monthly )?budget|payment required|overdue|account is in good standing"
)
_SOON = re.compile(
    r"(?:retry|try again|wait|reset)s? (?:in|after) |retrydelay|per (?:minute|second|day)|resource_exhausted"
)
_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error", "contextwindowexceedederror", "3051"}
_CONTEXT = re.compile(
    r"(?:context|sequence)[ _](?:length|window|size)[^.]{0,60}(?:exceed|too|overflow|not enough|is only|reached)"
    r"|(?:exceed|overflow|longer|larger|greater|more|too (?:long|large|big|many))\w*[^.]{0,60}"
    r"(?:context|sequence)[ _]?(?:length|window|size|limit)"
    r"|maximum (?:context|sequence|input|prompt) length|maximum (?:input|prompt) (?:token|size)"
    r"|context the overflows|n_keep.{0,20}>= ?n_ctx"
    r"|(?:prompt|input|request|conversation|messages?)(?: \w+)? (?:is|are|was|were) too (?:long|large|big)"
    r"|too many (?:input |prompt )?tokens|reduce the length of|range of input length"
    r"|(?:input|prompt) (?:token )?(?:count|length|tokens?)[^.]{0,60}(?:exceed|longer|larger|greater)"
    r"|(?:input|prompt)[^.]{0,60}exceed[^.]{0,60}(?:token|length|limit|size)"
    r"|inputs?`?\s*(?:tokens? \+ .{0,20}max_new_tokens|must have less than)|max_tokens must be at least 1, got -"
    r"|request too large|input is too long|max_model_len"
)
_KEY = re.compile(
    r"(?:invalid|incorrect|missing|no|not valid|expired|wrong|bad)[^.]{0,20}(?:api[ _-]?key|token provided)"
    r"|api[ _-]?key (?:is )?(?:not valid|invalid|expired|missing|not found)|invalid_api_key|unauthorized"
)
_PASSING_STATUS = {408, 409, 424, 425, 429, 498}


def kind_of(said: Complaint, worked: bool) -> str:
    """The kind of an EndpointError. ``worked``: the endpoint has answered before with this key."""
    words, codes = said.all, said.codes
    if codes & _FILTER_CODES or (said.status in (200, 400, 403, 422, 451) and _FILTERED.search(words)):
        return "filtered"
    soon = said.status == 429 and _SOON.search(words) and "insufficient_quota" not in codes
    if said.status == 402 or codes & _CREDIT_CODES or (_CREDIT.search(words) and not soon):
        return "no_credit"
    if codes & _CONTEXT_CODES or (said.status not in (401, 403, 429) and _CONTEXT.search(words)):
        return "context"
    if said.status in (401, 407) or (said.status in (200, 400) and _KEY.search(words)):
        return "refused"
    if said.status == 403:
        # A key that has worked is not refused in the middle: a guard before the service took offence at something.
        return "failed" if worked else "refused"
    if said.status in (404, 405, 410):
        return "refused"
    if said.status in _PASSING_STATUS or said.status >= 500:
        return PASSING
    return "failed"


def explain(said: Complaint, worked: bool, key_name: str | None, sent: frozenset[str]) -> tuple[str, str]:
    """(kind, one line: what is wrong, and what to change). ``sent``: fields of the request."""
    kind = kind_of(said, worked)
    key = key_name or "api_key_env, which is not set"
    names = {n for n in sent if n in said.named or re.search(rf"\b{n}\b", said.words)}
    match kind:
        case "refused" if said.status in (404, 405, 410):
            what = f"no such model or path ({said.status}); correct model or base_url"
        case "refused":
            what = f"the key is refused ({said.status}); check {key}"
        case "no_credit":
            what = f"no credit is left ({said.status}); top up the account{f' behind {key_name}' if key_name else ''}"
        case "context":
            what = "the conversation is too long"
        case "filtered":
            what = f"its moderation takes offence ({said.status})"
        case "unreachable" if said.status == 429:
            fix = "wait, or lower concurrency or requests_per_minute in the profile"
            what = f"too many requests (429) after all retries; {fix}"
        case "unreachable":
            what = f"it is down or too busy ({said.status}) after all retries"
        case _ if names:
            keys = ", ".join(sorted(names))
            what = f"it does not take {keys} as sent ({said.status}); change {_profile_keys(names)} of the endpoint"
        case _:
            fix = "what is sent can be changed by leave_out, extra_body, token_limit or system_as of the endpoint"
            what = f"it refuses the request ({said.status}); {fix}"
    return kind, what


def _profile_keys(names: set[str]) -> str:
    """Where each field of a request comes from."""
    own = {"max_tokens": "max_new_tokens or token_limit", "max_completion_tokens": "max_new_tokens or token_limit"}
    own |= {"messages": "system_as", "model": "model"}
    keys = [own.get(n, f"{n} or leave_out: [{n}]" if n in ("temperature", "top_p") else "") for n in sorted(names)]
    keys += [f"leave_out: [{n}]" for n in sorted(names) if n == "seed"]
    keys += ["extra_body"] if names - own.keys() - {"temperature", "top_p", "seed"} else []
    return ", ".join(dict.fromkeys(k for k in keys if k))
