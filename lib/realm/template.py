"""From conversation to tokens: chat templates, label masks in one pass, the flip, the mask audit.

One ``ChatFormat`` gives both the text that training tokenizes and the Jinja template that servers render,
so that the two cannot drift apart; tests hold them equal token by token.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from realm import assets
from realm.conversation import ENDS_SESSION, Conversation, Message
from realm.tokens import Frame, TokensError, Turns

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out
ENCODE_BATCH = 256

# The paper's dyadic prompts state who talks with whom (its source/utils.py); the wording here is ours.
USER_SYSTEM_PROMPT = (
    "A curious human is talking with an AI assistant. The human may follow up on what was said before, "
    "or ask something entirely new that needs no context."
)
ASSISTANT_SYSTEM_PROMPT = (
    "A curious human is talking with an AI assistant. The assistant gives helpful, detailed and polite answers."
)
SYSTEM_PROMPTS = {
    "user": USER_SYSTEM_PROMPT,
    "assistant": ASSISTANT_SYSTEM_PROMPT,
    "both": ASSISTANT_SYSTEM_PROMPT,
}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model: asset name, local folder or Hub repository."""
    return AutoTokenizer.from_pretrained(assets.model(name))


class TemplateError(ValueError):
    """A conversation or a tokenizer that the template cannot take; the message names it and the fix."""


@dataclass(frozen=True)
class ChatFormat:
    """Text around the content of a turn: ``header CONTENT end separator``.

    The end token is supervised with its turn: it is how a speaker learns to stop. Headers, among them the
    begin token, come from the caller when serving, so they are never supervised.
    """

    name: str
    begin: str  # the special token in a speaker's header
    headers: dict[str, str]
    ends: dict[str, str]
    separator: str
    reserved: tuple[str, ...]

    def opening(self, role: str) -> str:
        """What of a speaker's header stands before the begin token."""
        return self.headers[role].partition(self.begin)[0]

    def frame(self, role: str) -> Frame:
        return Frame(self.begin, self.headers[role].partition(self.begin)[2], self.ends[role])

    def framed(self, message: Message) -> tuple[Frame, str]:
        """A turn as ``tokens.Turns`` takes it. Raises TemplateError for a reserved token in the content,
        or a system message after the first turn."""
        if message.role not in ("user", "assistant"):
            raise TemplateError(f"role {message.role}: only the first message of a conversation may have it")
        if any(token in message.content for token in self.reserved):
            raise TemplateError("content holds a reserved token; see cleaning.no_reserved_tokens")
        return self.frame(message.role), message.content

    def render(
        self, messages: Sequence[Message], system: str | None, reply_as: str | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Text of a conversation and, for each message, the characters [start, end) of content and end token.

        ``system`` opens the text unless the conversation brings its own; ``reply_as`` appends the header
        of the next speaker. Raises TemplateError for content that holds a reserved token.
        """
        if system is not None and not (messages and messages[0].role == "system"):
            text, _ = self.render([Message("system", system)], None)
        else:
            text = ""
        parts, spans, position = [text], [], len(text)
        for message in messages:
            if any(token in message.content for token in self.reserved):
                raise TemplateError("content holds a reserved token; see cleaning.no_reserved_tokens")
            header, end = self.headers[message.role], self.ends[message.role]
            start = position + len(header)
            stop = start + len(message.content) + len(end)
            parts += [header, message.content, end, self.separator]
            spans.append((start, stop))
            position = stop + len(self.separator)
        if reply_as:
            parts.append(self.headers[reply_as])
        return "".join(parts), spans

    def jinja(self, system: str, *, flipped: bool) -> str:
        """The chat template that servers render.

        Flipped: API role ``assistant`` is the human and API role ``user`` the AI assistant, so that any
        OpenAI-compatible server answers with the human's next turn. Without a system message ``system``
        opens the text; a list of only a system message, or an empty one, gives the header of an opening turn.
        """
        user, assistant = ("assistant", "user") if flipped else ("user", "assistant")
        quote = lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"  # noqa: E731
        turn = lambda role: (  # noqa: E731
            "{{ "
            + quote(self.headers[role])
            + " + message['content'] + "
            + quote(self.ends[role] + self.separator)
            + " }}"
        )
        opening = quote(self.render([Message("system", system)], None)[0])
        return (
            "{% if not messages or messages[0]['role'] != 'system' %}{{ " + opening + " }}{% endif %}"
            "{% for message in messages %}"
            "{% if message['role'] == 'system' %}"
            + turn("system")
            + "{% elif message['role'] == 'user' %}"
            + turn(user)
            + "{% elif message['role'] == 'assistant' %}"
            + turn(assistant)
            + "{% endif %}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ " + quote(self.headers[assistant]) + " }}{% endif %}"
        )


def chat_format(name: str, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """ChatML, or the paper's dyadic format ``ROLE: <s>TEXT</s>`` with the tokenizer's own begin and end tokens.

    Raises TemplateError if the tokenizer lacks the tokens or they are not single tokens.
    """
    if name == "chatml":
        begin, end = "<|im_start|>", "<|im_end|>"
        headers = {role: f"{begin}{role}\n" for role in ("system", "user", "assistant")}
        chosen = ChatFormat(name, begin, headers, dict.fromkeys(headers, end), "\n", (begin, end))
    elif name == "dyadic":
        begin, end = tokenizer.bos_token, tokenizer.eos_token
        if not begin or not end:
            raise TemplateError("template dyadic needs a tokenizer with a begin and an end token")
        headers = {"system": "", "user": f"Human: {begin}", "assistant": f"Assistant: {begin}"}
        ends = {"system": "", "user": end, "assistant": end}
        chosen = ChatFormat(name, begin, headers, ends, "\n", (begin, end))
    else:
        raise TemplateError(f"{name}: unknown template; allowed: chatml, dyadic")
    for token in chosen.reserved:
        if tokenizer.convert_ids_to_tokens(tokenizer(token, add_special_tokens=False).input_ids) != [token]:
            raise TemplateError(
                f"template {name}: {token!r} is not one token of this tokenizer; choose the other template"
            )
    return replace(chosen, reserved=tuple(dict.fromkeys((*chosen.reserved, *tokenizer.all_special_tokens))))


# ---------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens. ``labels`` equals ``input_ids`` where supervised, IGNORED elsewhere; int32, (T,)."""

    id: str
    input_ids: np.ndarray
    labels: np.ndarray
    cut: bool  # tokens beyond max_length were left out

    @property
    def supervised(self) -> int:
        return int((self.labels != IGNORED).sum())

    def without_tail(self) -> Encoded:
        """The tokens after the last supervised one carry no loss: the same training for less work."""
        last = int(np.flatnonzero(self.labels != IGNORED)[-1]) + 1
        return replace(self, input_ids=self.input_ids[:last], labels=self.labels[:last])


@dataclass(frozen=True)
class Encoder:
    """Puts conversations together from the tokens of their turns, each tokenized once: linear in their length.

    ``supervise``: ``user``, ``assistant`` or ``both``. ``max_length`` in tokens, None for no limit. With
    ``ending`` a human turn of nothing but its end token follows where a session truly ends. ``turns``
    remembers tokens; ``dataclasses.replace(encoder, supervise=...)`` shares it. Raises TemplateError for a
    tokenizer that is slow, or whose tokens of a turn depend on the turns around it.
    """

    tokenizer: PreTrainedTokenizerBase
    format: ChatFormat
    supervise: str
    max_length: int | None
    system: str | None = ""
    ending: bool = False
    turns: Turns | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.system == "":
            object.__setattr__(self, "system", SYSTEM_PROMPTS[self.supervise])
        if self.turns is None:
            try:
                object.__setattr__(self, "turns", Turns(self.tokenizer))
            except TokensError as error:
                raise TemplateError(str(error)) from error
            self._check_independence()

    def _check_independence(self) -> None:
        probe = tuple(Message(role, "\n\n Ab 1\n") for role in ("user", "assistant") * 2)
        text, _ = self.format.render(probe, self.system)
        whole = self.tokenizer(text, add_special_tokens=False).input_ids
        if self.encode(Conversation("probe", probe)).input_ids.tolist() != whole[: self.max_length]:
            raise TemplateError(
                f"template {self.format.name}: this tokenizer reads a turn differently inside a conversation; "
                "choose the other template"
            )

    def encode(self, conversation: Conversation) -> Encoded:
        return next(self.encode_all([conversation]))

    def encode_all(self, conversations: Sequence[Conversation], progress: bool = False) -> Iterator[Encoded]:
        """Encode in order, a batch at a time (the tokenizer uses all cores). Conversations with nothing
        supervised come out too, with ``supervised == 0``: the caller counts and drops them.
        Raises TemplateError for content that holds a reserved token."""
        bar = tqdm(total=len(conversations), desc="encoding", unit="conv", disable=not progress)
        with bar:
            for batch in _batches(conversations):
                whole = [with_ending(c) for c in batch] if self.ending else batch
                for conversation, tokens in zip(whole, self._turn_tokens(whole), strict=True):
                    yield self._join(conversation, tokens)
                bar.update(len(batch))

    def turn_lengths(self, conversations: Sequence[Conversation]) -> Iterator[list[int]]:
        """Tokens of each turn with its header, end and separator; the default system prompt counts for none."""
        for batch in _batches(conversations):
            for conversation, tokens in zip(batch, self._turn_tokens(batch), strict=True):
                yield self._lengths(conversation.messages, tokens)

    def system_length(self, first_role: str = "user") -> int:
        """Tokens of the system prompt before a first turn of that role."""
        return len(self._opening(self.system, [Message(first_role, "")])) - len(self._before(first_role))

    def _turn_tokens(self, conversations: Sequence[Conversation]) -> list[list[tuple[np.ndarray, int]]]:
        turns = [[self.format.framed(m) for m in _spoken(c.messages)] for c in conversations]
        flat = iter(self.turns.of([turn for of_one in turns for turn in of_one]))
        return [[next(flat) for _ in of_one] for of_one in turns]

    def _join(self, conversation: Conversation, tokens: list[tuple[np.ndarray, int]]) -> Encoded:
        """Opening, then begin token, turn, end token and what stands between two turns."""
        messages = conversation.messages
        spoken = _spoken(messages)
        own = messages[0].content if messages and messages[0].role == "system" else self.system
        parts, supervised = [self._opening(own, spoken)], []
        position = len(parts[0])
        for i, (message, (ids, header)) in enumerate(zip(spoken, tokens, strict=True)):
            after = self._after(message.role, spoken[i + 1].role if i + 1 < len(spoken) else None)
            begin, end = self._frame_ids(message.role)
            parts += [begin, ids, end, after]
            start = position + 1 + header
            position += len(ids) + 2
            if self.supervise in (message.role, "both"):
                supervised.append((start, position))  # the end token learns with its turn
            position += len(after)
        input_ids = np.concatenate(parts)
        labels = np.full(len(input_ids), IGNORED, dtype=np.int32)
        for start, stop in supervised:
            labels[start:stop] = input_ids[start:stop]
        cut = self.max_length is not None and len(input_ids) > self.max_length
        return Encoded(conversation.id, input_ids[: self.max_length], labels[: self.max_length], cut)

    def _lengths(self, messages: Sequence[Message], tokens: list[tuple[np.ndarray, int]]) -> list[int]:
        spoken = _spoken(messages)
        own = [len(self._opening(m.content, [])) for m in messages[: len(messages) - len(spoken)]]
        separator = len(self.turns.between(self.format.separator, False, False))
        around = {role: 2 + separator + len(self._before(role)) for role in ("user", "assistant")}
        return own + [around[m.role] + len(ids) for m, (ids, _) in zip(spoken, tokens, strict=True)]

    def _frame_ids(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        frame = self.format.frame(role)
        return self.turns.between(frame.begin, False, False), self.turns.between(frame.end, False, False)

    def _opening(self, system: str | None, spoken: Sequence[Message]) -> np.ndarray:
        text = "" if system is None else self.format.render([Message("system", system)], None)[0]
        if not spoken:
            return self.turns.between(text, False, False)
        return self.turns.between(text + self.format.opening(spoken[0].role) + self.format.begin, False, True)

    def _before(self, role: str) -> np.ndarray:
        """Header tokens before the begin token (dyadic: the speaker's name)."""
        return self.turns.between(self.format.separator + self.format.opening(role) + self.format.begin, False, True)[
            len(self.turns.between(self.format.separator, False, False)) :
        ]

    def _after(self, role: str, next_role: str | None) -> np.ndarray:
        end = self.format.frame(role).end + self.format.separator
        if next_role is None:
            return self.turns.between(end, True, False)
        return self.turns.between(end + self.format.opening(next_role) + self.format.begin, True, True)


def with_ending(conversation: Conversation) -> Conversation:
    """An empty human turn after an answer that is known to be a session's last: the human says nothing more.

    Its one supervised token is the end token, so no vocabulary grows, and any server shows such a reply as empty.
    """
    messages = conversation.messages
    if not conversation.meta.get(ENDS_SESSION) or messages[-1].role != "assistant":
        return conversation
    return replace(conversation, messages=(*messages, Message("user", "")))


def _batches(conversations: Sequence[Conversation]) -> Iterator[Sequence[Conversation]]:
    return (conversations[i : i + ENCODE_BATCH] for i in range(0, len(conversations), ENCODE_BATCH))


def _spoken(messages: Sequence[Message]) -> Sequence[Message]:
    """The turns after the system message, if the conversation brings one."""
    return messages[1:] if messages and messages[0].role == "system" else messages


# ---------------------------------------------------------------- splitting long conversations


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


# ---------------------------------------------------------------- looking at a mask


def audit_runs(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[tuple[bool, str]]:
    """The tokens decoded back to text as (supervised, text) runs: what the loss really sees."""
    supervised = encoded.labels != IGNORED
    edges = np.flatnonzero(np.diff(supervised)) + 1
    return [
        (bool(supervised[part[0]]), tokenizer.decode(encoded.input_ids[part]))
        for part in np.split(np.arange(len(supervised)), edges)
        if len(part)
    ]


def audit_text(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, limit: int = 1_200) -> str:
    """For terminals: supervised text between ⟦ and ⟧, the rest as it is."""
    text = "".join(f"⟦{t}⟧" if on else t for on, t in audit_runs(encoded, tokenizer))
    return text if len(text) <= limit else text[:limit] + " …"


def audit_html(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, limit: int = 1_500) -> str:
    """For notebooks: supervised text on blue, escaped, with the share of supervised tokens."""
    pieces, left = [], limit
    for on, text in audit_runs(encoded, tokenizer):
        shown = html.escape(text[:left])
        style = "background:#0072B2;color:white" if on else "color:#555"
        pieces.append(f'<span style="{style}">{shown}</span>')
        left -= len(text)
        if left <= 0:
            pieces.append(" …")
            break
    share = encoded.supervised / len(encoded.input_ids)
    head = f"{len(encoded.input_ids)} tokens, {share:.0%} supervised (blue)"
    return f'<p><b>{head}</b></p><pre style="white-space:pre-wrap">{"".join(pieces)}</pre>'


# ---------------------------------------------------------------- counting


def corpus_row(
    name: str, conversations: Sequence[Conversation], lengths: Sequence[Sequence[int]]
) -> dict[str, float | str]:
    """One row of the paper's corpus table. ``lengths``: tokens of each turn, as ``Encoder.turn_lengths`` gives them."""
    messages, tokens = sum(map(len, lengths)), sum(map(sum, lengths))
    return {
        "corpus": name,
        "conversations": len(conversations),
        "messages": messages,
        "tokens_per_message": round(tokens / messages, 2),
        "tokens_per_conversation": round(tokens / len(conversations), 2),
    }
