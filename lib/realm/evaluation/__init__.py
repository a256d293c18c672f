"""What came of it, each number with its interval: likelihood, realism, MT-Bench, and the published numbers.

Rooms in reading order: ``held_out`` (nothing evaluated was trained on), ``intervals``, ``perplexity``, ``user_turns``
(human turns foretold), ``termination`` (knowing when to stop), ``realism``, ``topics``, ``corpus``, ``kept``
(answers, by what shaped them), ``mt_bench`` (questions, files), ``mt_bench_answers``, ``mt_bench_judging``,
``mt_bench_calibration`` (the judge held against right answers), ``mt_bench_scores``,
``mt_bench_sitting`` (all that a judge is asked), ``published`` (others' numbers, in ``published/``).
May import: ``cleaning``, ``training``, ``simulation`` and what is below them.
"""
