"""Chat formats: the text around a turn, in training and in serving.

One ``ChatFormat`` gives both the text that training tokenizes and the Jinja template that servers render,
so that the two cannot drift apart; tests hold them equal token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from realm.conversations.conversation import Message
from realm.core.errors import OneLineError
from realm.dialogue.tokens import Frame
from realm.models import assets

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


class TemplateError(OneLineError, ValueError):
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
            raise TemplateError("content holds a reserved token; see cleaning.presets.no_reserved_tokens")
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
                raise TemplateError("content holds a reserved token; see cleaning.presets.no_reserved_tokens")
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
