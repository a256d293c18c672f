"""Every public layout that the table knows: the same little talk in each, and what of a record is left out."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from realm.conversations import layouts
from realm.conversations.conversation import ConversationFileError
from realm.conversations.layouts import role_of
from realm.conversations.readers import ReadReport, read_conversations

Q, A, Q2, A2, S = "Why is the sky blue?", "Blue light scatters most.", "And at dusk?", "Then red is left.", "Be brief."
ONE = [("user", Q), ("assistant", A)]
TWO = [*ONE, ("user", Q2), ("assistant", A2)]
WITH_SYSTEM = [("system", S), *ONE]


def roles(user: str, assistant: str, role: str = "role", text: str = "content", talk=TWO, **more) -> list[dict]:
    names = {"user": user, "assistant": assistant, "system": "system"}
    return [{role: names[who], text: said, **more} for who, said in talk]


PAIRS = [[Q, A], [Q2, A2]]
TURNS = roles("user", "assistant")


def node(name: str, parent: str | None, role: str = "", said="", **more) -> dict:
    content = {"content_type": "text", "parts": [said]} if isinstance(said, str) else said
    message = {"id": name, "author": {"role": role}, "content": content, "metadata": {}, "recipient": "all", **more}
    return {"id": name, "parent": parent, "children": [], "message": message if role else None}


def export(*nodes: dict, current: str | None = None) -> dict:
    return {"title": "t", "mapping": {n["id"]: n for n in nodes}, "current_node": current, "conversation_id": "c"}


def reply(role: str, text: str, *replies: dict, rank: int | None = None, **more) -> dict:
    return {"message_id": text, "role": role, "text": text, "rank": rank, "replies": list(replies), **more}


# name -> (record, its turns, what is left out)
LAYOUTS: dict[str, tuple[object, list, dict]] = {
    # ShareGPT and its relatives
    "ShareGPT": ({"conversations": roles("human", "gpt", "from", "value")}, TWO, {}),
    "ShareGPT, as collected": ({"title": "t", "items": roles("human", "gpt", "from", "value")}, TWO, {}),
    "ShareGPT, a system column": (
        {"system": S, "conversations": roles("human", "gpt", "from", "value", ONE)},
        WITH_SYSTEM,
        {},
    ),
    "OpenHermes": ({"system_prompt": None, "conversations": roles("human", "gpt", "from", "value")}, TWO, {}),
    "roles with signs": ({"messages": roles("<|user|>", "<|assistant|>")}, TWO, {}),
    "roles with colons": ({"messages": roles("Human:", "AI Assistant:")}, TWO, {}),
    # public logs
    "WildChat": (
        {"conversation_hash": "h", "conversation": roles("user", "assistant", toxic=False), "turn": 2},
        TWO,
        {},
    ),
    "LMSYS-Chat-1M": (
        {"conversation_id": "x", "conversation": TURNS, "openai_moderation": [{"flagged": False}]},
        TWO,
        {},
    ),
    "Chatbot Arena": (
        {"question_id": "x", "winner": "model_b", "conversation_a": TURNS, "conversation_b": TURNS[:2]},
        TWO,
        {"answer of model b": 1},
    ),
    "Arena, lists as text": (
        {"prompt": json.dumps([Q, Q2]), "response_a": json.dumps([A, A2]), "response_b": json.dumps(["n", "n"])},
        TWO,
        {"answer of model b": 1},
    ),
    "PIPPA": (
        {"bot_name": "b", "conversation": [{"message": Q, "is_human": True}, {"message": A, "is_human": False}]},
        ONE,
        {},
    ),
    "PIPPA as columns": ({"conversation": {"message": [Q, A], "is_human": [True, False]}}, ONE, {}),
    "SODA": ({"dialogue": [Q, A, Q2, A2], "speakers": ["Ann", "Bo", "Ann", "Bo"], "head": "x"}, TWO, {}),
    "DailyDialog": ({"dialog": [Q, A, Q2, A2], "act": [1, 1, 1, 1]}, TWO, {}),
    "UltraChat": ({"id": "0", "data": [Q, A, Q2, A2]}, TWO, {}),
    "strings with names": ({"dialogue": [f"User: {Q}", f"Assistant: {A}"]}, ONE, {}),
    "Capybara": ({"source": "s", "conversation": [{"input": Q, "output": A}, {"input": Q2, "output": A2}]}, TWO, {}),
    "MOSS": ({"conversation": [{"human": Q, "assistant": A}, {"human": Q2, "assistant": A2}]}, TWO, {}),
    "roles as keys": ({"chat": [{"user": Q}, {"assistant": A}]}, ONE, {}),
    "pairs": ({"conversation": PAIRS}, TWO, {}),
    "role and text pairs": ({"messages": [["human", Q], ["ai", A]]}, ONE, {}),
    "MultiWOZ": ({"dialogue_id": "d", "turns": roles("USER", "SYSTEM", "speaker", "utterance")}, TWO, {}),
    "Taskmaster": ({"conversation_id": "d", "utterances": roles("USER", "ASSISTANT", "speaker", "text")}, TWO, {}),
    "two names": ({"utterances": roles("Ann", "Bo", "speaker", "text")}, TWO, {}),
    "CoQA": (
        {
            "story": "x",
            "questions": [{"input_text": Q}, {"input_text": Q2}],
            "answers": [{"input_text": A}, {"input_text": A2}],
        },
        TWO,
        {},
    ),
    "MT-bench questions": ({"question_id": 81, "category": "c", "turns": [Q, Q2]}, [("user", Q), ("user", Q2)], {}),
    "list of turns": (TURNS, TWO, {}),
    "turns as columns": ({"messages": {"role": ["user", "assistant"], "content": [Q, A]}}, ONE, {}),
    "JSON in a column": ({"id": 1, "conversations": json.dumps(roles("human", "gpt", "from", "value"))}, TWO, {}),
    "an unknown key": ({"id": 1, "my_talk": TURNS}, TWO, {}),
    # instructions
    "Alpaca": ({"instruction": "Name it:", "input": Q, "output": A}, [("user", f"Name it:\n\n{Q}"), ONE[1]], {}),
    "Alpaca, no input": ({"instruction": Q, "input": "<no input>", "output": A, "text": "x"}, ONE, {}),
    "Dolly": ({"instruction": Q, "context": "", "response": A, "category": "open_qa"}, ONE, {}),
    "OpenOrca": ({"id": "flan.1", "system_prompt": S, "question": Q, "response": A}, WITH_SYSTEM, {}),
    "prompt, completion": ({"prompt": Q, "completion": A}, ONE, {}),
    "query, response": ({"query": Q, "response": A}, ONE, {}),
    "problem, solution": ({"problem": Q, "solution": A}, ONE, {}),
    "LLaMA-Factory history": (
        {"instruction": Q2, "input": "", "output": A2, "system": "", "history": [[Q, A]]},
        TWO,
        {},
    ),
    "ChatGLM history": ({"prompt": Q2, "response": A2, "history": PAIRS[:1]}, TWO, {}),
    "an answer that is JSON": ({"prompt": Q, "response": '["a", "b"]'}, [ONE[0], ("assistant", '["a", "b"]')], {}),
    "a question that is JSON": ({"prompt": '{"a": 1}', "response": A}, [("user", '{"a": 1}'), ONE[1]], {}),
    "all columns of two layouts": (
        {"messages": None, "instruction": Q, "input": None, "output": A, "prompt": None},
        ONE,
        {},
    ),
    # preferences
    "HH": (
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}\n\nHuman: {Q2}\n\nAssistant: {A2}", "rejected": "\n\nHuman: x"},
        TWO,
        {"rejected answer": 1},
    ),
    "HH with prompt": (
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "chosen": f" {A}", "rejected": " no"},
        [ONE[0], ("assistant", f" {A}")],
        {"rejected answer": 1},
    ),
    "UltraFeedback": (
        {"prompt": Q, "prompt_id": "p", "chosen": TURNS[:2], "rejected": TURNS[:2], "messages": TURNS[:2]},
        ONE,
        {"rejected answer": 1},
    ),
    "chosen lists and a prompt": (
        {"prompt": Q, "chosen": TURNS[:2], "rejected": TURNS[:2]},
        ONE,
        {"rejected answer": 1},
    ),
    "chosen lists alone": ({"chosen": TURNS, "rejected": TURNS[:2]}, TWO, {"rejected answer": 1}),
    "chosen strings": (
        {"system": S, "question": Q, "chosen": A, "rejected": "no"},
        WITH_SYSTEM,
        {"rejected answer": 1},
    ),
    "prompt of turns": (
        {"prompt": TURNS[:3], "chosen": TURNS[3:], "rejected": TURNS[1:2]},
        TWO,
        {"rejected answer": 1},
    ),
    "LLaMA-Factory DPO": (
        {
            "conversations": roles("human", "gpt", "from", "value", TWO)[:3],
            "chosen": {"from": "gpt", "value": A2},
            "rejected": {"from": "gpt", "value": "n"},
        },
        TWO,
        {"rejected answer": 1},
    ),
    "OpenAI preferences": (
        {"input": {"messages": TURNS[:3]}, "preferred_output": TURNS[3:], "non_preferred_output": TURNS[1:2]},
        TWO,
        {"rejected answer": 1},
    ),
    "Nectar": (
        {
            "prompt": f"\n\nHuman: {Q}\n\nAssistant: ",
            "answers": [{"answer": "n", "rank": 2.0}, {"answer": A, "rank": 1.0}],
        },
        ONE,
        {"other answer": 1},
    ),
    "UltraFeedback, all answers": (
        {"instruction": Q, "completions": [{"response": A}, {"response": "n"}]},
        ONE,
        {"other answer": 1},
    ),
    "SafeRLHF": ({"prompt": Q, "response_0": A, "response_1": "n"}, ONE, {"second answer": 1}),
    "HelpSteer3": ({"context": TURNS[:3], "response1": A2, "response2": "n"}, TWO, {"second answer": 1}),
    # transcripts
    "Baize": (
        {"topic": Q, "input": f"Two talk.\n[|Human|] {Q}\n[|AI|] {A}\n[|Human|] {Q2}\n[|AI|] {A2}\n[|Human|] "},
        TWO,
        {"introduction": 1},
    ),
    "guanaco": ({"text": f"### Human: {Q}### Assistant: {A}### Human: {Q2}### Assistant: {A2}"}, TWO, {}),
    "ChatML": (
        {
            "text": f"<|im_start|>system\n{S}<|im_end|>\n<|im_start|>user\n{Q}<|im_end|>\n"
            f"<|im_start|>assistant\n{A}<|im_end|>\n"
        },
        WITH_SYSTEM,
        {},
    ),
    "Llama 2": (
        {"text": f"<s>[INST] <<SYS>>\n{S}\n<</SYS>>\n\n{Q} [/INST] {A} </s><s>[INST] {Q2} [/INST] {A2} </s>"},
        [("system", S), *TWO],
        {},
    ),
    "Vicuna": ({"text": f"{S} USER: {Q} ASSISTANT: {A}</s>USER: {Q2} ASSISTANT: {A2}</s>"}, [("system", S), *TWO], {}),
    "OIG": ({"text": f"<human>: {Q}\n<bot>: {A}"}, ONE, {}),
    "Alpaca's text": ({"text": f"{S}\n\n### Instruction:\n{Q}\n\n### Response:\n{A}"}, WITH_SYSTEM, {}),
    # services
    "OpenAI developer": ({"messages": [{"role": "developer", "content": S}, *TURNS[:2]]}, WITH_SYSTEM, {}),
    "OpenAI batch": ({"custom_id": "1", "method": "POST", "body": {"model": "m", "messages": TURNS}}, TWO, {}),
    "request and response": (
        {"request": {"messages": TURNS[:1]}, "response": {"choices": [{"message": TURNS[1]}]}},
        ONE,
        {},
    ),
    "OpenAI tools": (
        {
            "messages": [
                TURNS[0],
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "content": "42", "tool_call_id": "1"},
                *TURNS[1:],
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        TWO,
        {"tool turn": 2},
    ),
    "a call beside words": (
        {"messages": [TURNS[0], {**TURNS[1], "tool_calls": [{"id": "1"}]}, {"role": "function", "content": "4"}]},
        ONE,
        {"tool call": 1, "tool turn": 1},
    ),
    "LLaMA-Factory tools": (
        {
            "conversations": [
                {"from": "human", "value": Q},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": A},
            ],
            "tools": "[]",
        },
        ONE,
        {"tool turn": 2},
    ),
    "OpenAI parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Why is"},
                        {"type": "image_url", "image_url": {}},
                        {"type": "text", "text": "it?"},
                    ],
                },
                TURNS[1],
            ]
        },
        [("user", "Why is\nit?"), ONE[1]],
        {"image_url part": 1},
    ),
    "Anthropic": (
        {
            "system": [{"type": "text", "text": S}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": Q}]},
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "tool_use", "id": "1"}],
                },
                {"role": "user", "content": [{"type": "tool_result", "content": "4"}]},
                {"role": "assistant", "content": [{"type": "text", "text": A}]},
            ],
        },
        WITH_SYSTEM,
        {"tool turn": 2},
    ),
    "Gemini": (
        {
            "systemInstruction": {"role": "user", "parts": [{"text": S}]},
            "contents": [
                {"role": "user", "parts": [{"text": Q}, {"inline_data": {"mime_type": "image/png"}}]},
                {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": A}]},
            ],
        },
        WITH_SYSTEM,
        {"inline_data part": 1, "thinking part": 1},
    ),
    "Gemini tools": (
        {
            "contents": [
                {"role": "user", "parts": [{"text": Q}]},
                {"role": "model", "parts": [{"functionCall": {}}]},
                {"role": "user", "parts": [{"functionResponse": {}}]},
                {"role": "model", "parts": [{"text": A}]},
            ]
        },
        ONE,
        {"tool turn": 2},
    ),
    "Bedrock": (
        {
            "system": [{"text": S}],
            "messages": [{"role": "user", "content": [{"text": Q}]}, {"role": "assistant", "content": [{"text": A}]}],
        },
        WITH_SYSTEM,
        {},
    ),
    "Cohere": ({"messages": roles("User", "Chatbot")}, TWO, {}),
    "LangChain": (
        {"messages": [{"type": "human", "data": {"content": Q}}, {"type": "ai", "data": {"content": A}}]},
        ONE,
        {},
    ),
    "reasoning beside an answer": (
        {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": "hm"}]},
        ONE,
        {"reasoning": 1},
    ),
    # exports and trees
    "Claude's export": (
        {
            "uuid": "u",
            "chat_messages": [
                {"uuid": "1", "sender": "human", "text": Q, "content": [{"type": "text", "text": Q}]},
                {"uuid": "2", "sender": "assistant", "text": A, "content": []},
            ],
        },
        ONE,
        {},
    ),
    "ChatGPT's export": (
        export(
            node("r", None),
            node("s", "r", "system", ""),
            node(
                "c",
                "s",
                "user",
                {"content_type": "user_editable_context", "user_profile": "x"},
                metadata={"is_visually_hidden_from_conversation": True},
            ),
            node("q", "c", "user", Q),
            node("old", "q", "assistant", "no"),
            node("t", "q", "assistant", {"content_type": "code", "text": "1"}, recipient="python"),
            node("o", "t", "tool", {"content_type": "execution_output", "text": "1"}),
            node("th", "o", "assistant", {"content_type": "thoughts", "thoughts": []}),
            node("a", "th", "assistant", A),
            current="a",
        ),
        ONE,
        {"branch": 1, "hidden message": 1, "tool turn": 2, "thoughts message": 1},
    ),
    "ChatGPT's export, no current node": (export(node("q", None, "user", Q), node("a", "q", "assistant", A)), ONE, {}),
    "ChatGPT's export with a picture": (
        export(
            node(
                "q",
                None,
                "user",
                {"content_type": "multimodal_text", "parts": [{"content_type": "image_asset_pointer"}, Q]},
            ),
            node("a", "q", "assistant", A),
            current="a",
        ),
        ONE,
        {"image_asset_pointer part": 1},
    ),
    "OpenAssistant's tree": (
        {
            "message_tree_id": "t",
            "prompt": reply(
                "prompter",
                Q,
                reply("assistant", "no", reply("prompter", "x"), reply("prompter", "y"), rank=1),
                reply("assistant", A, reply("prompter", Q2, reply("assistant", A2)), rank=0),
            ),
        },
        TWO,
        {"branch": 2},
    ),
    "LibreChat": (
        {
            "messages": [
                {"messageId": "1", "parentMessageId": "0", "sender": "User", "isCreatedByUser": True, "text": Q},
                {"messageId": "2", "parentMessageId": "1", "sender": "GPT-4", "isCreatedByUser": False, "text": A},
                {"messageId": "3", "parentMessageId": "1", "sender": "GPT-4", "isCreatedByUser": False, "text": "n"},
            ]
        },
        ONE,
        {"branch": 1},
    ),
}


LAYOUTS |= {
    "calls as text": (
        {
            "conversations": [
                {"from": "human", "value": Q},
                {"from": "gpt", "value": "<tool_call>\n{}\n</tool_call>"},
                {"from": "tool", "value": "4"},
                {"from": "gpt", "value": A},
            ]
        },
        ONE,
        {"tool turn": 2},
    ),
    "BELLE": ({"instruction": f"Human:{Q}\nAssistant:{A}\nHuman:{Q2}\nAssistant:", "input": "", "output": A2}, TWO, {}),
    "a question that quotes a talk": (
        {"instruction": f"User: hi\nBot: ho\n{Q}", "input": "", "output": A},
        [("user", f"User: hi\nBot: ho\n{Q}"), ONE[1]],
        {},
    ),
    "a line a turn": ({"conversation": f"Human: {Q}\nAI: {A}\nHuman: {Q2}\nAI: {A2}"}, TWO, {}),
    "capital keys": ({"Context": Q, "Response": A}, ONE, {}),
    "PRISM": (
        {
            "conversation_id": "c",
            "conversation_history": [
                {"turn": 0, "role": "user", "content": Q},
                {"turn": 0, "role": "model", "content": "no", "if_chosen": False},
                {"turn": 0, "role": "model", "content": A, "if_chosen": True},
            ],
        },
        ONE,
        {"other answer": 1},
    ),
    "OpenAI responses": (
        {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": Q}]}],
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": A}]},
            ],
        },
        ONE,
        {"reasoning part": 1},
    ),
}


def read(path: Path, **options):
    report = ReadReport()
    return list(read_conversations(path, report=report, **options)), report


def told(conversation) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in conversation.messages]


@pytest.mark.parametrize("container", ["array", "lines", "pretty objects"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_tells_the_same_talk(tmp_path, name, container):
    record, turns, left_out = LAYOUTS[name]
    texts = {
        "array": json.dumps([record, record]),
        "lines": f"{json.dumps(record)}\n{json.dumps(record)}\n",
        "pretty objects": f"{json.dumps(record, indent=2)}\n{json.dumps(record, indent=2)}\n",
    }
    path = tmp_path / "file.json"
    path.write_text(texts[container], encoding="utf-8")
    conversations, report = read(path)
    assert [told(c) for c in conversations] == [turns, turns]
    assert (report.records, report.skipped) == (2, {})
    assert report.left_out == {kind: 2 * n for kind, n in left_out.items()}
    assert {k: n for k, n in report.noted.items() if k.endswith(" left out")} == {f"{k} left out": 2 for k in left_out}


@pytest.mark.parametrize("name", [n for n in LAYOUTS if isinstance(LAYOUTS[n][0], dict)])
def test_a_table_holds_the_same_layouts(tmp_path, name):
    record, turns, _ = LAYOUTS[name]
    path = tmp_path / "table.parquet"
    try:
        parquet.write_table(pyarrow.Table.from_pylist([record]), path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, pyarrow.ArrowTypeError):
        pytest.skip("no table can hold it")
    [conversation], _ = read(path)
    assert told(conversation) == turns


# ---------------------------------------------------------------- rows that are one turn each


OASST = [
    {"message_id": "1", "parent_id": None, "text": Q, "role": "prompter", "message_tree_id": "1", "rank": None},
    {"message_id": "2", "parent_id": "1", "text": "no", "role": "assistant", "message_tree_id": "1", "rank": 1},
    {"message_id": "3", "parent_id": "1", "text": A, "role": "assistant", "message_tree_id": "1", "rank": 0},
    {"message_id": "4", "parent_id": "3", "text": Q2, "role": "prompter", "message_tree_id": "1", "rank": 0},
    {"message_id": "5", "parent_id": "4", "text": A2, "role": "assistant", "message_tree_id": "1", "rank": 0},
    {"message_id": "6", "parent_id": None, "text": Q, "role": "prompter", "message_tree_id": "6", "rank": None},
    {"message_id": "7", "parent_id": "6", "text": A, "role": "assistant", "message_tree_id": "6", "rank": None},
]


@pytest.mark.parametrize("table", [False, True])
def test_rows_of_message_trees_become_one_talk_a_tree(tmp_path, table):
    path = tmp_path / "rows"
    if table:
        parquet.write_table(pyarrow.Table.from_pylist(OASST), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in OASST), encoding="utf-8")
    conversations, report = read(path)
    assert [(c.id, told(c)) for c in conversations] == [("1", TWO), ("6", ONE)]
    assert (report.records, report.left_out) == (2, {"branch": 1})


def test_rows_of_a_tree_may_stand_in_any_order_and_lack_some(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [OASST[2], OASST[0], OASST[1], {**OASST[3], "message_id": "9", "parent_id": "gone"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    [conversation], report = read(path)
    assert (told(conversation), report.left_out) == (ONE, {"branch": 1, "row without its parent": 1})


def test_rows_of_one_talk_each_go_by_their_id(tmp_path):
    rows = [
        {"conv_id": i, "utterance_idx": k, "speaker_idx": k % 2, "speaker": who, "utterance": said}
        for i in (7, 8)
        for k, (who, said) in enumerate(TWO)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    conversations, _ = read(path, strict=True)
    assert [(c.id, told(c)) for c in conversations] == [("7", TWO), ("8", TWO)]


def test_an_array_of_turns_is_one_talk(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(TURNS), encoding="utf-8")
    [conversation], report = read(path, strict=True)
    assert (conversation.id, told(conversation), report.records) == ("record-0", TWO, 1)


def test_rows_without_end_do_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("realm.conversations.sources.MOST_ROWS", 10)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(t) + "\n" for t in TURNS * 10), encoding="utf-8")
    conversations, _ = read(path)
    assert [len(c.messages) for c in conversations] == [10, 10, 10, 10]


# ---------------------------------------------------------------- containers

RECORDS = [{"id": str(i), "messages": TURNS} for i in range(3)]
CONTAINERS = {
    "an object holding a list": json.dumps({"version": 1, "data": RECORDS}),
    "the list first": json.dumps({"data": RECORDS, "info": {"n": [1, 2]}, "version": 1}),
    "broken into lines": json.dumps({"version": 1, "data": RECORDS}, indent=2),
    "under a key of turns": json.dumps({"conversations": RECORDS}),
    "two lists": json.dumps({"train": RECORDS[:2], "test": RECORDS[2:]}),
    "by name": json.dumps({r["id"]: {"messages": r["messages"]} for r in RECORDS}),
    "pretty objects": "\n".join(json.dumps(r, indent=4) for r in RECORDS),
    "objects with nothing between": "".join(json.dumps(r) for r in RECORDS),
    "lines with commas": ",\n".join(json.dumps(r) for r in RECORDS),
    "carriage returns": "\r".join(json.dumps(r) for r in RECORDS),
    "arrays of records a line": "".join(json.dumps([r]) + "\n" for r in RECORDS),
    "an array in an array": json.dumps([RECORDS]),
}


@pytest.mark.parametrize("text", CONTAINERS.values(), ids=CONTAINERS)
def test_every_container_gives_the_same_records(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8", newline="")
    conversations, report = read(path, strict=True)
    assert [(c.id, told(c)) for c in conversations] == [(str(i), TWO) for i in range(3)]
    assert (report.records, report.rows()) == (3, [])


NAMELESS = {
    "list of lists": json.dumps([TURNS, TURNS]),
    "an array a line": f"{json.dumps(TURNS)}\n{json.dumps(TURNS)}\n",
    "an object holding lists of turns": json.dumps({"dialogs": [TURNS, TURNS]}),
    "instructions under a key": json.dumps({"data": [{"instruction": Q, "output": A}] * 2}),
    "lists of strings": json.dumps([[Q, A, Q2, A2]] * 2),
}


@pytest.mark.parametrize("text", NAMELESS.values(), ids=NAMELESS)
def test_talks_without_ids_get_one(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    conversations, _ = read(path, strict=True)
    assert [c.id for c in conversations] == ["record-0", "record-1"]
    assert all(told(c) in (ONE, TWO) for c in conversations)


ARRAY_OF_TURNS = b"".join(json.dumps({"id": f"k{i}", "messages": TURNS}).encode() + b"\n" for i in range(3))
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (6).to_bytes(4, "little") + b"anyone"


@pytest.mark.parametrize("log", [10, 24, 27, 28])
@pytest.mark.parametrize("before", [b"", SKIPPABLE, SKIPPABLE * 2])
@pytest.mark.parametrize("between", [b"", SKIPPABLE])
def test_zstandard_with_frames_of_no_data_and_large_windows(tmp_path, log, before, between):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=log, enable_ldm=log > 24)
    # A stream of unknown size states its window; the whole in one call states its size instead.
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = writer.compress(ARRAY_OF_TURNS) + writer.flush()
    path = tmp_path / "talks.jsonl.zst"
    path.write_bytes(before + frame + between + zstandard.compress(ARRAY_OF_TURNS.replace(b'"k', b'"m')))
    conversations, report = read(path, strict=True)
    assert [c.id for c in conversations] == ["k0", "k1", "k2", "m0", "m1", "m2"]
    assert report.bytes_read == 2 * len(ARRAY_OF_TURNS)


def test_981_dialogues_in_the_layout_of_wildchat_are_981(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    with path.open("w", encoding="utf-8") as handle:
        for i in range(981):
            said = [*TURNS[:2], {"role": "user", "content": f"{Q2} {i}"}, TURNS[3]][: 2 + i % 3]
            turns = [{**t, "language": "English", "redacted": False, "turn_identifier": i} for t in said]
            record = {
                "conversation_hash": f"{i:032x}",
                "model": "m",
                "timestamp": "2023-04-09T00:02:53",
                "conversation": turns,
            }
            handle.write(json.dumps({**record, "turn": 2, "state": None, "header": {"accept-language": "en"}}) + "\n")
    conversations, report = read(path, strict=True)
    assert (len(conversations), report.records, report.rows()) == (981, 981, [])
    assert len({c.id for c in conversations}) == 981


# ---------------------------------------------------------------- what is not read, and told


def test_no_turns_names_the_keys(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"headline": "x", "story": "y"}\n{"headline": "z", "n": 1}\n', encoding="utf-8")
    _, report = read(path)
    assert report.skipped == {"no turns": 2}
    assert report.rows()[0]["treatment"] == "skipped; their keys: headline, story, n"
    with pytest.raises(
        ConversationFileError, match=r"no turns: 2\); keys of its records: headline, story, n; see README"
    ):
        report.require_conversations()
    with pytest.raises(ConversationFileError, match=r"\(record 0 at byte 0, keys: headline, story\): no turns"):
        read(path, strict=True)


def test_a_system_turn_of_a_chat_stays_one(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps([{"messages": [{"role": "user", "content": Q}, {"role": "system", "content": S}]}]))
    [conversation], _ = read(path)
    assert told(conversation) == [("user", Q), ("system", S)]


def test_three_names_are_nobody_that_is_known(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps([{"dialogue": [Q, A, Q2], "speakers": ["Ann", "Bo", "Cy"]}]))
    _, report = read(path)
    assert report.skipped == {"unknown role": 1}


def test_a_talk_of_tools_alone_is_skipped(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps([{"messages": [{"role": "tool", "content": "4"}]}]))
    _, report = read(path)
    assert (report.skipped, report.left_out) == ({"nothing but turns of tools": 1}, {})


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Human", "user"),
        ("PROMPTER", "user"),
        ("AI", "assistant"),
        ("GPT-4", "assistant"),
        ("model", "assistant"),
        ("developer", "system"),
        ("observation", "tool"),
        ("narrator", None),
        (None, None),
        (3, None),
        ("", None),
    ],
)
def test_roles_by_any_of_their_names(name, role):
    assert role_of(name) == role


# ---------------------------------------------------------------- anything under the keys of the table

KEYS = st.sampled_from(
    sorted(
        {
            *layouts.TURN_KEYS,
            *layouts.ROLE_KEYS,
            *layouts.TEXT_KEYS,
            *layouts.ASKED_KEYS,
            *layouts.SAID_KEYS,
            *layouts.WRAPPERS,
            *layouts.SYSTEM_KEYS,
            *layouts.IS_USER_KEYS,
            *layouts.ROW_GROUP_KEYS,
            *layouts.SPEAKER_KEYS,
            *layouts.LEFT_OUT_KEYS,
            *layouts.REPLIES_KEYS,
            *("mapping", "current_node", "parent", "parent_id", "message_id", "id", "meta", "type", "rank", "Context"),
        }
    )
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(allow_nan=True),
    st.sampled_from(
        ["user", "assistant", "tool", "text", "Ann", "", '["a", "b"]', "{}", "\n\nHuman: a\n\nAssistant: b", "[INST] a"]
    ),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=16
)


@settings(max_examples=150)
@given(
    st.lists(st.dictionaries(KEYS, VALUES, max_size=5) | st.lists(VALUES, max_size=3), min_size=1, max_size=3),
    st.booleans(),
)
def test_whatever_stands_under_these_keys_is_read_or_counted(records, lines):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file.json"
        texts = [json.dumps(r) for r in records]
        path.write_text("\n".join(texts) if lines else json.dumps(records), encoding="utf-8")
        report = ReadReport()
        try:
            conversations = list(read_conversations(path, report=report))
        except ConversationFileError as error:
            assert "\n" not in str(error)
            return
    assert len(conversations) == report.read
    assert all(m.role in ("user", "assistant", "system") for c in conversations for m in c.messages)
    json.dumps([c.to_record() for c in conversations])
    str(report.rows()).encode()
