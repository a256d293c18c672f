"""The client: any OpenAI-compatible service, with errors of one line.

The client is the ``openai`` package; what is added here are one-line errors, bounds on what is in flight and on
how fast it is sent, and keys that come from the environment and go nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
from tqdm import tqdm

from realm.conversations.conversation import Message
from realm.core.errors import OneLineError
from realm.core.profile import Endpoint
from realm.core.secrets import redact
from realm.serving.reply import Reply, Voice, finish_of, read_content, read_reasoning, read_reply, separate
from realm.serving.words import endpoint_words

T = TypeVar("T")
CHECK_SECONDS = 3  # for a service's list of models; whoever is slower than this is not there


class EndpointError(OneLineError, RuntimeError):
    """An endpoint that does not do what is asked; one line with address, reason and fix.

    ``kind``: ``unreachable``, ``refused`` (key, permission or model name), ``context`` (too long), ``filtered`` (by
    the service's moderation), ``reasoning`` (nothing else came), ``failed``.
    ``paid``: the answer that came all the same and cannot be used; its tokens count.
    """

    def __init__(self, kind: str, message: str, paid: Reply | None = None):
        super().__init__(redact(message))
        self.kind, self.paid = kind, paid


@dataclass(frozen=True)
class Address:
    """Where an endpoint listens. The key does not show in ``repr``. ``more``: further servers of the same model."""

    base_url: str
    model: str
    key: str = ""
    more: tuple[str, ...] = ()

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
        pace = Pace(endpoint.requests_per_minute)
        self._openai = openai.AsyncOpenAI(
            base_url=address.base_url,
            # Servers without keys ignore it, and the package refuses to start without one.
            api_key=address.key or "none",
            timeout=endpoint.timeout_seconds,
            max_retries=endpoint.max_retries,
            # Under the package's retries: they are requests too.
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [pace.wait]}),
        )
        self._servers = [self._openai, *(self._openai.with_options(base_url=url) for url in address.more)]
        self._busy = [0] * len(self._servers)
        self._at_home: list[set[str]] = [set() for _ in self._servers]  # the conversations of each

    async def check(self) -> None:
        """Ask for the list of models; raises EndpointError if nothing answers or the key or model is refused."""
        # A local server was seen to be healthy, and may be slow on a busy machine.
        patience = CHECK_SECONDS if self.endpoint.engine == "api" else self.endpoint.timeout_seconds
        quick = self._openai.with_options(timeout=patience, max_retries=0)
        listed: set[str] = set()
        try:
            listed = {model.id for model in (await quick.models.list()).data}
        except openai.NotFoundError:
            pass  # some services have no list of models
        except openai.OpenAIError as error:
            raise self._explain(error, patience) from None
        except (AttributeError, TypeError, ValueError):  # the package checks the shape of nothing
            pass
        if self.endpoint.engine == "api" and self.address.model not in listed:
            await self._try_model()

    async def _try_model(self) -> None:
        """Ask for one token: a list may leave out what is served, but a wrong name must not show after hours."""
        try:
            await self.complete([Message("user", "Hello")], 0, max_new_tokens=1)
        except EndpointError as error:
            if error.kind == "refused":
                raise

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

        Retries (exponential, with jitter, ``Retry-After`` honoured) are the openai package's. Raises EndpointError
        when they are used up or the error is final.
        """
        async with self._gate, self._server(conversation) as server:
            try:
                answer = await server.chat.completions.with_raw_response.create(
                    **self._request(messages, seed, temperature, max_new_tokens)
                )
            except openai.OpenAIError as error:
                raise self._explain(error) from None
        try:
            reply, has_text = read_reply(json.loads(answer.text))
        except (ValueError, AttributeError):
            raise EndpointError("failed", f"{self._name}: sent an answer without text") from None
        if reply.finish == "content_filter":
            raise EndpointError("filtered", f"{self._name}: its content filter ended the answer", reply)
        if not reply.text and reply.reasoning:
            cut = f"the limit of {max_new_tokens or self.endpoint.max_new_tokens} tokens was used up by reasoning"
            why = f"{cut}; raise max_new_tokens" if reply.cut else "it reasoned and said nothing"
            raise EndpointError("reasoning", f"{self._name}: {why}", reply)
        if not has_text:
            raise EndpointError("failed", f"{self._name}: sent an answer without text", reply)
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
        try:
            async with (
                self._gate,
                await self._openai.chat.completions.create(**self._request(messages, seed), stream=True) as answer,
            ):
                async for chunk in answer:
                    for choice in chunk.choices or ():  # a chunk that only counts tokens has none
                        came, reason = True, getattr(choice, "finish_reason", None) or reason
                        delta = getattr(choice, "delta", None)  # the last chunk of some services has none
                        said = delta.model_dump() if delta is not None else {}
                        text, inner = read_content(said.get("content"))
                        thought += read_reasoning(said) or inner
                        tell(voice.hear(text or ""))
        except openai.OpenAIError as error:
            if came and isinstance(error, openai.APIConnectionError):
                raise EndpointError("unreachable", f"{self._name}: broke off in the middle of an answer") from None
            raise self._explain(error) from None
        if not came:
            raise EndpointError("failed", f"{self._name}: sent an answer without text")
        tell(voice.end())
        text, marked = separate(voice.whole)
        return Reply(text, finish_of(reason), reasoning=thought + marked)

    def _request(
        self,
        messages: Sequence[Message],
        seed: int,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
    ) -> dict[str, Any]:
        return {
            "model": self.address.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": self.endpoint.temperature if temperature is None else temperature,
            "top_p": self.endpoint.top_p,
            "max_tokens": max_new_tokens or self.endpoint.max_new_tokens,
            "seed": seed,
        }

    async def complete_all(
        self, requests: Sequence[tuple[Sequence[Message], int]], desc: str, **options: Any
    ) -> list[Reply]:
        """Completions for (messages, seed) pairs, in order, with a progress bar. The first error ends it."""
        bar = tqdm(total=len(requests), desc=desc, unit="turn")

        async def one(messages: Sequence[Message], seed: int) -> Reply:
            reply = await self.complete(messages, seed, **options)
            bar.update()
            return reply

        with bar:
            return await together(one(m, s) for m, s in requests)

    async def close(self) -> None:
        await self._openai.close()

    @property
    def _name(self) -> str:
        return f"{self.role} ({self.address.model} at {self.address.base_url})"

    def _explain(self, error: openai.OpenAIError, patience: float | None = None) -> EndpointError:
        if isinstance(error, openai.APITimeoutError):
            seconds = patience or self.endpoint.timeout_seconds
            return EndpointError("unreachable", f"{self._name}: no answer in {seconds:g} s")
        if isinstance(error, openai.APIConnectionError):
            fix = "start it, or correct base_url"
            return EndpointError("unreachable", f"{self._name}: nothing answers there; {fix}")
        status = getattr(error, "status_code", None)
        text = redact(" ".join(str(error).split()))[:300]
        if status in (401, 403):
            key = self.endpoint.api_key_env or "api_key_env, which is not set"
            return EndpointError("refused", f"{self._name}: the key is refused ({status}); check {key}")
        if status == 404:
            return EndpointError("refused", f"{self._name}: no such model or path (404); correct model or base_url")
        if status == 429:
            fix = "wait, or lower concurrency or requests_per_minute in the profile"
            return EndpointError("unreachable", f"{self._name}: too many requests (429) after all retries; {fix}")
        if status == 400 and "context" in text.lower():
            return EndpointError("context", f"{self._name}: the conversation is too long: {text}")
        return EndpointError("failed", f"{self._name}: {text}")
