"""The one table of public layouts: what keys hold turns, who speaks, where the text is, what goes beside it.

A layout that is not read yet is a word in this table; ``turns``, ``trees``, ``transcripts`` and ``records`` are the
grammar around it. Keys are looked up in the order given here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from typing import Any

USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"
_NAMES = {
    USER: "user human prompter usr me customer client questioner apprentice",
    ASSISTANT: "assistant gpt chatgpt ai bot chatbot model bing bard claude gemini llama agent moss wizard"
    " ai_assistant gpt_3.5 gpt_4 gpt_3.5_turbo gpt_4o",
    SYSTEM: "system developer system_prompt sys",
    TOOL: "tool tools function function_call function_response function_result tool_call tool_calls tool_response"
    " tool_result tool_results tool_use observation ipython code_interpreter plugin",
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ROLE_ALIASES = {name: role for role, names in _NAMES.items() for name in names.split()}
_AROUND_A_ROLE = " \t\r\n:<>|[]#*"  # <|user|>, [|Human|], "Human:"

# ---- a record
TURN_KEYS = _words(
    "messages conversations conversation dialog dialogue dialogs dialogues turns chat chat_messages contents utterances"
    " thread items chunks data conversation_a full_conversation history"
)
BENCH_KEYS = ("question_id", "reference")  # beside `turns`: a benchmark's questions, all of them by the user
CONTAINER_KEYS = ("data", "items")  # may hold records as well as turns
ROW = "row"
SPEAKER_KEYS = ("speakers", "speaker", "roles", "role")  # a list beside a list of strings
TREE_KEY, CURRENT_KEY = "mapping", "current_node"  # ChatGPT's export
REPLIES_KEYS = ("replies", "children")
SYSTEM_KEYS = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
ID_KEYS = (
    "id",
    "conversation_id",
    "conversation_hash",
    "conv_id",
    "dialogue_id",
    "dialog_id",
    "uuid",
    "message_tree_id",
)
WRAPPERS = ("body", "request", "params", "chunkedPrompt", "chat", "conversation", "dialogue", "data")
ASKED_KEYS = _words("instruction prompt question query problem user human user_input inputs input")
MATERIAL_KEYS = ("input", "context", "query")  # what the question is about
SAID_KEYS = _words(
    "chosen preferred_output output response answer completion solution assistant gpt bot reply targets responses"
    " completions answers generations response_a response_0 response1 answer_0 answer_a"
)
PARALLEL_KEYS = (("questions", "answers"), ("prompts", "responses"), ("prompt", "response_a"), ("question", "answer"))
JSON_KEYS = ("response_a",)  # lists as text, as Chatbot Arena's tables have them
TEXT_KEYS_OF_A_RECORD = ("text", "chosen", "prompt", "input", *TURN_KEYS)  # a whole talk as one string
NO_INPUT = re.compile(r"\s*<?\s*no[\s_-]?input\s*>?\.?\s*", re.I)
# Never told: beside what is read, of another answer, or of another model.
LEFT_OUT_KEYS = {
    **dict.fromkeys(
        ("rejected", "rejected_response", "rejected_messages", "non_preferred_output", "rejected_output"),
        "rejected answer",
    ),
    **dict.fromkeys(("conversation_b", "response_b", "answer_b"), "answer of model b"),
    **dict.fromkeys(("response_1", "response2", "answer_1"), "second answer"),
}

# ---- a turn
ROLE_KEYS = ("role", "from", "speaker", "speaker_idx", "speaker_id", "author", "sender", "participant", "type")
PLAIN_TURNS = (("role", "content"), ("from", "value"))  # nearly all of them
# These may hold a name; SYSTEM there is who answers USER.
NAMING_KEYS = (
    "speaker",
    "speaker_idx",
    "speaker_id",
    "author",
    "sender",
    "participant",
)
IS_USER_KEYS = ("is_human", "is_user", "isUser", "isHuman", "isCreatedByUser", "from_user")
TEXT_KEYS = ("content", "value", "text", "utterance", "message", "parts", "mes", "data")
OTHER_ANSWER = "other answer"  # in place of a role: one that the user did not choose
CHOSEN_KEYS = ("if_chosen", "is_chosen")
CALL_KEYS = ("tool_calls", "function_call")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TEXT_KINDS = ("text", "input_text", "output_text", "multimodal_text", "message", "")
TOOL_KINDS = frozenset(
    _words(
        "tool_use tool_result tool_call tool_response function_call function_response functionCall functionResponse"
        " server_tool_use web_search_tool_result execution_output executable_code code_execution_result"
    )
)

# ---- a row that is one turn of a talk
TOOL_TEXT = re.compile(r"\s*(?:<(tool_call|tool_response|function_call)>.*?</\1>\s*)+", re.S)
ROW_GROUP_KEYS = (
    *("message_tree_id", "conversation_id", "conv_id", "dialogue_id", "dialog_id", "session_id", "thread_id"),
    *("chat_id", "conversation_hash"),
)


_KNOWN = {*TURN_KEYS, *WRAPPERS, *SYSTEM_KEYS, *ASKED_KEYS, *MATERIAL_KEYS, *SAID_KEYS, *LEFT_OUT_KEYS, TREE_KEY}


def role_of(name: Any) -> str | None:
    """user, assistant, system or tool; None for a name that the table does not know."""
    if not isinstance(name, str):
        return None
    if name in ROLE_ALIASES:
        return ROLE_ALIASES[name]
    plain = name.strip(_AROUND_A_ROLE).lower()
    return ROLE_ALIASES.get(plain) or ROLE_ALIASES.get(re.sub(r"[\s-]+", "_", plain))


def given(record: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of ``keys`` under which something stands. A table of several layouts has all columns, most null."""
    return next((k for k in keys if record.get(k) not in (None, "", [], {})), None)


def is_turn(value: Any) -> bool:
    """Whether it is one turn that says who speaks, and what."""
    if not isinstance(value, dict) or not any(k in value for k in TEXT_KEYS):
        return False
    named = next((k for k in ROLE_KEYS if value.get(k) is not None), None)
    if named == "type":
        return role_of(value["type"]) is not None
    return named is not None or any(isinstance(value.get(k), bool) for k in IS_USER_KEYS)


def from_json(value: Any) -> Any:
    """A column that holds JSON as a string, read; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{") and value.rstrip()[-1:] in ("]", "}"):
        try:
            return json.loads(value, strict=False)
        except (ValueError, RecursionError):
            return value
    return value


def holds_records(key: str, first: Any) -> bool:
    """Whether a list under ``key`` that begins with ``first`` holds records, or is itself the turns of one."""
    if isinstance(first, list):
        return bool(first) and is_turn(first[0])
    found = shape(first)
    if found == ROW:
        return given(first, ROW_GROUP_KEYS) is not None
    if found in (TREE_KEY, *TURN_KEYS):
        return True
    plain = found and all(isinstance(first.get(k), str) for k in found.split("/"))
    return bool(plain) and (key in CONTAINER_KEYS or key not in TURN_KEYS)


def is_named_record(key: str, value: Any) -> bool:
    """Whether ``value`` is a record whose name is its key in an object of records."""
    return key not in _KNOWN and isinstance(value, dict) and shape(value) in (TREE_KEY, *TURN_KEYS)


def shape(value: Any) -> str:
    """Which layout a value has, by the key that holds its turns; nothing for what is no record of a talk."""
    if isinstance(value, list):
        return "list" if value and (is_turn(value[0]) or shape_of_pair(value[0])) else ""
    if not isinstance(value, dict):
        return ""
    if row_group(value) is not None:
        return ROW
    for key in (TREE_KEY, *TURN_KEYS):
        held = value.get(key)
        if isinstance(held, (list, dict)) and held:
            return key
    return shape_of_pair(value)


def shape_of_pair(value: Any) -> str:
    """``asked/said`` where one key asks and another answers."""
    if not isinstance(value, dict):
        return ""
    asked, said = given(value, ASKED_KEYS), given(value, SAID_KEYS)
    if said == "chosen" or (asked and isinstance(value[asked], dict)):
        return f"{asked}/{said}"
    return f"{asked}/{said}" if asked and said else ""


def row_group(value: Any) -> Hashable:
    """What the rows of one talk have in common, where a row is a single turn; None for another row."""
    if not is_turn(value) or any(isinstance(value.get(k), (list, dict)) for k in TURN_KEYS if k not in TEXT_KEYS):
        return None
    key = given(value, ROW_GROUP_KEYS)
    found = value[key] if key else ""
    return (key, found) if isinstance(found, (str, int)) else (key, repr(found))
