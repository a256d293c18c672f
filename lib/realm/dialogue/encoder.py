"""From conversation to tokens and labels, each turn tokenized once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm.conversations.conversation import CONTEXT, ENDS_SESSION, Conversation, Message
from realm.core.profile import SFT, Profile, UserSFT
from realm.core.progress import Bar
from realm.dialogue.format import (
    ASSISTANT_SYSTEM_PROMPT,
    SYSTEM_PROMPTS,
    USER_SYSTEM_PROMPT,
    ChatFormat,
    TemplateError,
    chat_format,
    load_tokenizer,
)
from realm.dialogue.tokens import TokensError, Turns

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out
ENCODE_BATCH = 256


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

    def first_turn(self) -> Encoded:
        """The tokens up to the end of the first supervised turn: the same loss on it, and none on later ones."""
        end = int(np.flatnonzero(np.diff(self.labels != IGNORED, append=False) & (self.labels != IGNORED))[0]) + 1
        return replace(self, input_ids=self.input_ids[:end], labels=self.labels[:end])


@dataclass(frozen=True)
class Encoder:
    """Puts conversations together from the tokens of their turns, each tokenized once: linear in their length.

    ``supervise``: ``user``, ``assistant`` or ``both``. ``max_length`` in tokens, None for no limit. With
    ``ending`` a human turn of nothing but its end token follows where a session truly ends. ``context``: tokens of the
    answer before that a segment from within a session opens with; they are never supervised. ``turns``
    remembers tokens; ``dataclasses.replace(encoder, supervise=...)`` shares it. Raises TemplateError for a
    tokenizer that is slow, or whose tokens of a turn depend on the turns around it.
    """

    tokenizer: PreTrainedTokenizerBase
    format: ChatFormat
    supervise: str
    max_length: int | None
    system: str | None = ""
    ending: bool = False
    context: int = 0
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
        bar = Bar(total=len(conversations), desc="encoding", unit="conversations", disable=not progress)
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

    def last_tokens(self, text: str, count: int) -> str:
        """The end of ``text``, about ``count`` tokens of it, from the beginning of a token on."""
        near = text[-16 * count :]  # no tokenizer in use here has words of more letters on average
        offsets = self.tokenizer.backend_tokenizer.encode(near, add_special_tokens=False).offsets
        return near if len(offsets) <= count else near[offsets[-count][0] :]

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
        context, cut_turns = conversation.meta.get(CONTEXT, 0), conversation.cut_turns
        position, before = len(parts[0]), len(messages) - len(spoken)
        for i, (message, (ids, header)) in enumerate(zip(spoken, tokens, strict=True)):
            after = self._after(message.role, spoken[i + 1].role if i + 1 < len(spoken) else None)
            begin, end = self._frame_ids(message.role)
            parts += [begin, ids, end, after]
            start = position + 1 + header
            position += len(ids) + 2
            if self.supervise in (message.role, "both") and i >= context:
                # The end token learns with its turn, but not where the turn was cut: nobody stopped there.
                supervised.append((start, position - (before + i in cut_turns)))
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


def encoder_of(profile: Profile, block: str) -> Encoder:
    """The encoder of a training block: the tokenizer of its base model, its side, and the prompt of who is trained.

    ``block``: usergpt_sft or realm_sft. Notebooks, launched processes and the simulation all take it from here.
    Raises TemplateError for a tokenizer that the template cannot use, AssetError for a model that cannot be had.
    """
    config: SFT = getattr(profile, block)
    trains_user = isinstance(config, UserSFT)
    tokenizer = load_tokenizer(config.base_model)
    return Encoder(
        tokenizer,
        chat_format(profile.dialogue.template, tokenizer),
        config.supervise,
        profile.dialogue.max_length,
        USER_SYSTEM_PROMPT if trains_user else ASSISTANT_SYSTEM_PROMPT,
        ending=trains_user and config.learn_ending,
        context=profile.dialogue.context_tokens,
    )


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
