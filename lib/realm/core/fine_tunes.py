"""The blocks of a profile that say how a model is fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from realm.core.block import Block

HELD_OUT_SIDE = "test"  # the split that evaluates


class OwnSplit(Block):
    """Validation rows from among the training conversations, as the authors' code has it: shuffled by ``seed``, the
    first ``train_share`` of them are trained on. By conversation, whatever two of them share."""

    train_share: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0, lt=2**32)


class SFT(Block):
    """What notebooks 02 and 04 share. ``max_train_tokens`` null trains on everything, ``epochs`` times.

    ``method``: qlora (NF4 base, LoRA on all linear layers), lora, or full (all weights, as the authors did).
    ``compute_dtype``: auto takes bfloat16 where the processor computes in it, float32 elsewhere.
    ``supervise``: whose turns carry the loss. ``test_conversations``: held-out sessions that before and after are
    measured on. ``eval_steps``: every so many optimizer steps the loss of ``valid_conversations`` validation rows is
    logged (null: never), and ``keep`` says what training ends with: the ``best`` of those steps, or the ``last``.
    ``own_split`` null takes these rows from valid.jsonl of notebook 01.
    An optimizer step sees batch_size * accumulation * processes segments. ``cpu_processes``: where there is no GPU, so
    many processes train together, a core or more each. Threads of one process wait for each other at every operation:
    beside other work two processes were four times as fast as two threads, on an idle machine no faster.
    """

    base_model: str
    supervise: Literal["user", "assistant", "both"]
    method: Literal["qlora", "lora", "full"]
    compute_dtype: Literal["auto", "float32", "bfloat16"]
    lora_rank: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    learning_rate: float = Field(gt=0, lt=1)
    weight_decay: float = Field(ge=0)
    warmup_ratio: float = Field(ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"]
    epochs: int = Field(ge=1)
    max_train_tokens: int | None = Field(ge=1_000)
    batch_size: int = Field(ge=1, description="segments per device in one forward pass")
    accumulation: int = Field(ge=1, description="forward passes per optimizer step")
    gradient_checkpointing: bool
    cpu_processes: int = Field(default=1, ge=1)
    checkpoint_steps: int = Field(ge=1)
    eval_steps: int | None = Field(ge=1)
    keep: Literal["best", "last"] = "best"
    own_split: OwnSplit | None = None
    valid_conversations: int = Field(ge=2)
    test_conversations: int = Field(ge=2)

    @property
    def chooses_best(self) -> bool:
        return self.keep == "best" and self.eval_steps is not None

    @model_validator(mode="after")
    def _checkpoints_are_evaluated(self) -> SFT:
        if self.chooses_best and self.checkpoint_steps % self.eval_steps:
            raise ValueError(f"checkpoint_steps must be a multiple of eval_steps, {self.eval_steps}")
        return self


class UserSFT(SFT):
    """What notebook 02 adds. ``opening_share``: of the budget of tokens, how much goes to segments that open their
    session, the rest to those from within one; null takes segments as they come. ``opening_rows``: of the former, the
    whole ``segment``, or its opening ``turn`` alone, so that no token of their share is spent on answers and as many
    more openings are learned from. ``learn_ending``: where a session
    truly ends, the human's next turn is its end token alone. ``controls``: what the same model is
    trained on for comparison: the other side, both, or human turns of segments as the authors cut them, without context
    and as they come. ``samples_shown``: turns to look at.
    """

    opening_share: float | None = Field(ge=0, le=1)
    opening_rows: Literal["segment", "turn"] = "segment"
    learn_ending: bool
    controls: list[Literal["assistant", "both", "plain_segments"]]
    samples_shown: int = Field(ge=1)

    @model_validator(mode="after")
    def _a_share_of_something(self) -> UserSFT:
        if self.opening_share is not None and self.max_train_tokens is None:
            raise ValueError("opening_share is a share of max_train_tokens, which is null")
        if self.opening_share is None and self.opening_rows == "turn":
            raise ValueError("opening_rows: turn is about the share of openings, and opening_share is null")
        return self


class Teaching(Block):
    """Notebook 04: does RealChat teach? Students trained as ReaLM on other corpora of ``simulation.beside``, by their
    names ``corpora``, all evaluated on the responder's answers in the corpus ``held_out``.

    ``shares`` of RealChat that students are trained on too; 1 is the whole. ``equal_tokens``: besides equal numbers of
    conversations, students of equal numbers of supervised tokens.
    """

    corpora: list[str] = Field(min_length=1)
    held_out: str
    shares: list[Annotated[float, Field(gt=0, le=1)]]
    equal_tokens: bool

    def require(self, sources: Mapping[str, str], realchat: str) -> None:
        """Raise ValueError where a corpus is not there (``sources``: name -> its seeds', ``realchat``: RealChat's), or
        where what evaluates would be trained on."""
        for key, name in (*(("corpora", c) for c in self.corpora), ("held_out", self.held_out)):
            if name not in sources:
                there = ", ".join(sources) or "none"
                raise ValueError(f"teaching.{key}: {name!r} is no corpus of simulation.beside; there are: {there}")
        if len(set(self.corpora)) < len(self.corpora):
            raise ValueError("teaching.corpora: a name stands twice")
        if self.held_out in self.corpora or sources[self.held_out] != HELD_OUT_SIDE:
            raise ValueError(
                f"teaching.held_out: {self.held_out!r} must have seed_source {HELD_OUT_SIDE} and not be trained on"
            )
        for name, source in {"realchat": realchat, **{c: sources[c] for c in self.corpora}}.items():
            if source == HELD_OUT_SIDE:
                raise ValueError(f"teaching.corpora: {name} has seed_source {HELD_OUT_SIDE}, which evaluates alone")
