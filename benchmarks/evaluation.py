"""Evaluation, side by side: ``python -m benchmarks.evaluation [RUN FOLDER]`` (else ``runs/cpu``, stages 01 and 02 run).

Perplexity of held-out human turns, batches side by side on the cores, against one batch that has all cores, the same
model and rows; and the two-sample test of notebook 06 with its permutations, by its closed form, against refitting the
same ridge by scikit-learn (fewer permutations, their seconds scaled up to all of them).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.coverage import drawn
from realm.conversations.readers import load_conversations
from realm.core.files import REPOSITORY
from realm.core.profile import load_profile
from realm.dialogue.encoder import encoder_of
from realm.evaluation.two_sample import two_sample
from realm.evaluation.user_turns import held_out_segments, score_turns
from realm.training import likelihood
from realm.training.base import load_base

RESULTS = Path(__file__).parent / "results" / "evaluation.csv"
REPETITIONS, PERMUTATIONS, REFITTED, A_SIDE, FOLDINGS = 3, 200, 2, 128, 10
PROFILE = load_profile("cpu")


def timed(action: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    found = action()
    return time.perf_counter() - started, found


def perplexities(run_folder: Path) -> list[dict]:
    """Both ways in turns; raises AssertionError where they do not say the same."""
    encoder = encoder_of(PROFILE, "usergpt_sft")
    test = load_conversations(run_folder / "01_data" / "test.jsonl")
    talks = held_out_segments(test, encoder, PROFILE.usergpt_sft.test_conversations, PROFILE.seed)
    model, workers, rows, sums = load_base(PROFILE.usergpt_sft), likelihood.MOST_WORKERS, [], {}
    for repetition in range(REPETITIONS):
        for way, most in (("batches side by side", workers), ("one batch on all cores", 1)):
            likelihood.MOST_WORKERS = most
            seconds, found = timed(lambda: score_turns(model, talks, encoder, "benchmark"))
            sums[way] = found.nll.sum()
            rows.append({"what": "perplexity", "way": way, "n": len(talks), "repetition": repetition})
            rows[-1]["seconds"] = seconds
    assert np.allclose(*sums.values(), rtol=1e-3), sums
    return rows


def two_sample_tests() -> list[dict]:
    rng, rows = np.random.default_rng(0), []
    one, other = drawn(rng, A_SIDE), drawn(rng, A_SIDE, 1.5)
    told = {"what": "two-sample test", "n": A_SIDE}
    for repetition in range(REPETITIONS):
        ours, _ = timed(lambda: two_sample(one, other, repeats=FOLDINGS, permutations=PERMUTATIONS, seed=1))
        theirs, _ = timed(lambda: refitted(one, other))
        rows.append({**told, "way": "closed form", "repetition": repetition, "seconds": ours})
        scaled = theirs * (1 + PERMUTATIONS) / (1 + REFITTED)
        rows.append({**told, "way": "scikit-learn, refitted", "repetition": repetition, "seconds": scaled})
    return rows


def refitted(one: np.ndarray, other: np.ndarray) -> list[float]:
    """The value and a few of its null, each folding fitted anew; the interval's leaving out is not even counted."""
    features, label = np.vstack([one, other]), np.repeat([0.0, 1.0], [len(one), len(other)])
    rng, values = np.random.default_rng(1), []
    for number in range(1 + REFITTED):
        truth = rng.permutation(label) if number else label
        folds = [StratifiedKFold(5, shuffle=True, random_state=i) for i in range(FOLDINGS)]
        model = make_pipeline(StandardScaler(), Ridge(alpha=len(features)))
        scores = [cross_val_predict(model, features, truth, cv=list(f.split(features, truth))) for f in folds]
        values.append(float(np.mean([roc_auc_score(truth, s) for s in scores])))
    return values


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "runs" / "cpu"
    table = pd.DataFrame(two_sample_tests() + perplexities(folder))
    table.to_csv(RESULTS, index=False)
    for what, some in table.groupby("what", sort=False):
        medians = {way: median(part.seconds) for way, part in some.groupby("way", sort=False)}
        fast, slow = medians.values()
        print(f"{what}: {medians}, ratio {slow / fast:.2f}")


if __name__ == "__main__":
    main()
