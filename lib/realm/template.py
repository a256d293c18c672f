"""From conversation to tokens: chat templates, label masks in one pass, the flip, the mask audit.

One ``ChatFormat`` gives both the text that training tokenizes and the Jinja template that servers render,
so that the two cannot drift apart; tests hold them equal token by token.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from realm.conversation import Conversation, Message

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


class TemplateError(ValueError):
    """A conversation or a tokenizer that the template cannot take; the message names it and the fix."""


@dataclass(frozen=True)
class ChatFormat:
    """Text around the content of a turn: ``header CONTENT end separator``.

    The end token is supervised with its turn: it is how a speaker learns to stop. Headers, among them the
    begin token, come from the caller when serving, so they are never supervised.
    """

    name: str
    headers: dict[str, str]
    ends: dict[str, str]
    separator: str
    reserved: tuple[str, ...]

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
        chosen = ChatFormat(name, headers, dict.fromkeys(headers, end), "\n", (begin, end))
    elif name == "dyadic":
        begin, end = tokenizer.bos_token, tokenizer.eos_token
        if not begin or not end:
            raise TemplateError("template dyadic needs a tokenizer with a begin and an end token")
        headers = {"system": "", "user": f"Human: {begin}", "assistant": f"Assistant: {begin}"}
        ends = {"system": "", "user": end, "assistant": end}
        chosen = ChatFormat(name, headers, ends, "\n", (begin, end))
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
    """Tokenizes whole conversations once and masks by character spans: linear in their length.

    ``supervise``: ``user``, ``assistant`` or ``both``. ``max_length`` in tokens, None for no limit.
    """

    tokenizer: PreTrainedTokenizerBase
    format: ChatFormat
    supervise: str
    max_length: int | None
    system: str | None = ""

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise TemplateError("the label mask needs a fast tokenizer, which knows its character offsets")
        if self.system == "":
            object.__setattr__(self, "system", SYSTEM_PROMPTS[self.supervise])

    def encode(self, conversation: Conversation) -> Encoded:
        return next(self.encode_all([conversation]))

    def encode_all(self, conversations: Sequence[Conversation], progress: bool = False) -> Iterator[Encoded]:
        """Encode in order, a batch at a time (the tokenizer uses all cores). Conversations with nothing
        supervised come out too, with ``supervised == 0``: the caller counts and drops them."""
        bar = tqdm(total=len(conversations), desc="encoding", unit="conv", disable=not progress)
        with bar:
            for first in range(0, len(conversations), ENCODE_BATCH):
                batch = conversations[first : first + ENCODE_BATCH]
                rendered = [self.format.render(c.messages, self.system) for c in batch]
                tokens = self._tokenize([text for text, _ in rendered])
                for conversation, (_, spans), encoding in zip(batch, rendered, tokens, strict=True):
                    yield self._mask(conversation, encoding, spans)
                bar.update(len(batch))

    def turn_lengths(self, conversations: Sequence[Conversation]) -> Iterator[list[int]]:
        """Tokens of each turn with its header, end and separator; the system prompt counts for none."""
        for first in range(0, len(conversations), ENCODE_BATCH):
            batch = conversations[first : first + ENCODE_BATCH]
            rendered = [self.format.render(c.messages, self.system) for c in batch]
            encodings = self._tokenize([text for text, _ in rendered])
            for conversation, (text, spans), encoding in zip(batch, rendered, encodings, strict=True):
                edges = [
                    start - len(self.format.headers[m.role])
                    for (start, _), m in zip(spans, conversation.messages, strict=True)
                ]
                yield np.diff(np.searchsorted(_starts(encoding), [*edges, len(text)])).tolist()

    def system_length(self) -> int:
        return len(self._tokenize([self.format.render([], self.system)[0]])[0].ids)

    def _tokenize(self, texts: list[str]):
        batch = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=False
        )
        return batch.encodings

    def _mask(self, conversation: Conversation, encoding, spans: list[tuple[int, int]]) -> Encoded:
        starts = _starts(encoding)
        ids = np.asarray(encoding.ids, dtype=np.int32)
        chosen = [
            span
            for span, m in zip(spans, conversation.messages, strict=True)
            if m.role in ("user", "assistant") and self.supervise in (m.role, "both")
        ]
        if chosen:
            opens, closes = np.asarray(chosen).T
            # A token belongs to the turn in whose content it starts: one that straddles the header does not.
            turn = np.searchsorted(opens, starts, side="right") - 1
            inside = (turn >= 0) & (starts < closes[turn])
        else:
            inside = np.zeros(len(ids), dtype=bool)
        labels = np.where(inside, ids, IGNORED).astype(np.int32)
        cut = self.max_length is not None and len(ids) > self.max_length
        return Encoded(conversation.id, ids[: self.max_length], labels[: self.max_length], cut)


def _starts(encoding) -> np.ndarray:
    return np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding.ids))


# ---------------------------------------------------------------- splitting long conversations


def split_long(conversations: Sequence[Conversation], encoder: Encoder) -> list[list[Conversation]]:
    """For each conversation, segments that encode within ``encoder.max_length``; joined again they are it.

    A segment ends before the round (user turn and answer) that no longer fits. A round longer than the
    limit is split between its turns, and a turn longer than the limit stands alone: the encoder cuts it and
    says so (``Encoded.cut``). No turn is lost, no segment is empty, a trailing user turn is kept.
    """
    room = encoder.max_length - encoder.system_length()
    lengths = encoder.turn_lengths(conversations)
    return [_segments(c, sizes, room) for c, sizes in zip(conversations, lengths, strict=True)]


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
    if len(groups) <= 1:
        return [conversation]
    return [
        Conversation(
            f"{conversation.id}/{number}",
            tuple(conversation.messages[i] for i in group),
            {**conversation.meta, "session": conversation.session, "last_segment": number == len(groups) - 1},
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
