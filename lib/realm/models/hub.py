"""The Hub: model folders and GGUF files by repository, asked briefly first whether it is there at all.

Its own client waits and tries again for half a minute where no network is; one short question comes before it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from realm.core.errors import OneLineError

PATIENCE_SECONDS = 4
GGUF_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+):(?P<file>[^:]+\.gguf)")
# How llama.cpp names the files of a model that was split: it opens the first and finds the others beside it.
SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<of>\d{5})\.gguf")


class HubError(OneLineError, RuntimeError):
    """What the Hub does not give; the message names it and the reason."""


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def answers(path: str = "") -> bool:
    """Whether the Hub may be asked (``HF_HUB_OFFLINE``) and says anything within a few seconds."""
    return _head(path) is not None


def _head(path: str):
    """The Hub's first answer to a HEAD request, redirects not followed; None where it may not be asked or is silent."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return httpx.head(f"{_endpoint()}/{path}", timeout=PATIENCE_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
        return None


def pinned_file(repository: str, file: str, sha256: str, folder: Path) -> Path | None:
    """A public file with these very bytes, downloaded into ``folder``; None where the Hub does not answer.

    The caller verifies it. Raises HubError if the file there is another by now, or breaks off.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    answer = _head(f"{repository}/resolve/main/{file}")
    if answer is None:
        return None
    if answer.status_code >= 400:
        raise HubError(f"the Hub answers {answer.status_code} for {repository}:{file}")
    there = answer.headers.get("x-linked-etag", "").strip('"')
    if there and there != sha256:
        raise HubError(f"{repository}:{file} has SHA-256 {there} on the Hub by now, not the pinned {sha256}")
    try:
        return Path(hf_hub_download(repository, file, local_dir=folder, endpoint=_endpoint()))
    except (HfHubHTTPError, OSError) as error:
        raise HubError(f"the Hub did not give {repository}:{file} ({_said(error)})") from None


def model_folder(name: str) -> Path:
    """A repository's model, without pickled weights and without code. Raises HubError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=not answers()))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise HubError(f"the Hub did not give it ({type(error).__name__})") from error


def gguf_file(name: str, *, fetch: bool = True) -> Path:
    """The GGUF that ``repository:file`` names, the first where it is split; from the Hub's cache, else fetched.

    Without ``fetch`` only the cache is asked. Raises HubError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, file = GGUF_NAME.fullmatch(name).group("repository", "file")
    local = not fetch or not answers()
    paths = []
    for part in parts(file):
        try:
            paths.append(hf_hub_download(repository, part, local_files_only=local, endpoint=_endpoint()))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            why = "the Hub does not answer, and its cache does not hold it" if local else _said(error)
            raise HubError(
                f"{name}: {why}; check repository, file, the network and HF_TOKEN, or name a local GGUF file"
            ) from None
    return Path(paths[0])


def gguf_size(name: str) -> int | None:
    """Bytes of the GGUF that ``repository:file`` names, all its parts; None where the Hub does not tell."""
    repository, file = GGUF_NAME.fullmatch(name).group("repository", "file")
    told = [_head(f"{repository}/resolve/main/{part}") for part in parts(file)]
    sizes = [a.headers.get("x-linked-size") for a in told if a is not None]
    return sum(map(int, sizes)) if len(sizes) == len(told) and all(sizes) else None


def parts(file: str) -> list[str]:
    """All files of a split GGUF, by the name of any; else the one name."""
    split = SPLIT.fullmatch(file)
    if not split:
        return [file]
    return [f"{split['stem']}-{i:05d}-of-{split['of']}.gguf" for i in range(1, int(split["of"]) + 1)]


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
