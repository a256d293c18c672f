"""One record of any layout of the table -> the talk it tells, and what else stood in it that is left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from realm.conversations import layouts, transcripts, trees
from realm.conversations.layouts import ASSISTANT, SYSTEM, USER, given
from realm.conversations.turns import Turn, kind_of, said_by, text_of, turns_of

DEEPEST = 3  # records within records: a request's body, an export's chat


@dataclass
class Talk:
    """``turns`` is None where no key of the table holds any; ``odd``: a list of them stood there, and is none.

    ``left_out``: what else the record holds of a talk, by kind, counted.
    """

    turns: list[Turn] | None = None
    odd: bool = False
    left_out: Counter[str] = field(default_factory=Counter)


def talk_of(value: Any, depth: int = 0) -> Talk:
    """The talk of a record: an object of any layout, a list of turns, or rows that are one turn each."""
    talk = Talk()
    if isinstance(value, list):
        talk.turns = _listed(value, {}, "", talk)
        return talk
    if isinstance(value.get(layouts.TREE_KEY), dict):
        talk.turns = trees.export_turns(value, talk.left_out)
        if talk.turns:
            return talk
    root = trees.root_of(value)
    if root is not None:
        talk.turns = trees.best_path(root, talk.left_out)
        return talk
    talk.turns = _under_a_turn_key(value, talk)
    if talk.turns is None:
        talk.turns = _asked_and_said(value, talk) or _transcript(value) or _under_another_key(value)
    if not talk.turns and any(isinstance(k, str) and k != k.lower() for k in value) and depth < DEEPEST:
        talk = talk_of({k.lower() if isinstance(k, str) else k: v for k, v in reversed(value.items())}, DEEPEST)
    if not talk.turns and depth < DEEPEST:
        inner = [talk_of(value[k], depth + 1) for k in layouts.WRAPPERS if isinstance(value.get(k), dict)]
        talk = next((t for t in inner if t.turns), talk)
    if talk.turns:
        _with_the_chosen_answer(value, talk)
        talk.turns = _system(value, talk) + talk.turns
        for key, name in layouts.LEFT_OUT_KEYS.items():
            talk.left_out[name] += bool(value.get(key))
    return talk


def _listed(held: Any, record: dict[str, Any], key: str, talk: Talk) -> list[Turn] | None:
    held = layouts.from_json(held)
    if trees.is_linked(held):
        return trees.row_turns(held, talk.left_out)
    questions = key == "turns" and any(k in record for k in layouts.BENCH_KEYS)
    speakers = given(record, layouts.SPEAKER_KEYS)
    return turns_of(held, record[speakers] if speakers else None, questions)


def _under_a_turn_key(record: dict[str, Any], talk: Talk) -> list[Turn] | None:
    for key in layouts.TURN_KEYS:
        if key == "history" and layouts.shape_of_pair(record):
            continue  # what came before the pair
        turns = _listed(record[key], record, key, talk) if record.get(key) else None
        if turns:
            return turns
        talk.odd |= isinstance(record.get(key), list) and bool(record[key])
    return None


def _under_another_key(record: dict[str, Any]) -> list[Turn] | None:
    """The only list of a record that is one of turns, each by a role that the table knows."""
    lists = [v for v in record.values() if isinstance(v, list) and v and all(map(layouts.is_turn, v))]
    turns = turns_of(lists[0]) if len(lists) == 1 else None
    return turns if turns and all(turn.role for turn in turns) else None


def _transcript(record: dict[str, Any]) -> list[Turn] | None:
    for key in layouts.TEXT_KEYS_OF_A_RECORD:
        text = record.get(key)
        turns = [said_by(*found) for found in transcripts.turns_in(text)] if isinstance(text, str) else []
        if turns:
            return turns
    return None


def _system(record: dict[str, Any], talk: Talk) -> list[Turn]:
    """The system message that stands beside the turns, where they do not open with one."""
    key = given(record, layouts.SYSTEM_KEYS)
    if key is None or talk.turns[0].role == SYSTEM:
        return []
    value = record[key]
    if text_of(value, Counter()) is None:
        talk.left_out["system message that is no text"] += 1
        return []
    return [said_by(SYSTEM, value)] if text_of(value, Counter()).strip() else []


# ---- a question and its answer


def _asked_and_said(record: dict[str, Any], talk: Talk) -> list[Turn] | None:
    """History, question and answer of an instruction record; the chosen one of several answers."""
    for asked, said in layouts.PARALLEL_KEYS:
        read = layouts.from_json if said in layouts.JSON_KEYS else lambda value: value
        rounds = _rounds(read(record.get(asked)), read(record.get(said)))
        if rounds:
            return rounds
    asked, said = given(record, layouts.ASKED_KEYS), given(record, layouts.SAID_KEYS)
    if "instruction" in record and asked in (None, *layouts.MATERIAL_KEYS):
        asked = "instruction"
    context = record.get("context")
    if asked is None and (isinstance(context, list) or (isinstance(context, str) and said in ("response", "reply"))):
        asked = "context"
    if asked == "instruction":
        said = said or next((k for k in layouts.SAID_KEYS if k in record), "output")
    if said is None or (asked is None and said != "chosen"):
        return None
    before = turns_of(record["history"]) if record.get("history") else None
    question = _question(record, asked) if asked else []
    answer = _answer(record.get(said), talk)
    if _retells(answer, question):
        question = []
    return [*(before or []), *question, *answer]


def _rounds(asked: Any, said: Any) -> list[Turn] | None:
    """Lists of as many questions as answers."""
    if not (isinstance(asked, list) and isinstance(said, list) and asked and len(asked) == len(said)):
        return None
    if not all(isinstance(x, str) or (isinstance(x, dict) and x.get("input_text")) for x in [*asked, *said]):
        return None
    texts = [[x if isinstance(x, str) else x["input_text"] for x in side] for side in (asked, said)]
    return [
        said_by(role, text)
        for pair in zip(*texts, strict=True)
        for role, text in zip((USER, ASSISTANT), pair, strict=True)
    ]


def _question(record: dict[str, Any], asked: str) -> list[Turn]:
    question = _read_if_turns(record[asked])
    if isinstance(question, str):
        inner = [said_by(*turn) for turn in transcripts.waiting_turns(question)]
    else:
        inner = talk_of(question, DEEPEST).turns if isinstance(question, dict) else turns_of(question)
    if inner:
        return inner
    if isinstance(question, dict):
        return [said_by(USER, question)]
    material_key = given(record, tuple(k for k in layouts.MATERIAL_KEYS if k != asked)) if asked != "input" else None
    material = record[material_key] if material_key else ""
    if not isinstance(question, str) or not isinstance(material, str):
        return [said_by(USER, None)]
    if layouts.NO_INPUT.fullmatch(material):
        material = ""
    return [said_by(USER, "\n\n".join(text for text in (question, material) if text))]


def _answer(said: Any, talk: Talk) -> list[Turn]:
    """An answer: a text, a turn, turns, or the best of several; the others are counted."""
    said = _read_if_turns(said)
    if isinstance(said, dict):
        choices = said.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            talk.left_out[layouts.OTHER_ANSWER] += len(choices) - 1
            said = choices[0].get("message", choices[0])
        inner = turns_of([said]) if layouts.is_turn(said) else talk_of(said, DEEPEST).turns
        return inner or [said_by(ASSISTANT, _text_within(said))]
    if isinstance(said, list) and said:
        turns = [item for item in said if layouts.is_turn(item)]
        if turns:
            talk.left_out.update(f"{kind_of(item)} part" for item in said if not layouts.is_turn(item))
            return turns_of(turns) or [said_by(ASSISTANT, None)]
        best = min(said, key=trees.rank_of)
        if isinstance(_text_within(best), str):
            talk.left_out[layouts.OTHER_ANSWER] += len(said) - 1
            return [said_by(ASSISTANT, _text_within(best))]
        return [said_by(ASSISTANT, None)]
    if isinstance(said, str):
        told = transcripts.turns_in(said)
        if told and told[0][0] == USER:
            return [said_by(*turn) for turn in told]
    return [said_by(ASSISTANT, said)]


def _read_if_turns(value: Any) -> Any:
    """A column of JSON read where it holds turns; an answer that is JSON stays the text that it is."""
    read = layouts.from_json(value)
    first = read[0] if isinstance(read, list) and read else read
    return read if layouts.is_turn(first) else value


def _text_within(answer: Any) -> Any:
    if not isinstance(answer, dict):
        return answer
    return next(
        (answer[k] for k in ("answer", "response", "output", "text", "content", "value") if answer.get(k)), None
    )


def _retells(answer: list[Turn], question: list[Turn]) -> bool:
    """Whether an answer is a whole talk that opens as the question does."""
    return bool(len(answer) > 1 and question and answer[0].role != ASSISTANT)


def _with_the_chosen_answer(record: dict[str, Any], talk: Talk) -> None:
    """A preference pair beside turns that wait for an answer: the chosen one is their last."""
    turns = talk.turns
    key = given(record, ("chosen", "preferred_output", "response", "completion"))
    last = next((t for t in reversed(turns) if t.role != SYSTEM), None)
    if key is None or last is None or last.role != USER:
        return
    answer = _answer(record[key], talk)
    if _retells(answer, turns):
        talk.turns = answer
    else:
        turns += [turn for turn in answer if turn.role == ASSISTANT]
