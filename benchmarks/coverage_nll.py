"""Nats and tokens a conversation, for ``benchmarks.coverage``: ``python -m benchmarks.coverage_nll runs/cpu-long``.

Numbers alone: held-out human turns under the base model and UserGPT (``results/turn_nll.csv``), the responder's answers
to held-out humans under the base model and the students of RealChat and of real humans' turns
(``results/teaching_nll.csv``). Stages 01 to 04 of the run have to be there.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.coverage_turns import RESULTS
from realm.conversations.readers import load_conversations
from realm.core.profile import load_profile
from realm.dialogue.encoder import encoder_of
from realm.evaluation.held_out import held_out, seen_by_training
from realm.evaluation.teaching import exam_of, marks_of
from realm.evaluation.user_turns import held_out_segments, score_turns
from realm.training.base import adapter_off, load_base


def turns(folder: Path, profile) -> pd.DataFrame:
    config, encoder = profile.usergpt_sft, encoder_of(profile, "usergpt_sft")
    test, _ = held_out(load_conversations(folder / "01_data/test.jsonl"), seen_by_training(folder, ["02_usergpt_sft"]))
    talks = held_out_segments(test, encoder, config.test_conversations, profile.seed)
    model = PeftModel.from_pretrained(load_base(config), folder / "02_usergpt_sft/adapter")
    found = {"usergpt": score_turns(model, talks, encoder, "UserGPT")}
    with adapter_off(model):
        found["base"] = score_turns(model, talks, encoder, "base model")
    columns = {}
    for who, scores in found.items():
        nll, tokens, _ = scores.per_conversation(scores.spoken["all"])
        has = tokens > 0
        columns |= {who: nll[has], "tokens": tokens[has].astype(int)}
    return pd.DataFrame(columns)


def teaching(folder: Path, profile) -> pd.DataFrame:
    longest = profile.simulation.responder.context_length
    config, encoder = profile.realm_sft, replace(encoder_of(profile, "realm_sft"), max_length=longest)
    answered = load_conversations(folder / f"03_simulation/beside/{profile.teaching.held_out}/realchat.jsonl")
    exam = exam_of(answered, load_conversations(folder / "01_data/test.jsonl"), encoder)
    room = folder / "04_realm_sft"
    adapters = {"realchat": room / "adapter", "humans": get_last_checkpoint(str(room / "student_humans/checkpoints"))}
    columns: dict[str, np.ndarray] = {}
    for who, adapter in adapters.items():
        model = PeftModel.from_pretrained(load_base(config), adapter)
        columns[who], columns["tokens"] = marks_of(model, exam, encoder.tokenizer, who).of("answers")
        if "base" not in columns:
            with adapter_off(model):
                columns["base"], _ = marks_of(model, exam, encoder.tokenizer, "base").of("answers")
    table = pd.DataFrame(columns)
    return table[table.tokens > 0].astype({"tokens": int})


def main() -> None:
    folder = Path(sys.argv[1])
    profile = load_profile(folder.name)
    for name, table in (("turn_nll", turns(folder, profile)), ("teaching_nll", teaching(folder, profile))):
        table.round(3).to_csv(RESULTS / f"{name}.csv", index=False)
        print(f"{name}: {len(table)} conversations")


if __name__ == "__main__":
    main()
