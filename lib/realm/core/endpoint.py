"""The part of a profile that says whom to ask and how; it holds names of secrets, never secrets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from realm.core.block import Block
from realm.core.secrets import require_plain_address, require_plain_headers, require_variable_name

GPU_SHARE = 0.9  # of the memory of a GPU, what a local server takes that has it for itself


class Endpoint(Block):
    """Anything that speaks the OpenAI chat protocol.

    ``engine``: ``llama.cpp``, ``transformers`` or ``vllm`` start a local server for ``model`` (an asset
    name, a folder, ``stage:04_realm_sft``, or ``base:04_realm_sft``: what that stage started from, under the very
    tokenizer and template that it was trained with; for ``llama.cpp`` also a GGUF file, or ``repository:file`` of one
    on the Hub); ``api`` talks to ``base_url``, where ``model`` is the name
    that the service knows and ``api_key_env`` the environment variable that holds the key.
    ``environment``: the folder of the Python environment that holds the engine's program (null: this one; a relative
    one lies in the repository). ``gpu_memory_share``: of a GPU's memory, what vllm takes (null: 0.9, divided among the
    endpoints that share a GPU). ``tensor_parallel``: over so many GPUs vllm shares out one copy of the model; the other
    GPUs that it has hold further copies. ``start_seconds``: how long a server may take until it is healthy (null: half
    an hour for vllm, which reads and compiles a model of 7B for minutes, 5 minutes for the others).
    At most ``concurrency`` requests are in flight; ``requests_per_minute`` spaces their starts, null does not.
    Each shard of a simulation has both for itself. A service that is down or too busy is asked again ``max_retries``
    times by each request, and by a simulation until nothing has come from it for ``patience_seconds``.

    For services with ways of their own: ``extra_body`` (further fields of a request), ``headers`` (``$NAME`` in a value
    stands for the environment variable), ``leave_out`` (fields that it does not take), ``token_limit`` (its name for
    the most new tokens), ``system_as`` (where the system message goes). The client learns the last three by itself
    where a refusal names the field; what stands here is not asked for in vain.
    """

    engine: Literal["llama.cpp", "transformers", "vllm", "api"]
    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    context_length: int = Field(default=2048, ge=128)
    concurrency: int = Field(default=8, ge=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    timeout_seconds: float = Field(default=300.0, gt=0)
    max_retries: int = Field(default=4, ge=0)
    patience_seconds: float = Field(default=180.0, gt=0)
    environment: str | None = None
    gpu_memory_share: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel: int = Field(default=1, ge=1)
    start_seconds: float | None = Field(default=None, gt=0)
    extra_body: dict[str, Any] = Field(default_factory=dict)
    headers: dict[str, str] = Field(default_factory=dict)
    leave_out: list[Literal["temperature", "top_p", "seed", "max_tokens"]] = Field(default_factory=list)
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    system_as: Literal["system", "developer", "first_user"] = "system"

    @field_validator("api_key_env")
    @classmethod
    def _a_name_and_no_key(cls, name: str | None) -> str | None:
        return name if name is None else require_variable_name(name)

    @field_validator("base_url")
    @classmethod
    def _an_address_without_secrets(cls, url: str | None) -> str | None:
        return url if url is None else require_plain_address(url)

    @field_validator("headers")
    @classmethod
    def _headers_without_secrets(cls, headers: dict[str, str]) -> dict[str, str]:
        return require_plain_headers(headers)

    @field_validator("extra_body")
    @classmethod
    def _what_is_asked_stays(cls, body: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(body.keys() & {"messages", "model", "stream", "n"}):
            raise ValueError(f"{taken[0]} is the client's own; extra_body holds further fields alone")
        return body

    @model_validator(mode="after")
    def _environment_has_a_program(self) -> Endpoint:
        if self.environment is not None and self.engine not in ("vllm", "transformers"):
            raise ValueError(f"environment goes with engine vllm or transformers, not {self.engine}")
        return self

    @model_validator(mode="after")
    def _room_for_a_question(self) -> Endpoint:
        if self.max_new_tokens >= self.context_length:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} leaves no room for a question in context_length "
                f"{self.context_length}; lower max_new_tokens or raise context_length"
            )
        return self

    @model_validator(mode="after")
    def _address_belongs_to_api(self) -> Endpoint:
        if self.engine == "api" and not self.base_url:
            raise ValueError("engine api needs base_url, for example https://api.openai.com/v1")
        if self.engine != "api" and self.base_url:
            raise ValueError(f"base_url goes with engine api, not {self.engine}")
        if self.engine != "api" and self.api_key_env:
            raise ValueError(f"api_key_env goes with engine api, not {self.engine}")
        return self


class Judge(Endpoint):
    """Who rates MT-Bench answers: with FastChat's length for a judgment, and room for what is judged."""

    max_new_tokens: int = Field(default=2048, ge=1)
    context_length: int = Field(default=8192, ge=128)
