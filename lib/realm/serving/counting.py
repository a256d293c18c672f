"""How long a request is for the model behind a llama.cpp server: by its own template and vocabulary.

A GGUF file brings a tokenizer that nothing else here reads; its server does, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from realm.conversations.conversation import Message
from realm.serving.client import Address

PATIENCE_SECONDS = 60


class TokenCounter:
    """Counts the tokens of requests to one llama.cpp server; ``close`` it."""

    def __init__(self, address: Address):
        root = address.base_url.removesuffix("/v1")
        header = {"Authorization": f"Bearer {address.key}"}
        # The server is ours, on the loopback address: no proxy, no certificates.
        self._http = httpx.AsyncClient(
            base_url=root, headers=header, timeout=PATIENCE_SECONDS, trust_env=False, verify=False
        )

    async def __call__(self, messages: Sequence[Message]) -> int | None:
        """Tokens of the request for an answer to ``messages``; None where the server does not tell."""
        said = [{"role": m.role, "content": m.content} for m in messages]
        try:
            prompt = (await self._post("/apply-template", {"messages": said}))["prompt"]
            # As its chat completions do it: the template's tokens are read as such, and a begin token is added.
            options = {"add_special": True, "parse_special": True}
            return len((await self._post("/tokenize", {"content": prompt, **options}))["tokens"])
        except (httpx.HTTPError, KeyError, TypeError, ValueError):
            return None

    async def _post(self, path: str, body: dict) -> dict:
        answer = await self._http.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    async def close(self) -> None:
        await self._http.aclose()
