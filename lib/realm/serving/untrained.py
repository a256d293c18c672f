"""What a stage's model was before training, served as that model is: the same tokenizer, template and end token."""

from __future__ import annotations

from pathlib import Path

from realm.core.files import atomic_folder
from realm.core.locks import in_turn
from realm.models import assets

FOLDER = "untrained"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def untrained(stage: Path, base_model: str) -> Path:
    """A folder of links in ``stage``: the weights of ``base_model``, all else as in ``merged/``.

    A raw base model brings no chat template, and another one's would compare prompts, not models. Raises AssetError.
    """
    folder, merged = stage / FOLDER, stage / "merged"
    base = assets.model(base_model)
    weights = {p.name: p.resolve() for pattern in WEIGHTS for p in base.glob(pattern)}
    trained = {p.name for pattern in WEIGHTS for p in merged.glob(pattern)}
    beside = {p.name: p for p in merged.iterdir() if p.suffix in (".json", ".jinja", ".model", ".txt")}
    wanted = {name: p.resolve() for name, p in beside.items() if name not in trained} | weights
    with in_turn(folder):
        if folder.is_dir() and {p.name: p.resolve() for p in folder.iterdir() if p.is_symlink()} == wanted:
            return folder
        with atomic_folder(folder) as workspace:
            for name, path in wanted.items():
                (workspace / name).symlink_to(path)
    return folder
