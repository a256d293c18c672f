"""Which GPUs a server has: a rule, held without any GPU."""

import pytest
from test_environment import VLLM, make_environment
from tiny_model import write_tiny_model

from realm.serving.faults import EndpointError
from realm.serving.gpus import place, seen
from realm.serving.local import local_server


def of_both(gpus, **values):
    endpoint = VLLM.model_copy(update=values)
    return [place(endpoint, gpus, share=2, number=n) for n in (0, 1)]


def test_two_servers_divide_the_gpus_and_none_is_had_by_both():
    for gpus in ("01", "0123", "01234"):
        user, responder = of_both(tuple(gpus))
        assert sorted(user.gpus + responder.gpus) == list(gpus)
        assert 0 <= len(user.gpus) - len(responder.gpus) <= 1
        assert user.memory == responder.memory == 0.9


def test_on_one_gpu_they_divide_its_memory_unless_the_profile_says_how():
    assert [(p.gpus, p.memory) for p in of_both(("7",))] == [(("7",), 0.45)] * 2
    assert [p.memory for p in of_both(("7",), gpu_memory_share=0.3)] == [0.3, 0.3]
    assert place(VLLM, ("0",)).memory == 0.9


def test_a_copy_of_the_model_on_each_gpu_or_over_several():
    words = lambda gpus, width: place(VLLM.model_copy(update={"tensor_parallel": width}), gpus).options(width)  # noqa: E731
    memory = ["--gpu-memory-utilization", "0.9"]
    assert words(("0",), 1) == memory
    assert words(tuple("0123"), 1) == [*memory, "--data-parallel-size", "4"]
    assert words(tuple("0123"), 4) == [*memory, "--tensor-parallel-size", "4"]
    assert words(tuple("01234"), 2) == [*memory, "--tensor-parallel-size", "2", "--data-parallel-size", "2"]
    with pytest.raises(EndpointError, match="tensor_parallel 4 of m: it has 2 GPUs, 2 servers divide 4; lower it"):
        of_both(tuple("0123"), tensor_parallel=4)


def test_the_gpus_of_a_job_are_those_that_slurm_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-9a")
    assert seen() == ("2", "GPU-9a")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert seen() == ()


def test_a_server_sees_its_gpus_alone(tmp_path, monkeypatch):
    program = make_environment(tmp_path / "env")
    program.write_text(program.read_text().replace("echo", 'echo "GPUS=$CUDA_VISIBLE_DEVICES"\necho', 1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    endpoint = VLLM.model_copy(update={"environment": str(tmp_path / "env")})
    with local_server(endpoint, write_tiny_model(tmp_path / "model"), None, tmp_path / "log", share=2, number=1):
        pass
    said = (tmp_path / "log").read_text()
    assert "GPUS=2,3" in said and "--data-parallel-size 2" in said


def test_how_long_a_server_may_take_is_the_profiles_to_say(tmp_path):
    program = make_environment(tmp_path / "env")
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    endpoint = VLLM.model_copy(update={"environment": str(tmp_path / "env"), "start_seconds": 0.5})
    with (
        pytest.raises(EndpointError, match=r"no sign of health in 0.5 s \(start_seconds\)"),
        local_server(endpoint, write_tiny_model(tmp_path / "model"), None, tmp_path / "log"),
    ):
        pytest.fail("it never came up")
