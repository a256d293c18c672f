"""The client: any OpenAI-compatible service, with errors of one line.

The client is the ``openai`` package; what is added here are one-line errors, bounds on what is in flight and on
how fast it is sent, and keys that come from the environment and go nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import openai
from tqdm import tqdm

from realm.conversations.conversation import Message
from realm.core.profile import Endpoint
from realm.core.progress import Bar
from realm.core.secrets import redact
from realm.serving.dialect import GO_ON, Dialect
from realm.serving.faults import (
    PASSING,
    SHOWN,
    Complaint,
    EndpointError,
    complaint_inside,
    complaint_of,
    explain,
)
from realm.serving.reply import Reply, Voice, finish_of, read_content, read_reasoning, read_reply, separate
from realm.serving.wire import http_client, split_query, wait_of
from realm.serving.words import endpoint_words

T = TypeVar("T")
CHECK_SECONDS = 3  # for a service's list of models; whoever is slower than this is not there
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WAIT = 0.5, 8.0, 60.0  # seconds: before a retry; at a service's own wish
# A key that may ask and not list is no wrong key, though some services call it one.
NO_RIGHT_TO_LIST = re.compile(r"scope|permission|not allowed|access to (?:the )?(?:models?|list)", re.IGNORECASE)
Asked = tuple[Sequence[Message], int, float | None, int]  # messages, seed, temperature, most new tokens


class Refused(Exception):
    """What a service says instead of an answer, before it is known what that means for the caller."""

    def __init__(self, said: Complaint, wait: float | None):
        super().__init__(said.words)
        self.said, self.wait = said, wait


@dataclass(frozen=True)
class Address:
    """Where an endpoint listens. Key and headers do not show in ``repr``. ``more``: further servers of the model."""

    base_url: str
    model: str
    key: str = ""
    more: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Address({self.model} at {self.base_url})"


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. The first error ends the others and is raised by itself, not wrapped in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(c) for c in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [t.result() for t in tasks]


class Pace:
    """Lets requests start evenly, at most ``per_minute`` in any minute; None lets all start at once."""

    def __init__(self, per_minute: int | None):
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self, *_: object) -> None:
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._gap
        await asyncio.sleep(start - now)


class Client:
    """Chat completions against one address, within the concurrency and rate of its endpoint.

    Of several servers at that address a request goes to the least busy, and of equally busy ones to the home of
    the fewest conversations; a conversation stays with the one that has read its history.
    """

    def __init__(self, address: Address, endpoint: Endpoint, role: str, words: Mapping[str, Any] | None = None):
        """``words``: what shapes those of this endpoint, where that is more than it says itself (``serving.words``)."""
        self.address, self.endpoint, self.role = address, endpoint, role
        self.words = endpoint_words(endpoint) if words is None else words
        self._gate = asyncio.Semaphore(endpoint.concurrency)
        self._dialect, self._worked = Dialect(endpoint), False
        url, query = split_query(address.base_url)
        self._openai = openai.AsyncOpenAI(
            base_url=url,
            default_query=query,
            default_headers=dict(address.headers),
            # Servers without keys ignore it, and the package refuses to start without one.
            api_key=address.key or "none",
            timeout=endpoint.timeout_seconds,
            # The package would ask again where no credit is left, and not where an error comes inside a 200.
            max_retries=0,
            http_client=http_client(url, Pace(endpoint.requests_per_minute).wait),
        )
        self._servers = [self._openai, *(self._openai.with_options(base_url=url) for url in address.more)]
        self._busy = [0] * len(self._servers)
        self._at_home: list[set[str]] = [set() for _ in self._servers]  # the conversations of each

    async def check(self) -> None:
        """Ask for the list of models; raises EndpointError if nothing answers or the key or model is refused.

        A service that does not show its list, for whatever reason, is asked for one token instead.
        """
        # A local server was seen to be healthy, and may be slow on a busy machine.
        patience = CHECK_SECONDS if self.endpoint.engine == "api" else self.endpoint.timeout_seconds
        listed: set[str] = set()
        try:
            listed = {model.id for model in (await self._openai.with_options(timeout=patience).models.list()).data}
        except openai.APIStatusError as error:
            said = complaint_of(error.status_code, error.response.text)
            if said.status == 401 and not NO_RIGHT_TO_LIST.search(said.words):
                raise self._explained(said, frozenset()) from None
        except openai.OpenAIError as error:
            raise self._unreached(error, patience) from None
        except (AttributeError, TypeError, ValueError):  # the package checks the shape of nothing
            pass
        if self.endpoint.engine == "api" and self.address.model not in listed:
            await self._try_model()

    async def _try_model(self) -> None:
        """Ask for one token: a list may leave out what is served, but a wrong name must not show after hours."""
        try:
            await self._once(self._openai, self._whole, ([Message("user", "Hello")], 0, None, 1))
        except EndpointError as error:
            if error.stops:
                raise

    @property
    def goes_on(self) -> bool:
        """Whether it goes on with a last message of the assistant, instead of answering it."""
        return self.endpoint.engine in GO_ON

    async def complete(
        self,
        messages: Sequence[Message],
        seed: int,
        *,
        conversation: str | None = None,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
    ) -> Reply:
        """One completion; ``conversation`` names the one that it goes on with.

        What may pass is asked again, ``max_retries`` times, with growing pauses or those that the service asks for.
        Raises EndpointError when they are used up, the error is final, or what came has no text that can be used.
        """
        limit = max_new_tokens or self.endpoint.max_new_tokens
        async with self._gate, self._server(conversation) as server:
            body = await self._patiently(server, self._whole, (messages, seed, temperature, limit))
        self._worked = True
        try:
            reply, has_text = read_reply(body)
        except ValueError:
            raise self._failed("sent an answer without text") from None
        return self._usable(reply, has_text, limit)

    async def _patiently(self, server: openai.AsyncOpenAI, send: Callable[..., Awaitable[T]], asked: Asked) -> T:
        for tries in range(self.endpoint.max_retries + 1):
            try:
                return await self._once(server, send, asked)
            except EndpointError as error:
                if not error.passing or tries == self.endpoint.max_retries:
                    raise
                # With jitter, or all that failed at one moment come back at one moment.
                pause = min(FIRST_PAUSE * 2**tries, LONGEST_PAUSE) * random.uniform(0.75, 1)
                pause = max(pause, min(error.wait or 0.0, LONGEST_WAIT))
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _once(self, server: openai.AsyncOpenAI, send: Callable[..., Awaitable[T]], asked: Asked) -> T:
        """One answer, in the fields that the service takes: where it names one that it does not, once more."""
        messages, seed, temperature, limit = asked
        while True:
            version = self._dialect.version
            request = self._dialect.request(self.address.model, messages, seed, temperature, limit)
            try:
                return await send(server, request)
            except Refused as refused:
                if self._dialect.version != version:  # another request learned it meanwhile
                    continue
                line = self._dialect.learn(refused.said, request)
                if line is None:
                    raise self._explained(refused.said, frozenset(request), refused.wait) from None
                words = self._name(f"it says: {refused.said.words}")
                tqdm.write(redact(f"{words}: asked from here on as by {line} in the profile"), file=sys.stderr)

    async def _whole(self, server: openai.AsyncOpenAI, request: dict[str, Any]) -> dict[str, Any]:
        """The JSON of a completion. Raises Refused with what the service says instead, EndpointError."""
        try:
            answer = await server.chat.completions.with_raw_response.create(**request)
        except openai.OpenAIError as error:
            raise self._refused(error) from None
        try:
            body = json.loads(answer.text)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise self._failed("sent an answer that is no valid JSON")
        if said := complaint_inside(body):
            raise Refused(said, wait_of(answer.headers))
        return body

    def _usable(self, reply: Reply, has_text: bool, limit: int) -> Reply:
        if reply.finish == "content_filter":
            raise self._failed("its content filter ended the answer", "filtered", reply)
        if not reply.text and reply.reasoning:
            cut = f"the limit of {limit} tokens was used up by reasoning; raise max_new_tokens, or ask for less of it"
            raise self._failed(cut if reply.cut else "it reasoned and said nothing", "reasoning", reply)
        if not has_text:
            raise self._failed("sent an answer without text", "failed", reply)
        return reply

    @contextlib.asynccontextmanager
    async def _server(self, conversation: str | None) -> AsyncIterator[openai.AsyncOpenAI]:
        number = next((n for n, names in enumerate(self._at_home) if conversation in names), None)
        if number is None:
            number = min(range(len(self._busy)), key=lambda n: (self._busy[n], len(self._at_home[n])))
        if conversation is not None:
            self._at_home[number].add(conversation)
        self._busy[number] += 1
        try:
            yield self._servers[number]
        finally:
            self._busy[number] -= 1

    async def stream(self, messages: Sequence[Message], seed: int, hear: Callable[[str], None]) -> Reply:
        """One completion, each spoken piece given to ``hear`` as it comes; returns it whole, without token counts.

        Ended when cancelled, at the server too. Raises EndpointError, also in the middle of an answer.
        """
        voice, thought, reason, came = Voice(), "", "", False
        tell = lambda piece: hear(piece) if piece else None  # noqa: E731
        limit = self.endpoint.max_new_tokens
        try:
            async with (
                self._gate,
                await self._patiently(self._openai, self._pieces, (messages, seed, None, limit)) as answer,
            ):
                async for chunk in answer:
                    for choice in getattr(chunk, "choices", None) or ():  # a chunk that only counts tokens has none
                        came, reason = True, getattr(choice, "finish_reason", None) or reason
                        # The last chunk of some services has no delta, and some send whole messages.
                        delta = getattr(choice, "delta", None) or getattr(choice, "message", None)
                        said = delta if isinstance(delta, dict) else delta.model_dump() if delta is not None else {}
                        text, inner = read_content(said.get("content"))
                        thought += read_reasoning(said) or inner
                        tell(voice.hear(text or ""))
        except openai.OpenAIError as error:
            if came and isinstance(error, openai.APIConnectionError):
                raise self._failed("broke off in the middle of an answer", PASSING) from None
            refused = self._refused(error)
            said = getattr(refused, "said", None)
            raise (self._explained(said, frozenset()) if said else refused) from None
        if not came:
            raise self._failed("sent an answer without text")
        tell(voice.end())
        text, marked = separate(voice.whole)
        reply = Reply(text, finish_of(reason), reasoning=thought + marked)
        return reply if text and reply.finish == "content_filter" else self._usable(reply, True, limit)

    async def _pieces(self, server: openai.AsyncOpenAI, request: dict[str, Any]) -> openai.AsyncStream:
        try:
            return await server.chat.completions.create(**request, stream=True)
        except openai.OpenAIError as error:
            raise self._refused(error) from None

    async def complete_all(
        self, requests: Sequence[tuple[Sequence[Message], int]], desc: str, **options: Any
    ) -> list[Reply]:
        """Completions for (messages, seed) pairs, in order, with a progress bar. The first error ends it."""
        bar = Bar(total=len(requests), desc=desc, unit="turns")

        async def one(messages: Sequence[Message], seed: int) -> Reply:
            reply = await self.complete(messages, seed, **options)
            bar.update()
            return reply

        with bar:
            return await together(one(m, s) for m, s in requests)

    async def close(self) -> None:
        await self._openai.close()

    def _name(self, words: str = "") -> str:
        """Who it is; ``words``: what it says, or the network says of it."""
        return f"{self.role} ({self.address.model} at {self.address.base_url}{'; ' if words else ''}{words})"

    def _failed(self, why: str, kind: str = "failed", paid: Reply | None = None) -> EndpointError:
        return EndpointError(kind, f"{self._name()}: {why}", paid, reason=why)

    def _explained(self, said: Complaint, sent: frozenset[str], wait: float | None = None) -> EndpointError:
        kind, why = explain(said, self._worked, self.endpoint.api_key_env, sent)
        words = f"it says: {said.words}"
        return EndpointError(kind, f"{self._name(words)}: {why}", reason=f"{why}; {words}", wait=wait)

    def _refused(self, error: openai.OpenAIError) -> Refused | EndpointError:
        if isinstance(error, openai.APIStatusError):
            return Refused(complaint_of(error.status_code, error.response.text), wait_of(error.response.headers))
        if isinstance(error, openai.APIConnectionError):
            return self._unreached(error)
        # An error in the middle of a stream has a body and no status.
        return Refused(complaint_of(200, json.dumps({"error": getattr(error, "body", None) or str(error)})), None)

    def _unreached(self, error: openai.OpenAIError, patience: float | None = None) -> EndpointError:
        if isinstance(error, openai.APITimeoutError):
            return self._failed(f"no answer in {patience or self.endpoint.timeout_seconds:g} s", PASSING)
        if isinstance(error, openai.APIConnectionError):
            cause = " ".join(str(error.__cause__ or "").split())[:SHOWN]
            why = "nothing answers there; start it, or correct base_url"
            return EndpointError(PASSING, f"{self._name(cause)}: {why}", reason=f"{why} ({cause})")
        return self._failed(" ".join(str(error).split())[:SHOWN])
