"""How often 95 % intervals hold what they are of: ``python -m benchmarks.coverage``.

Gaussian vectors with the spectrum of MiniLM embeddings (the eigenvalues of 848 human openings' covariance,
``results/minilm_spectrum.csv``), turned at random; simulators are shifted. What an interval should hold is the mean of
the statistic over samples of its size. Beside the two-sample test stands the way before it: a mean of AUCs by logistic
regression with the interval of the averaged ranks, stretched to hold it. All other statistics: ``coverage_turns.py``.
Called again, it simulates only what ``results/coverage.csv`` has not yet; ``--anew`` begins again.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import coverage_turns
from benchmarks.coverage_turns import Way
from realm.evaluation.embedding_distance import density_coverage, embedding_distance
from realm.evaluation.measure import Measure
from realm.evaluation.two_sample import difference, human_floor, two_sample

RESULTS = Path(__file__).parent / "results" / "coverage.csv"
SCALES = np.sqrt(pd.read_csv(RESULTS.with_name("minilm_spectrum.csv")).eigenvalue.to_numpy())
SIMULATIONS = 400
REPEATS = {64: 10, 400: 3}
SHIFTS = {64: {"alike": 0.0, "near 0.75": 2.7}, 400: {"alike": 0.0, "near 0.75": 1.75}}  # in standard deviations
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(len(SCALES), len(SCALES))))[0]
ALONG = np.random.default_rng(1).normal(size=len(SCALES))


def drawn(rng: np.random.Generator, n: int, shift: float = 0.0) -> np.ndarray:
    """(n, d) vectors, moved by ``shift`` standard deviations along a direction that all columns share in."""
    return ((rng.normal(size=(n, len(SCALES))) + shift * ALONG / np.linalg.norm(ALONG)) * SCALES) @ TURN


def tested(rng: np.random.Generator, n: int, shift: float) -> Measure:
    seed = int(rng.integers(2**31))
    return two_sample(drawn(rng, n), drawn(rng, n, shift), repeats=REPEATS[n], permutations=0, seed=seed).auc


def tested_before(rng: np.random.Generator, n: int, shift: float) -> Measure:
    features, labels = np.vstack([drawn(rng, n), drawn(rng, n, shift)]), np.repeat([0, 1], n)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    foldings = [StratifiedKFold(5, shuffle=True, random_state=int(rng.integers(2**31))) for _ in range(REPEATS[n])]
    scores = [cross_val_predict(model, features, labels, cv=f, method="decision_function") for f in foldings]
    value = float(np.mean([roc_auc_score(labels, s) for s in scores]))
    ranks = np.mean([stats.rankdata(s) for s in scores], axis=0)
    draws = [np.concatenate([rng.integers(0, n, n), rng.integers(n, 2 * n, n)]) for _ in range(300)]
    low, high = np.percentile([roc_auc_score(labels, ranks[d]) for d in draws], [2.5, 97.5])
    return Measure(value, min(low, value), max(high, value), 2 * n)


def compared(rng: np.random.Generator, n: int, shift: float) -> Measure:
    """Two simulators against the same humans, one of them as far off again."""
    humans, seed = drawn(rng, n), int(rng.integers(2**31))
    sides = (drawn(rng, n, shift), drawn(rng, n, shift / 2))
    return difference(*(two_sample(humans, s, repeats=REPEATS[n], permutations=0, seed=seed) for s in sides))


def halved(rng: np.random.Generator, n: int, shift: float) -> Measure:
    return human_floor(drawn(rng, 2 * n), n, repeats=3, seed=int(rng.integers(2**31)))[0]


def apart(rng: np.random.Generator, n: int, shift: float) -> Measure:
    return embedding_distance(drawn(rng, n), drawn(rng, n, shift))


def covered(rng: np.random.Generator, n: int, shift: float) -> Measure:
    return density_coverage(drawn(rng, n), drawn(rng, n, shift))[1]


def dense(rng: np.random.Generator, n: int, shift: float) -> Measure:
    return density_coverage(drawn(rng, n), drawn(rng, n, shift))[0]


ALIKE = {n: {"alike": 0.0} for n in SHIFTS}
# Statistic: how it is simulated, for how many a side, and in which settings.
WAYS: dict[str, Way] = {
    "two-sample AUC": Way(tested, SHIFTS),
    "two-sample AUC, ranks averaged and stretched": Way(tested_before, SHIFTS),
    "difference of two AUCs": Way(compared, {64: SHIFTS[64]}),
    "human floor": Way(halved, {64: ALIKE[64]}),
    "energy distance": Way(apart, {64: SHIFTS[64]}),
    "density": Way(dense, {64: SHIFTS[64]}),
    "coverage of humans": Way(covered, {64: SHIFTS[64]}),
    **coverage_turns.WAYS,
}


def simulate(statistic: str, n: int, setting: str, count: int = SIMULATIONS) -> pd.DataFrame:
    """A line a simulation: value, limits, and whether they hold what they should: the way's truth, or where none can be
    said the mean of the values."""
    way = WAYS[statistic]
    value = way.settings[n][setting]
    streams = [np.random.default_rng([n, round(100 * value), i]) for i in range(count)]
    table = pd.DataFrame(vars(m) for m in Parallel(cpu_count())(delayed(way.run)(s, n, value) for s in streams))
    truth = way.truth(n, value) if way.truth else table.value.mean()
    held = (table.ci_low <= truth) & (truth <= table.ci_high)
    table = table.assign(held=held.astype(int)).drop(columns="n").round(5)
    print(f"{statistic}, n = {n}, {setting}={held.mean():.3f} (should hold {truth:.3f})", flush=True)
    told = {"statistic": statistic, "a_side": n, "setting": setting, "repetition": range(count)}
    return table.assign(**told)[[*told, *table.columns]]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A line a statistic, size and setting: the share of intervals that hold, and how far off that may be by chance."""
    keys = ["statistic", "a_side", "setting"]
    found = table.groupby(keys, sort=False).held.agg(["mean", "count"]).reset_index()
    found["within"] = [1.96 * math.sqrt(p * (1 - p) / n) for p, n in zip(found["mean"], found["count"], strict=True)]
    return found.rename(columns={"mean": "coverage", "count": "simulations"}).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often 95 % intervals hold what they are of.")
    parser.add_argument("--anew", action="store_true", help="simulate also what is there already")
    anew = parser.parse_args().anew
    table = pd.DataFrame(columns=["statistic", "a_side", "setting"]) if anew else pd.read_csv(RESULTS)
    there = set(zip(table.statistic, table.a_side, table.setting, strict=True))
    wanted = [(name, n, of) for name, way in WAYS.items() for n, settings in way.settings.items() for of in settings]
    for each in (one for one in wanted if one not in there):
        table = pd.concat([table, simulate(*each)]) if len(table) else simulate(*each)
        table.to_csv(RESULTS, index=False)  # an hour's work is not lost with its last minute
    print(summary(table).to_string(index=False))


if __name__ == "__main__":
    main()
