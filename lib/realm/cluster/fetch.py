"""All that a profile needs from outside, brought in where the network is, so that no job asks for it again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from realm.conversations.hub import HubChoice, fetch_rows
from realm.core.files import REPOSITORY
from realm.core.profile import Profile
from realm.models import assets
from realm.models.assets import AssetError
from realm.serving.local import program_of

SERVING = ".venv-serving"


def fetch(profile: Profile) -> None:
    """Assets, models and data of the Hub, and the environment that serves models; what is here is verified.

    Raises AssetError, ConversationFileError and EndpointError, one line each.
    """
    assets.fetch_all(profile)
    for name, served in _models(profile):
        print(f"model {name}", flush=True)
        if not (served and assets.gguf_of(name)):
            assets.model(name)
    for source, choice in _data(profile):
        print(f"data {source}", flush=True)
        fetch_rows(source, choice)
    engines = [e for e in profile.endpoints().values() if e.engine in ("vllm", "transformers")]
    if any(e.environment == SERVING for e in engines):
        done = subprocess.run([REPOSITORY / "run_all.sh", "--serving-env"])
        if done.returncode:
            raise AssetError(f"{SERVING} could not be made; what pip says stands above")
    for endpoint in engines:
        program_of(endpoint)


def _models(profile: Profile) -> Iterator[tuple[str, bool]]:
    """Name -> whether llama.cpp serves it, of models that are neither assets nor made by a stage."""
    names = dict.fromkeys((profile.usergpt_sft.base_model, profile.realm_sft.base_model), False)
    names |= dict.fromkeys((profile.data_inspection.embedder, profile.simulator_realism.embedder), False)
    for endpoint in profile.endpoints().values():
        if endpoint.engine != "api":
            names[endpoint.model] = endpoint.engine == "llama.cpp"
    yield from (
        (n, served) for n, served in names.items() if n not in assets.ASSETS and not n.startswith(("stage:", "base:"))
    )


def _data(profile: Profile) -> Iterator[tuple[str, HubChoice]]:
    source = profile.data_inspection.source
    if source not in assets.ASSETS and not Path(source).exists():
        yield source, HubChoice(**profile.data_inspection.hub)
