"""What came of it, each number with its interval: likelihood, realism, MT-Bench, and the published numbers.

Rooms in reading order: ``held_out`` (nothing evaluated was trained on), ``intervals``, ``several`` (comparisons at
once), ``measure`` (a number with its interval), ``perplexity``, ``teaching`` (students of corpora that differ in who
asks), ``lessons`` (its outcome),
``user_turns`` (human turns foretold), ``termination`` (knowing when to stop), ``two_sample`` (can a classifier tell?),
``leaving_out`` (its variance), ``embedding_distance``, ``topics``, ``corpus``, ``kept`` (answers, by what
shaped them), ``mt_bench`` (questions, files), ``mt_bench_answers``, ``mt_bench_judging``, ``mt_bench_calibration`` (the
judge held against right answers), ``mt_bench_scores``, ``mt_bench_sitting`` (all that a judge is asked), ``published``
(others' numbers, in ``published/``), ``names`` (of metrics, in words), ``claims`` (of the paper, judged).
Of the realism card: ``openings``, ``levels`` (what is compared by its difference), ``wording``,
``surprisal`` (of texts, under the base model), ``going_on``, ``memory``, ``card`` (one scale), ``groups`` (its four
groups of measures).
May import: ``cleaning``, ``training``, ``simulation`` and what is below them.
"""
