"""How services of the OpenAI protocol differ from it: one row a behaviour, which tests and the docs go by.

The bodies are in our own words, in the layouts that these services are known for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stub_server import Answer, Fault, answered

Body = dict[str, Any]
WORKS = "works"


def error(status: int, message: str, headers: dict[str, str] | None = None, **fields: Any) -> Fault:
    """An error in the protocol's own frame."""
    return Fault(status, payload={"error": {"message": message, **fields}}, headers=headers or {})


def bare(status: int, **fields: Any) -> Fault:
    """An error in a frame of the service's own."""
    return Fault(status, payload=fields)


@dataclass(frozen=True)
class Row:
    """One behaviour. ``reply``: body -> answer, asked for ever. ``kind``: ``works``, or an EndpointError's kind.

    ``says``: the service's words that must show. ``key``: what of the profile to change, named in the line.
    ``learned``: the lines by which the client adapts. ``asked``: requests until it is clear.
    """

    service: str
    behaviour: str
    reply: Callable[[Body], Answer]
    kind: str = WORKS
    says: str = ""
    key: str = ""
    learned: tuple[str, ...] = ()
    asked: int = 1
    text: str = "Hello!"
    reasoning: str = ""
    finish: str = "stop"
    endpoint: dict[str, Any] = field(default_factory=dict)
    models: Fault | None = None

    @property
    def name(self) -> str:
        return f"{self.service}: {self.behaviour}"


def always(answer: Answer) -> Callable[[Body], Answer]:
    return lambda body: answer


def unless(wrong: Callable[[Body], Any], refusal: Callable[[Body], Fault] | Fault) -> Callable[[Body], Answer]:
    """Answers once nothing is ``wrong`` with a request."""

    def reply(body: Body) -> Answer:
        if not wrong(body):
            return "Hello!"
        return refusal if isinstance(refusal, Fault) else refusal(body)

    return reply


def has(*names: str) -> Callable[[Body], bool]:
    return lambda body: any(n in body for n in names)


def has_role(role: str) -> Callable[[Body], bool]:
    return lambda body: any(m["role"] == role for m in body["messages"])


def openai_reasoner(body: Body) -> Answer:
    if "max_tokens" in body:
        words = "Unsupported parameter: 'max_tokens' is not supported here. Use 'max_completion_tokens' instead."
        return error(400, words, type="invalid_request_error", param="max_tokens", code="unsupported_parameter")
    for name in ("temperature", "top_p"):
        if name in body:
            words = (
                f"Unsupported value: '{name}' does not support {body[name]} here. Only the default (1) is supported."
            )
            return error(400, words, type="invalid_request_error", param=name, code="unsupported_value")
    return answered("Hello!", usage={"prompt_tokens": 9, "completion_tokens": 70})


def mistral_extra(body: Body) -> Fault:
    return bare(
        422, detail=[{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
    )


def gemini(body: Body) -> Fault:
    inner = {"code": 400, "message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'}
    return Fault(400, payload=[{"error": {**inner, "status": "INVALID_ARGUMENT"}}])


CONTEXT = "This model's maximum context length is 128 tokens. However, your messages resulted in 900 tokens."
FLAGGED = "The response was filtered due to the prompt triggering our content management policy."

TABLE = (
    # ------------------------------------------------------------ OpenAI
    Row("OpenAI chat", "answers", always(answered("Hello!"))),
    Row(
        "OpenAI chat",
        "the conversation is too long",
        always(error(400, CONTEXT, type="invalid_request_error", param="messages", code="context_length_exceeded")),
        "context",
        "maximum context length is 128",
    ),
    Row(
        "OpenAI chat",
        "no quota is left",
        always(error(429, "You exceeded your current quota, please check your plan.", code="insufficient_quota")),
        "no_credit",
        "You exceeded your current quota",
        "",
        endpoint={"max_retries": 3},
    ),
    Row(
        "OpenAI chat",
        "too many requests for ever",
        always(error(429, "Rate limit reached for requests.", type="requests", code="rate_limit_exceeded")),
        "unreachable",
        "Rate limit reached",
        "requests_per_minute",
    ),
    Row(
        "OpenAI chat",
        "a key that may ask and not list",
        always("Hello!"),
        models=error(401, "You have insufficient permissions for this operation. Missing scopes: api.model.read."),
    ),
    Row(
        "OpenAI chat",
        "declines by a refusal field",
        always(answered(None, refusal="I cannot.")),
        "filtered",
        "content filter",
    ),
    Row(
        "OpenAI reasoning models",
        "take neither max_tokens nor temperature",
        openai_reasoner,
        learned=("token_limit: max_completion_tokens", "leave_out: [temperature]", "leave_out: [temperature, top_p]"),
        asked=4,
    ),
    Row(
        "OpenAI reasoning models",
        "told beforehand by the profile",
        openai_reasoner,
        endpoint={"token_limit": "max_completion_tokens", "leave_out": ["temperature", "top_p"]},
    ),
    Row(
        "OpenAI reasoning models",
        "take no system message",
        unless(
            has_role("system"),
            error(
                400,
                "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
                param="messages[0].role",
                code="unsupported_value",
            ),
        ),
        learned=("system_as: first_user",),
        asked=2,
    ),
    # ------------------------------------------------------------ Azure
    Row(
        "Azure",
        "its filter refuses the prompt",
        always(
            error(
                400,
                FLAGGED,
                param="prompt",
                code="content_filter",
                innererror={"code": "ResponsibleAIPolicyViolation"},
            )
        ),
        "filtered",
        "content management policy",
    ),
    Row(
        "Azure",
        "its filter ends the answer",
        always(answered("The first words", "content_filter")),
        "filtered",
        "filter",
    ),
    Row(
        "Azure",
        "no such deployment",
        always(error(404, "The API deployment for this resource does not exist.", code="DeploymentNotFound")),
        "refused",
        "deployment for this resource",
        "base_url",
    ),
    # ------------------------------------------------------------ servers of one's own
    Row(
        "vLLM",
        "the conversation is too long",
        always(bare(400, object="error", message=CONTEXT, type="BadRequestError", param=None, code=400)),
        "context",
        "maximum context length",
    ),
    Row(
        "vLLM",
        "less room than the least answer",
        always(bare(400, object="error", message="max_tokens must be at least 1, got -186.", code=400)),
        "context",
        "got -186",
    ),
    Row(
        "vLLM",
        "a template without system messages",
        unless(has_role("system"), bare(400, object="error", message="System role not supported", code=400)),
        learned=("system_as: first_user",),
        asked=2,
    ),
    Row("vLLM", "a parser for reasoning", always(answered("Hello!", reasoning_content="hm")), reasoning="hm"),
    Row(
        "SGLang",
        "the conversation is too long",
        always(
            bare(
                400,
                object="error",
                message="The input (900 tokens) is longer than the model's context length (128 tokens).",
            )
        ),
        "context",
        "longer than the model's context length",
    ),
    Row(
        "llama.cpp",
        "the conversation is too long",
        always(
            error(
                400,
                "request (900 tokens) exceeds the available context size (128 tokens), try increasing it",
                code=400,
                type="exceed_context_size_error",
                n_prompt_tokens=900,
                n_ctx=128,
            )
        ),
        "context",
        "exceeds the available context size",
    ),
    Row(
        "llama.cpp",
        "the same by a 500",
        always(error(500, "Context size has been exceeded.", code=500, type="server_error")),
        "context",
        "Context size has been exceeded",
    ),
    Row(
        "llama.cpp",
        "a template that wants alternating roles",
        unless(
            has_role("system"),
            error(
                500,
                "Conversation roles must alternate user/assistant/user/assistant/...",
                code=500,
                type="server_error",
            ),
        ),
        learned=("system_as: first_user",),
        asked=2,
    ),
    Row(
        "llama.cpp",
        "still loads its model",
        always(error(503, "Loading model", type="unavailable_error", code=503)),
        "unreachable",
        "Loading model",
    ),
    Row(
        "TGI",
        "the conversation is too long",
        always(
            bare(
                422,
                error="Input validation error: `inputs` tokens + `max_new_tokens` must be <= 128. Given: 900 `inputs` "
                "tokens and 16 `max_new_tokens`",
                error_type="validation",
            )
        ),
        "context",
        "`inputs` tokens",
    ),
    Row(
        "TGI",
        "refuses a top_p that does nothing",
        unless(
            lambda body: body.get("top_p") == 1.0,
            bare(422, error="Input validation error: `top_p` must be > 0.0 and < 1.0", error_type="validation"),
        ),
        learned=("leave_out: [top_p]",),
        asked=2,
    ),
    Row(
        "TGI",
        "refuses a temperature of the profile's",
        always(
            bare(422, error="Input validation error: `temperature` must be strictly positive", error_type="validation")
        ),
        "failed",
        "must be strictly positive",
        "temperature",
    ),
    Row("TGI", "names the end token as the end", always(answered("Hello!", "eos_token"))),
    Row(
        "TGI",
        "an overloaded model",
        always(bare(429, error="Model is overloaded", error_type="overloaded")),
        "unreachable",
        "overloaded",
    ),
    Row(
        "Ollama",
        "the model was not pulled",
        always(error(404, 'model "stub" not found, try pulling it first', type="api_error")),
        "refused",
        "try pulling it first",
        "model",
    ),
    Row("Ollama", "inline reasoning", always("<think>\nhm\n</think>\n\nHello!"), reasoning="hm"),
    Row(
        "LM Studio",
        "the conversation is too long",
        always(
            bare(
                400,
                error="The number of tokens to keep from the initial prompt is greater than the context length "
                "(n_keep: 900>= n_ctx: 128). Try to load the model with a larger context length.",
            )
        ),
        "context",
        "n_keep: 900",
    ),
    Row(
        "LM Studio",
        "the same inside a 200",
        always(
            bare(
                200,
                error="Trying to keep the first 900 tokens when context the overflows. The model is loaded "
                "with context length of only 128 tokens, which is not enough.",
            )
        ),
        "context",
        "context the overflows",
    ),
    # ------------------------------------------------------------ reasoning
    Row(
        "DeepSeek",
        "reasoning in a field of its own",
        always(answered("Hello!", reasoning_content="hm")),
        reasoning="hm",
    ),
    Row(
        "DeepSeek",
        "all tokens spent on reasoning",
        always(answered(None, "length", reasoning_content="hm")),
        "reasoning",
        "used up by reasoning",
        "max_new_tokens",
    ),
    Row(
        "DeepSeek",
        "the account is empty",
        always(error(402, "Insufficient Balance", code="invalid_request_error")),
        "no_credit",
        "Insufficient Balance",
    ),
    Row(
        "DeepSeek",
        "ran out of machines in the middle",
        always(answered("The first", "insufficient_system_resource")),
        "unreachable",
        "insufficient_system_resource",
    ),
    Row("Qwen", "an opening mark in the prompt", always("hm\n</think>\n\nHello!"), reasoning="hm"),
    Row(
        "Qwen",
        "cut while it reasons",
        always(answered("<think>\nhm and", "length")),
        "reasoning",
        "used up by reasoning",
        "max_new_tokens",
    ),
    Row(
        "Qwen",
        "its inspection refuses the input",
        always(error(400, "Input data may contain inappropriate content.", code="data_inspection_failed")),
        "filtered",
        "inappropriate content",
    ),
    Row(
        "Qwen",
        "thinks only where it streams",
        always(error(400, "parameter.enable_thinking must be set to false for non-streaming calls")),
        "failed",
        "enable_thinking",
        "extra_body",
    ),
    # ------------------------------------------------------------ Mistral, Gemini, and others
    Row("Mistral", "takes no seed", unless(has("seed"), mistral_extra), learned=("leave_out: [seed]",), asked=2),
    Row(
        "Mistral",
        "the same as JSON in a string",
        unless(
            has("seed"),
            bare(
                422,
                object="error",
                message='{"detail":[{"type":"extra_forbidden","loc":["body","seed"],"msg":"Extra inputs '
                'are not permitted"}]}',
                code="1000",
            ),
        ),
        learned=("leave_out: [seed]",),
        asked=2,
    ),
    Row(
        "Mistral",
        "content in parts",
        always(
            answered(
                [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hello!"}]
            )
        ),
        reasoning="hm",
    ),
    Row(
        "Mistral",
        "a word of its own for a cut",
        always(answered("Hello", "model_length")),
        text="Hello",
        finish="length",
    ),
    Row(
        "Gemini",
        "an error in a list; takes no seed",
        unless(has("seed"), gemini),
        learned=("leave_out: [seed]",),
        asked=2,
    ),
    Row(
        "Gemini",
        "a wrong key by a 400",
        always(error(400, "API key not valid. Please pass a valid API key.", code=400)),
        "refused",
        "API key not valid",
        "api_key_env",
    ),
    Row(
        "Anthropic",
        "the conversation is too long",
        always(error(400, "prompt is too long: 210000 tokens > 200000 maximum")),
        "context",
        "prompt is too long",
    ),
    Row(
        "Anthropic",
        "no credit by a 400",
        always(error(400, "Your credit balance is too low to access the API.")),
        "no_credit",
        "credit balance is too low",
    ),
    Row(
        "Anthropic",
        "temperature or top_p, not both",
        unless(
            lambda b: has("temperature")(b) and has("top_p")(b),
            error(400, "`temperature` and `top_p` cannot both be specified for this model."),
        ),
        learned=("leave_out: [top_p]",),
        asked=2,
    ),
    Row(
        "LiteLLM",
        "a provider that takes no seed",
        unless(
            has("seed"),
            error(
                400, "litellm.UnsupportedParamsError: this provider does not support parameters: ['seed']", code="400"
            ),
        ),
        learned=("leave_out: [seed]",),
        asked=2,
    ),
    # ------------------------------------------------------------ aggregators and gateways
    Row(
        "OpenRouter",
        "an error inside a 200",
        always(bare(200, error={"message": "upstream overloaded", "code": 502})),
        "unreachable",
        "upstream overloaded",
    ),
    Row(
        "OpenRouter",
        "a provider's words inside its own",
        always(
            error(
                429,
                "Provider returned error",
                code=429,
                metadata={"raw": "busy upstream, retry shortly", "provider_name": "x"},
            )
        ),
        "unreachable",
        "busy upstream",
        "requests_per_minute",
    ),
    Row(
        "OpenRouter",
        "the answer breaks off",
        always(answered("The first", "error", usage={"prompt_tokens": None, "completion_tokens": None})),
        "unreachable",
        "broke off",
    ),
    Row(
        "OpenRouter",
        "no credits",
        always(error(402, "This request requires more credits, or fewer max_tokens.", code=402)),
        "no_credit",
        "requires more credits",
    ),
    Row("OpenRouter", "reasoning in a field of its own", always(answered("Hello!", reasoning="hm")), reasoning="hm"),
    Row(
        "a moderated gateway",
        "a 403 for one flagged input",
        always(error(403, "input was flagged", code=403)),
        "filtered",
        "input was flagged",
    ),
    Row("a gateway without a model list", "405 there", always("Hello!"), models=Fault(405, "method not allowed")),
    Row("a gateway without a model list", "403 there", always("Hello!"), models=Fault(403, "forbidden")),
    Row("a gateway without a model list", "429 there", always("Hello!"), models=Fault(429, "slow down")),
    Row("a gateway without a model list", "503 there", always("Hello!"), models=Fault(503, "no list today")),
    Row("any", "null content", always(answered(None)), "failed", "without text"),
    Row(
        "any",
        "no counts, and null for them",
        always(answered("Hello!", usage={"prompt_tokens": None, "completion_tokens": None})),
    ),
    Row(
        "any",
        "an answer that is cut",
        always(answered("The three reasons are first the", "length")),
        text="The three reasons are first the",
        finish="length",
    ),
    Row(
        "any",
        "a 400 that merely speaks of context",
        always(error(400, "in the context of this API, tools are not allowed here")),
        "failed",
        "in the context of",
    ),
)

# ---------------------------------------------------------------- the same for readers

OUTCOMES = {
    WORKS: "works",
    "context": "the conversation ends, `context_full`",
    "filtered": "the conversation ends, `content_filter`",
    "reasoning": "named and billed; the conversation ends, `reasoning_only`",
    "failed": "the conversation fails with these words and is asked again by the next calls",
    "refused": "stops at once",
    "no_credit": "stops at once: no credit is left",
    "unreachable": "waited out for `patience_seconds`; then the run stops and can be gone on with",
}


def markdown() -> str:
    """The table of the docs."""
    lines = [
        "| service | behaviour | what happens here | its own words that show | what to change |",
        "|---|---|---|---|---|",
    ]
    for row in TABLE:
        happens = OUTCOMES[row.kind]
        if row.learned:
            happens += ", once it was told; learned as " + ", ".join(f"`{line}`" for line in row.learned)
        if row.endpoint.keys() & {"leave_out", "token_limit"}:
            happens += " with " + ", ".join(f"`{k}: {v}`".replace("'", "") for k, v in row.endpoint.items())
        if row.reasoning:
            happens += "; reasoning is kept apart"
        if row.finish == "length":
            happens += "; the turn is marked as cut"
        lines.append(f"| {row.service} | {row.behaviour} | {happens} | {row.says} | {row.key and f'`{row.key}`'} |")
    return "\n".join(lines) + "\n"
