"""What an answer says and why it ended: its words, its reasoning kept apart, its tokens.

Services agree on the frame of an answer and on little inside it: reasoning comes in a field of its own or between
marks in the text, content as a string or as parts, counts as numbers or null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Finish = Literal["stop", "length", "content_filter"]

# Words that services use for the same three ends.
_CUT = {"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded", "token_limit"}
_FILTERED = {"content_filter", "content-filter", "contentfilter", "safety", "sensitive", "refusal", "recitation"}
_FILTERED |= {"prohibited_content", "blocklist", "spii", "guardrail_intervened"}
# The service broke off: what was said so far is no answer.
BROKEN_OFF = {"error", "network_error", "insufficient_system_resource", "abort", "aborted", "cancelled"}

_NAMES = r"(?:seed:|mm:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection)"
# (opening, closing) marks of reasoning inside a text, by the chat templates of those who use them.
_MARKS = tuple(
    (re.compile(opening, re.IGNORECASE), re.compile(closing, re.IGNORECASE))
    for opening, closing in (
        (rf"<\|?{_NAMES}\|?(?:\s[^<>]*)?>", rf"<\|?/\|?{_NAMES}\|?>"),  # DeepSeek, Qwen, EXAONE, Seed, MiniMax
        (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
        ("◁think▷", "◁/think▷"),  # Kimi
        (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # OpenThinker, Sky-T1
        (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
        (r"<\|channel>thought", r"<channel\|>"),  # Gemma
        (r"<unused94>(?:thought)?", "<unused95>"),  # MedGemma
        (
            r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>",
            r"(?:<\|end\|>|(?=<\|start\|>|<\|channel\|>final))",
        ),  # gpt-oss
    )
)
# What frames the answer behind its reasoning, in the same templates.
_FRAME = re.compile(
    r"</?answer>|<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>"
    r"|(?:<\|start\|>assistant)?<\|channel\|>final[^<]*<\|message\|>|<\|(?:return|end)\|>"
)
# gpt-oss where the server took its marks out and left their words.
_BARE_HARMONY = re.compile(r"\A\s*analysis(.*?)assistant\s*final(?=\S)", re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_OPEN_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_MENTION = re.compile(r"\W*(?:and|or|to|with|tags?)?\W*", re.IGNORECASE)  # "between <think> and </think>"
_MAYBE_MARK = re.compile(r"(?:<\|?(?:start|channel|end)\|?>[^<\n]{0,20})*(?:[<\[◁][^<\[\n]{0,20})?\Z")


@dataclass(frozen=True)
class Reply:
    """One answer. ``finish``: ``stop``, ``length`` (cut at a limit of tokens), ``content_filter``.

    ``reasoning``: what the model thought before it spoke, never part of ``text``. Token counts are the server's; 0
    where it sends none. ``completion_tokens`` holds those of the reasoning too.
    ``cached_tokens``: those of the prompt that it had read before; None where it does not tell. ``requests``: how many
    it took.
    """

    text: str
    finish: Finish = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning: str = ""
    requests: int = 1

    def joined(self, rest: Reply) -> Reply:
        """This reply gone on with by ``rest``, which may bring the beginning again (llama.cpp) or not (vLLM); both are
        paid."""
        again = bool(self.text) and rest.text.startswith(self.text)
        return Reply(
            rest.text if again else self.text + rest.text,
            rest.finish,
            self.prompt_tokens + rest.prompt_tokens,
            self.completion_tokens + rest.completion_tokens,
            rest.cached_tokens,
            "\n".join(filter(None, (self.reasoning, rest.reasoning))),
            self.requests + rest.requests,
        )

    @property
    def cut(self) -> bool:
        """Whether it stops in the middle: its end says nothing of where its speaker would have stopped."""
        return self.finish == "length"


def finish_of(reason: Any) -> Finish:
    """The service's word for the end of an answer as one of three; what is unknown or missing is ``stop``."""
    word = str(reason or "").lower()
    if word in _CUT:
        return "length"
    return "content_filter" if word in _FILTERED else "stop"


def separate(text: str) -> tuple[str, str]:
    """(what is said, what was thought) of a text with its reasoning between marks, also unclosed or unopened ones.

    Marks in code or merely spoken of ("between <think> and </think>") are words. Without reasoning the text is
    returned as it is, otherwise without the white space around it.
    """
    if bare := _BARE_HARMONY.match(text):
        return text[bare.end() :].strip(), bare[1].strip()
    said, rest, thought = "", text, []
    while True:
        opening, closing = _first(rest, 0, _OPEN_CODE), _first(rest, 1, _CODE)
        if closing and (not opening or closing[1].start() < opening[1].start()):
            # Its opening was part of the prompt: all before it was thought.
            thought.append(said + rest[: closing[1].start()])
            said, rest = "", rest[closing[1].end() :]
            continue
        if not opening:
            break
        kind, mark = opening
        end = _MARKS[kind][1].search(rest, mark.end())
        first_of_line = not (said + rest[: mark.start()]).rpartition("\n")[2].strip()
        spoken_of = end and not first_of_line and _MENTION.fullmatch(rest, mark.end(), end.start())
        if spoken_of or (not end and not first_of_line):
            stop = end.end() if spoken_of else mark.end()
            said, rest = said + rest[:stop], rest[stop:]
            continue
        said += rest[: mark.start()]
        thought.append(rest[mark.end() : end.start() if end else None])
        rest = rest[end.end() :] if end else ""
    said += rest
    if not thought:
        return text, ""
    return _FRAME.sub("", said).strip(), "\n".join(t.strip() for t in thought).strip()


def _first(text: str, side: int, code: re.Pattern[str]) -> tuple[int, re.Match[str]] | None:
    """The first mark outside code: (its kind, where); ``side`` 0: that opens, 1: that closes."""
    found = [(m.start(), kind, m) for kind, marks in enumerate(_MARKS) for m in marks[side].finditer(text) if m[0]]
    if not found:
        return None
    spans = [m.span() for m in code.finditer(text)]
    outside = [f for f in found if not any(start <= f[0] < end for start, end in spans)]
    return min(outside)[1:] if outside else None


class Voice:
    """A text that comes in pieces, for the ear: what is thought is left out, what may open a thought waits."""

    def __init__(self) -> None:
        self.whole, self._told = "", ""

    def hear(self, piece: str) -> str:
        """What can be shown of all that came up to now, and was not yet."""
        self.whole += piece
        return self._tell(_MAYBE_MARK.sub("", separate(self.whole)[0], count=1))

    def end(self) -> str:
        """What is left to show when nothing more comes."""
        return self._tell(separate(self.whole)[0])

    def _tell(self, said: str) -> str:
        if not said.startswith(self._told):  # it was thought after all; it cannot be taken back from the ear
            self._told = ""
        fresh, self._told = said[len(self._told) :], said
        return fresh


def read_reply(body: Mapping[str, Any]) -> tuple[Reply, bool]:
    """(the answer of a completion's JSON, whether it has any text). Raises ValueError where there is no message."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise ValueError("no message")
    text, inner = read_content(message.get("content"))
    field = read_reasoning(message)
    spoken, marked = separate(text or "")
    used = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    details = used.get("prompt_tokens_details")
    finish = "content_filter" if message.get("refusal") else finish_of(choice.get("finish_reason"))
    reply = Reply(
        spoken,
        finish,
        _count(used.get("prompt_tokens")) or 0,
        _count(used.get("completion_tokens")) or 0,
        _count(details.get("cached_tokens")) if isinstance(details, dict) else None,
        "\n".join(t for t in (field, inner, marked) if t),
    )
    return reply, text is not None


def read_content(content: Any) -> tuple[str | None, str]:
    """(text or None, reasoning) of a message's content: a string, or parts as several services send them."""
    if isinstance(content, str) or content is None:
        return content, ""
    parts = content if isinstance(content, list) else [content]
    said, thought = [], []
    for part in parts:
        if isinstance(part, str):
            said.append(part)
        elif isinstance(part, dict) and (inner := part.get("thinking", part.get("reasoning"))) is not None:
            thought.append(read_content(inner)[0] or "")
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            (thought if part.get("type") in ("thinking", "reasoning") else said).append(part["text"])
    return ("".join(said) if said else None), "".join(thought)


def read_reasoning(message: Mapping[str, Any]) -> str:
    """Reasoning from a field of its own: DeepSeek's, vLLM's and llama.cpp's name for it, or OpenRouter's."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        text, inner = read_content(message.get(name))
        if text or inner:
            return text or inner
    return ""


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 0 else None
