"""The part of a profile that says whom to ask: what is refused there, and what must not be shown of it."""

import pytest
import yaml

from realm.core.profile import ProfileError, load_profile

SECRET = "hunter2-and-more"


@pytest.fixture
def load(tmp_path):
    """A profile whose responder is a service, with other values."""

    def with_values(**values):
        smoke = load_profile("smoke").model_dump(mode="json")
        service = {"engine": "api", "model": "m", "base_url": "https://x.example/v1", "max_new_tokens": 64}
        smoke["simulation"]["responder"] = service | values
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(smoke))
        return load_profile(path).simulation.responder

    return with_values


def test_the_keys_of_a_service_have_values_that_change_nothing(load):
    plain = load()
    assert (plain.leave_out, plain.extra_body, plain.headers) == ([], {}, {})
    assert (plain.token_limit, plain.system_as) == ("max_tokens", "system")
    full = load(
        leave_out=["seed", "top_p", "temperature", "max_tokens"],
        token_limit="max_completion_tokens",
        system_as="first_user",
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "top_k": 5},
        headers={"api-key": "$AZURE_API_KEY", "X-Title": "ours"},
        patience_seconds=5.0,
        base_url="https://x.example/openai?api-version=1",
    )
    assert full.extra_body["top_k"] == 5 and full.headers["api-key"] == "$AZURE_API_KEY"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"api_key_env": f"sk-{SECRET}"}, "api_key_env: expected the name of an environment variable"),
        ({"api_key_env": f"gsk_{SECRET.replace('-', '')}"}, "api_key_env: expected the name"),
        ({"api_key_env": f"{SECRET.upper().replace('-', '')}{'A1' * 12}"}, "api_key_env: expected the name"),
        ({"api_key_env": [SECRET]}, "api_key_env: "),
        ({"base_url": f"https://me:{SECRET}@x.example/v1"}, "base_url: holds a user name or a password"),
        ({"base_url": f"https://{SECRET}@x.example/v1"}, "base_url: holds a user name or a password"),
        ({"base_url": f"https://x.example/v1?api_key={SECRET}"}, r"base_url: holds a secret \(api_key=...\)"),
        ({"base_url": f"ftp://x.example/{SECRET}"}, "base_url: expected an address such as"),
        ({"base_url": f"http://x.example:{SECRET}/v1"}, "base_url: expected an address such as"),
        ({"headers": {"Authorization": f"Bearer {SECRET}"}}, "headers: the value of Authorization belongs into an env"),
        ({"headers": {"api-key": SECRET}}, "headers: the value of api-key belongs into an environment variable"),
        ({"headers": {"x": [SECRET]}}, "headers.x: "),
        ({"headers": {f"no {SECRET}": "x"}}, "headers: holds a name that no header can have"),
        ({"extra_body": {"messages": []}}, "extra_body: messages is the client's own"),
        ({"extra_body": SECRET}, "extra_body: "),
        ({"leave_out": ["messages"]}, "leave_out.0: 'messages' is not allowed; allowed: 'temperature'"),
        ({"leave_out": "seed"}, "leave_out: "),
        ({"token_limit": "max_new_tokens"}, "token_limit: 'max_new_tokens' is not allowed; allowed: 'max_tokens'"),
        ({"system_as": "user"}, "system_as: 'user' is not allowed; allowed: 'system', 'developer' or 'first_user'"),
        ({"patience_seconds": 0.0}, "patience_seconds: "),
        ({"max_new_tokens": 2048}, "max_new_tokens 2048 leaves no room for a question in context_length 2048"),
        (
            {"max_new_tokens": 4096, "context_length": 1024},
            "leaves no room .* lower max_new_tokens or raise context_le",
        ),
    ],
)
def test_what_cannot_be_is_one_line_with_its_key_and_no_secret(load, values, words):
    with pytest.raises(ProfileError, match=words) as caught:
        load(**values)
    text = str(caught.value)
    assert "simulation.responder" in text and "\n" not in text
    assert not any(s in text.lower() for s in (SECRET, SECRET.replace("-", "")))
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_variable_of_any_name_that_is_set_will_do(load, monkeypatch):
    monkeypatch.setenv("my_key", "x")
    assert load(api_key_env="my_key").api_key_env == "my_key"
    assert load(api_key_env="OPENAI_API_KEY").api_key_env == "OPENAI_API_KEY"
