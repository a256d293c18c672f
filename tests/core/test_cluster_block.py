"""The profile's block ``cluster``: what each job asks of Slurm, and what is refused."""

import pytest
import yaml

from realm.core.cluster import JOBS, SHARDS, Cluster
from realm.core.profile import PROFILE_FOLDER, ProfileError, load_profile
from realm.pipeline.stages import STAGES


def test_there_is_a_job_for_every_stage_and_one_for_the_shards():
    assert [job for job in JOBS if job != SHARDS] == [stage.notebook for stage in STAGES]
    assert JOBS.index(SHARDS) == JOBS.index("03_simulation") - 1


def test_a_stage_asks_for_what_it_says_and_for_the_rest_like_all():
    stages = {"02_usergpt_sft": {"gpus": 4, "time": "2-00:00:00"}, "05_mt_bench": {"gpus": 0}}
    cluster = Cluster.model_validate({"partition": "a100", "gpus": 1, "time": "8:00:00", "stages": stages})
    training, others, none = (cluster.of(job) for job in ("02_usergpt_sft", SHARDS, "05_mt_bench"))
    assert (training.partition, training.gpus, training.time) == ("a100", 4, "2-00:00:00")
    assert (others.partition, others.gpus, others.time) == ("a100", 1, "8:00:00")
    assert none.gpus == 0


WRONG = [
    ({"partitoin": "gpu"}, "cluster.partitoin: unknown key; allowed: partition, account"),
    ({"time": 7200}, "cluster.time: 7200 is no time of Slurm's; write hours:minutes:seconds in quotes, '8:00:00' say"),
    ({"time": "a day"}, "cluster.time: 'a day' is no time of Slurm's"),
    ({"memory": "64 GB"}, "cluster.memory: "),
    ({"gpus": -1}, "cluster.gpus: input should be greater than or equal to 0, not -1"),
    ({"options": ["--array=1-3"]}, "cluster.options: --array is set for each job by ourselves; take it out of options"),
    ({"options": ["exclusive"]}, "cluster.options.0: "),
    ({"stages": {"02": {"gpus": 1}}}, "cluster: stages: 02 is no job; there are 01_data_inspection, 02_usergpt_sft"),
    ({"stages": {SHARDS: {"gpu": 1}}}, f"cluster.stages.{SHARDS}.gpu: unknown key; allowed: partition"),
    ({"setup": ["export OPENAI_API_KEY=sk-12345"]}, "cluster.setup: the value of OPENAI_API_KEY would stand in every"),
    ({"shards": 0}, "cluster.shards: input should be greater than or equal to 1, not 0"),
]


def test_setup_may_read_a_key_from_a_file():
    lines = [
        "module load cuda/12.8",
        "export OPENAI_API_KEY=$(cat ~/key)",
        'export MY_TOKEN="$OTHER"',
        "set -o pipefail",
    ]
    assert Cluster(setup=lines).setup == lines


@pytest.mark.parametrize(("block", "expected"), WRONG, ids=[str(block) for block, _ in WRONG])
def test_what_is_wrong_is_one_line(tmp_path, block, expected):
    values = yaml.safe_load((PROFILE_FOLDER / "smoke.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**values, "cluster": block}))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: {expected}") and "\n" not in str(caught.value)
