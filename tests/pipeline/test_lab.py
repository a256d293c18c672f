"""Reading along: the kernel, and how JupyterLab is started."""

import json
import os
import subprocess
import sys
import tomllib

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from realm.core.files import REPOSITORY, ArtefactError
from realm.pipeline import lab
from realm.pipeline.stages import STAGES


def test_every_notebook_names_the_kernel():
    for stage in STAGES:
        metadata = json.loads(stage.path.read_text(encoding="utf-8"))["metadata"]
        assert metadata["kernelspec"]["name"] == lab.KERNEL


def test_the_kernel_is_installed_once_and_mended(tmp_path):
    folder = lab.install_kernel(tmp_path)
    spec = folder / "kernel.json"
    written = spec.stat().st_mtime_ns
    assert lab.install_kernel(tmp_path) == folder and spec.stat().st_mtime_ns == written
    spec.write_text("{}")
    lab.install_kernel(tmp_path)
    assert json.loads(spec.read_text())["argv"][0] == "python"  # which jupyter takes for the interpreter it runs in


def test_the_kernel_is_found_before_others_of_its_name(tmp_path, monkeypatch):
    other = tmp_path / "other" / "kernels" / lab.KERNEL
    other.mkdir(parents=True)
    (other / "kernel.json").write_text('{"argv": ["false"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "other"))
    folder = lab.install_kernel(tmp_path / "own")
    monkeypatch.setenv("JUPYTER_PATH", lab.environment(tmp_path / "own")["JUPYTER_PATH"])
    assert KernelSpecManager().get_kernel_spec(lab.KERNEL).resource_dir == str(folder)


def test_an_environment_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "share").write_text("a file")
    with pytest.raises(ArtefactError, match="cannot write here") as error:
        lab.install_kernel(tmp_path)
    assert str(error.value).count("\n") == 0


def test_installing_the_package_installs_the_kernel():
    files = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert files["data-files"] == {
        f"share/jupyter/kernels/{lab.KERNEL}": [str(lab.SPEC.relative_to(REPOSITORY))],
    }


def test_what_follows_the_option_is_for_jupyterlab(tmp_path):
    script = f"import sys; sys.prefix = {str(tmp_path)!r}; from realm.pipeline import lab; lab.main(['--version'])"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("4.")
    assert (tmp_path / "share" / "jupyter" / "kernels" / lab.KERNEL / "kernel.json").exists()
