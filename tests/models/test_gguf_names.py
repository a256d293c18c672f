"""The GGUF file that a name stands for: an asset, a local file, a file on the Hub; its licence and hash."""

from __future__ import annotations

import gguf
import huggingface_hub.constants
import pytest

from realm.core.files import file_sha256
from realm.models import assets, hub
from realm.models.assets import AssetError
from realm.models.gguf import stated_licence


@pytest.fixture
def file(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a model.gguf", "some-new-architecture")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tmp_path / "a model.gguf"


def test_a_local_file_stands_for_itself(file):
    assert assets.gguf_of(str(file)) == file


def test_other_names_stand_for_no_file(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    for name in (str(tmp_path), str(tmp_path / "folder.gguf"), "someone/model", "stage:02_usergpt_sft", "minilm"):
        assert assets.gguf_of(name) is None


def test_a_file_that_is_missing_or_none_is_told(file, tmp_path):
    with pytest.raises(AssetError, match=r"gone.gguf: cannot be read \(No such file"):
        assets.gguf_of(str(tmp_path / "gone.gguf"))
    file.write_bytes(b"<html>Not found</html>")
    with pytest.raises(AssetError, match=r"is no GGUF file: it begins with b'<htm'; download it again"):
        assets.gguf_of(str(file))


def test_of_a_split_file_all_parts_must_be_there(file, tmp_path):
    first, second = (tmp_path / f"big-0000{i}-of-00002.gguf" for i in (1, 2))
    file.rename(first)
    with pytest.raises(AssetError, match=r"big-00002-of-00002.gguf: cannot be read"):
        assets.gguf_of(str(first))
    second.write_bytes(first.read_bytes() + b"more")
    assert assets.gguf_of(str(first)) == first
    hashes = {f"{first}#1": file_sha256(first), f"{first}#2": file_sha256(second)}
    assert assets.gguf_hashes([str(first)]) == hashes


def test_a_gguf_file_is_no_model_to_train_on(file):
    for name in (str(file), "someone/model-GGUF:model.gguf"):
        with pytest.raises(AssetError, match="a GGUF file is served by engine"):
            assets.model(name)


def test_licence_and_hash_are_the_file_s_own(file):
    assert stated_licence(file) == assets.licence(str(file)) == "apache-2.0"
    assert assets.gguf_hashes([str(file), "minilm", "no/such"]) == {str(file): file_sha256(file)}
    assert assets.described(str(file)) == f"a model.gguf (apache-2.0, SHA-256 `{file_sha256(file)}`)"
    file.write_bytes(b"GGUF")
    assert assets.licence(str(file)) is None


def test_of_an_asset_licence_and_hash_are_known_before_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path))
    name = "qwen2.5-coder-1.5b"
    assert assets.gguf_hashes([name]) == {name: assets.ASSETS[name].sha256}
    assert assets.described(name) == f"{name} (Apache-2.0, SHA-256 `{assets.ASSETS[name].sha256}`)"
    assert assets.described("gpt-3.5-turbo") == "gpt-3.5-turbo"
    assert not list(tmp_path.iterdir())


def test_what_the_hub_does_not_give_is_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AssetError, match=r"^nobody/none-GGUF:m.gguf: the Hub does not answer, and its cache") as caught:
        assets.gguf_of("nobody/none-GGUF:m.gguf")
    assert "\n" not in str(caught.value)
    assert assets.gguf_hashes(["nobody/none-GGUF:m.gguf"]) == {}


def test_names_of_the_hub_and_of_split_files_are_read():
    assert hub.GGUF_NAME.fullmatch("Qwen/Qwen2.5-GGUF:sub/q4.gguf")["file"] == "sub/q4.gguf"
    assert not hub.GGUF_NAME.fullmatch("stage:02_usergpt_sft") and not hub.GGUF_NAME.fullmatch("one:two.gguf")
    assert hub.parts("m.gguf") == ["m.gguf"]
    assert hub.parts("m-00002-of-00002.gguf") == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
