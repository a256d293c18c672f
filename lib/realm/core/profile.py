"""Profiles: the values by which a laptop run and a cluster run differ. Everything else is the same code.

One YAML file, one block a notebook, plus ``dialogue``, on which all of them agree. A wrong key, type or
value is refused in one line that names the file, the key and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from realm.core.asker import Asker
from realm.core.block import Block, require_name
from realm.core.cluster import Cluster
from realm.core.endpoint import Endpoint, Judge
from realm.core.errors import OneLineError
from realm.core.files import REPOSITORY
from realm.core.fine_tunes import SFT, Teaching, UserSFT
from realm.core.keys_once import KeysOnce
from realm.core.profile_errors import explain
from realm.core.secrets import register_secret
from realm.core.set_aside import FOLDER
from realm.core.simulator_realism import SimulatorRealism

PROFILE_FOLDER = REPOSITORY / "profiles"
RUNS_VARIABLE = "REALM_RUNS"


class ProfileError(OneLineError, ValueError):
    """A profile that cannot be used; one line naming file, key and allowed values."""


class Dialogue(Block):
    """How a conversation becomes tokens. Training and serving read the same values.

    ``max_length``: tokens of one training segment (paper: 2048). ``context_tokens``: a segment from within a session
    opens with so many of the last tokens of the answer before it, never supervised (0: with none).
    """

    template: Literal["chatml", "dyadic"]
    max_length: int = Field(ge=64)
    context_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def _context_leaves_room(self) -> Dialogue:
        if 2 * self.context_tokens > self.max_length:
            raise ValueError(f"context_tokens must be at most half of max_length, {self.max_length}")
        return self


class DataInspection(Block):
    """Notebook 01. Shares are of sessions; ``max_conversations`` null reads all.

    ``preset``: ``fixed``, or ``paper`` for the authors' cleaning rules as published.
    ``near_duplicate_threshold``: Jaccard similarity of 5-word shingles from which two sessions are one.
    ``strict``: refuse a file at its first defect, instead of counting and skipping it.
    ``topic_turns``: human opening turns embedded by ``embedder`` and grouped into ``topics`` clusters.
    ``config``, ``split`` (train unless said), ``data_files``, ``revision``: of a Hub data set, for ``load_dataset``.
    """

    source: str
    max_conversations: int | None = Field(ge=20)
    strict: bool
    preset: Literal["paper", "fixed"]
    near_duplicate_threshold: float = Field(ge=0.3, le=1)
    replace_private_data: bool
    seeds_share: float = Field(gt=0, lt=0.3)
    valid_share: float = Field(gt=0, lt=0.3)
    test_share: float = Field(gt=0, lt=0.5)
    embedder: str
    topics: int = Field(ge=2, le=40)
    topic_turns: int = Field(ge=10)
    config: str | None = None
    split: str | None = None
    data_files: str | list[str] | None = None
    revision: str | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Side -> its share of the sessions; the rest is for training."""
        return {"test": self.test_share, "valid": self.valid_share, "seeds": self.seeds_share}

    @property
    def hub(self) -> dict[str, Any]:
        """What is chosen within a Hub data set."""
        return {k: getattr(self, k) for k in ("config", "split", "data_files", "revision")}

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> DataInspection:
        if sum(self.shares.values()) > 0.9:
            raise ValueError("seeds_share, valid_share and test_share leave less than a tenth to train on")
        return self


class Guardrails(Block):
    """What is done about turns that spoil a conversation; each intervention is counted.

    ``resample_tries``: how often an empty, repeated or drifting turn is asked for again before it ends the
    conversation (0: never). ``max_turn_characters``: longer turns are cut there. ``role_drift``: a human turn that
    answers as the assistant is such a turn.
    """

    resample_tries: int = Field(ge=0, le=10)
    max_turn_characters: int | None = Field(ge=1)
    role_drift: bool


class Price(Block):
    """Dollars per million tokens."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class Budget(Block):
    """Where a simulation stops asking; null is without limit. What is in flight by then is still paid.

    ``tokens`` counts those sent and those generated. A price is null where nothing is charged. Of ``n`` shards each
    has an ``n``-th.
    """

    requests: int | None = Field(ge=1)
    tokens: int | None = Field(ge=1)
    dollars: float | None = Field(gt=0)
    user_price: Price | None
    responder_price: Price | None

    @model_validator(mode="after")
    def _dollars_need_a_price(self) -> Budget:
        if self.dollars is not None and self.user_price is None and self.responder_price is None:
            raise ValueError("dollars needs user_price or responder_price, else nothing is ever spent")
        return self


class Simulation(Block):
    """Notebook 03. ``free`` and ``seeded`` count conversations; a round is a user turn and its answer.

    ``simulator``: ``usergpt``, ``roleplay`` (an assistant told to play the user), or ``replay``: the human turns of
    ``seeded`` conversations of ``seed_source`` as they stand, for which there is no ``user`` endpoint.
    ``cut_turns``: a turn cut at its limit of tokens is marked, and no end is learned from it (``mark``); or it is gone
    on with once, by engines that can, llama.cpp and vllm (``continue``); or its conversation ends with it (``end``).
    ``responder_prompt``: the responder's system prompt, null for the library's own; a seed's own goes before it.
    ``beside``: corpora that differ from this one in who asks, by name; they have everything else from here.
    """

    simulator: Literal["usergpt", "roleplay", "replay"]
    user: Endpoint | None
    responder: Endpoint
    free: int = Field(ge=0)
    seeded: int = Field(ge=0)
    seed_source: str = Field(description="`split` for the seeds split, `train`, `test`, or a conversation file")
    max_rounds: int = Field(ge=1)
    cut_turns: Literal["mark", "continue", "end"] = "mark"
    guardrails: Guardrails
    budget: Budget
    responder_prompt: str | None = Field(default=None, pattern=r"\S")
    beside: dict[str, Asker] = Field(default_factory=dict)

    def asked_by(self, asker: Asker) -> Simulation:
        """This simulation with somebody else who asks. Raises ValidationError where that is none."""
        return Simulation(**{**dict(self), "beside": {}, **asker.differs()})

    @model_validator(mode="after")
    def _something_to_do(self) -> Simulation:
        if self.free + self.seeded == 0:
            raise ValueError("free and seeded are both 0: nothing to simulate")
        return self

    @model_validator(mode="after")
    def _someone_to_ask(self) -> Simulation:
        replayed = self.simulator == "replay"
        if replayed and self.free:
            raise ValueError("simulator replay takes its turns from seed_source: free must be 0")
        if replayed != (self.user is None):
            raise ValueError(
                f"simulator {self.simulator} " + ("needs user: null" if replayed else "needs a user endpoint")
            )
        return self

    @model_validator(mode="after")
    def _corpora_are_simulations(self) -> Simulation:
        for name, asker in self.beside.items():
            require_name(name, ("realchat", FOLDER))
            try:
                self.asked_by(asker)
            except ValidationError as error:
                raise ValueError(f"beside.{name}: {error.errors()[0]['ctx']['error']}") from None
        return self


class MTBench(Block):
    """Notebook 05. ``questions`` are drawn evenly over the 8 categories (80 in all). ``base`` is what ReaLM was made
    of; ``beside``: any other models that answer the same questions, by names of lower-case letters, digits and ``_``.

    With a ``judge``: ``calibration`` holds it against right answers before it scores, on all questions drawn or on so
    many; ``pairwise`` lets it compare ReaLM's answers with each other model's, in both orders; every answer is rated
    ``judge_repeats`` times, the first being its score and the others telling the judge's noise.
    """

    questions: int = Field(ge=8, le=80)
    base: Endpoint
    realm: Endpoint
    beside: dict[str, Endpoint] = Field(default_factory=dict)
    judge: Judge | None
    calibration: bool | Annotated[int, Field(ge=1)] = True
    pairwise: bool = False
    judge_repeats: int = Field(default=1, ge=1, le=20)

    @property
    def answerers(self) -> dict[str, Endpoint]:
        """Name -> who answers the questions."""
        return {"base": self.base, "realm": self.realm, **self.beside}

    @model_validator(mode="after")
    def _names_are_files(self) -> MTBench:
        for name in self.beside:
            require_name(name, ("base", "realm", "judge"))
        return self

    @model_validator(mode="after")
    def _even_draw(self) -> MTBench:
        if self.questions % 8:
            raise ValueError("questions must be a multiple of 8, the number of categories")
        return self


class Profile(Block):
    """A whole run."""

    seed: int = Field(ge=0)
    dialogue: Dialogue
    data_inspection: DataInspection
    usergpt_sft: UserSFT
    simulation: Simulation
    realm_sft: SFT
    mt_bench: MTBench
    simulator_realism: SimulatorRealism
    teaching: Teaching | None = None
    cluster: Cluster = Field(default_factory=Cluster)

    def endpoints(self) -> dict[str, Endpoint]:
        """Key of the profile, as ``simulation.user`` -> endpoint."""
        return dict(_endpoints_in("", self))

    def corpora(self) -> dict[str, Simulation]:
        """Name -> simulation, of the corpora beside RealChat."""
        return {name: self.simulation.asked_by(asker) for name, asker in self.simulation.beside.items()}

    @model_validator(mode="after")
    def _teaching_has_its_corpora(self) -> Profile:
        if self.teaching is not None:
            sources = {name: config.seed_source for name, config in self.corpora().items()}
            self.teaching.require(sources, self.simulation.seed_source)
        return self


def _endpoints_in(key: str, value: Any) -> Iterator[tuple[str, Endpoint]]:
    if isinstance(value, Endpoint):
        yield key, value
    elif isinstance(value, Block | dict):
        for name, inner in value if isinstance(value, Block) else value.items():
            yield from _endpoints_in(f"{key}.{name}" if key else name, inner)


def profile_path(name: str | Path) -> Path:
    """``"cpu"`` -> profiles/cpu.yaml; a path stays. Raises ProfileError naming the profiles there are."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = PROFILE_FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILE_FOLDER.glob("*.yaml")))
        raise ProfileError(f"{name}: no such profile; there are {known}, or give the path of a YAML file")
    return path


def load_profile(name: str | Path) -> Profile:
    """Read and validate a profile by name or path.

    Raises ProfileError, one line, naming the file, the key and the allowed values.
    """
    path = profile_path(name)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=KeysOnce)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ProfileError(f"{path}: expected keys and values; allowed: {', '.join(Profile.model_fields)}")
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        # A misspelt key is both unknown and missing; the unknown one is what the reader can see in the file.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ProfileError(f"{path}: {explain(first, Profile)}") from None


def run_name(profile: str | Path) -> str:
    """What a run of a profile is called: its file's name; ``cpu-own`` for a file ``cpu.yaml`` that is not the shipped
    one, so that neither lands among the other's results."""
    path = profile_path(profile).resolve()
    shipped = PROFILE_FOLDER.resolve()
    own = path.parent != shipped and (shipped / f"{path.stem}.yaml").exists()
    return f"{path.stem}-own" if own else path.stem


def run_folder(profile: str) -> Path:
    """``runs/<run_name>`` in the repository, or in ``$REALM_RUNS`` (a scratch disk, say)."""
    return Path(os.environ.get(RUNS_VARIABLE) or REPOSITORY / "runs").resolve() / run_name(profile)


def profile_and_folder(name: str) -> tuple[Profile, Path]:
    """What a command line begins with: the profile and its run's folder, and its keys known as secrets."""
    profile, folder = load_profile(name), run_folder(name)
    for endpoint in profile.endpoints().values():
        register_secret(os.environ.get(endpoint.api_key_env or ""))
    return profile, folder
