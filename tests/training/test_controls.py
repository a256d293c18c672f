"""Controls differ from UserGPT in what they are trained on, and in nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_model import conversations, write_job, write_tiny_model

from realm.conversations.conversation import CONTEXT, ENDS_SESSION, PLACE, Message
from realm.conversations.writers import write_conversations
from realm.dialogue.encoder import IGNORED
from realm.training.base import load_base
from realm.training.controls import train_control
from realm.training.launch import CONTROLS
from realm.training.likelihood import likelihood

FOLLOWS = {CONTEXT: 1, PLACE: 2}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """UserGPT's: 12 conversations, as many from within a session, and an ending that stands alone."""
    root = tmp_path_factory.mktemp("controls")
    talks = conversations(12)
    inside = [
        replace(c, id=f"{c.id}/1", messages=(Message("assistant", "so it ends."), *c.messages), meta=FOLLOWS)
        for c in talks
    ]
    alone = replace(inside[0], id="end/1", messages=inside[0].messages[:1], meta={**FOLLOWS, ENDS_SESSION: True})
    write_conversations(root / "train.jsonl", [*talks, *inside, alone])
    budget = {"max_train_tokens": 20_000, "opening_share": 1.0, "eval_steps": 2, "controls": list(CONTROLS)}
    return write_job(
        root, write_tiny_model(root / "tiny"), "job", root / "train.jsonl", root / "train.jsonl", 0, **budget
    )


def rows_of(job, kind):
    control = replace(job, control=kind)
    return control.rows(control.encoder())


def test_a_control_learns_from_its_side(job):
    count = {kind: sum(r.supervised for r in rows_of(job, kind)) for kind in (None, "assistant", "both")}
    assert count["both"] == count[None] + count["assistant"] and min(count.values()) > 0
    assert [r.id for r in rows_of(job, None)] == [r.id for r in rows_of(job, "both")]
    assert not any("/" in r.id for r in rows_of(job, "assistant"))  # the budget's share is that of UserGPT


def test_the_authors_segments_come_as_they_do_without_what_came_before(job):
    usual, plain = rows_of(job, None), rows_of(job, "plain_segments")
    assert len(plain) == 2 * len(usual)  # both kinds; openings alone
    by_id = {r.id: r for r in plain}
    for row in usual:
        assert np.array_equal(row.input_ids, by_id[row.id].input_ids)
        assert np.array_equal(by_id[f"{row.id}/1"].input_ids, row.input_ids)
        assert (row.labels != IGNORED).any()


def test_a_trained_control_foretells_its_side_better(job):
    control = train_control("assistant", job)
    rows = rows_of(job, "assistant")
    tokenizer = job.encoder().tokenizer
    before = likelihood(load_base(job.config), rows, tokenizer, "base").nll.sum()
    assert likelihood(control, rows, tokenizer, "control").nll.sum() < before
    assert (job.folder / "control_assistant" / "train_log.jsonl").is_file()
    assert "eval_loss" not in (job.folder / "control_assistant" / "train_log.jsonl").read_text()
