"""What came of it, each number with its interval: likelihood, realism, MT-Bench, and the published numbers.

Rooms in reading order: ``held_out`` (nothing evaluated was trained on), ``intervals``, ``measure`` (a number with
its interval), ``perplexity``, ``teaching`` (students of corpora that differ in who asks), ``lessons`` (what came of
it), ``user_turns`` (human turns foretold), ``termination`` (knowing when to stop), ``topics``, ``corpus``,
``mt_bench``, ``kept`` (answers, by what shaped them), ``published`` (others' numbers, in ``published/``).
Of the realism card: ``openings``, ``two_sample`` (can a classifier tell?), ``leaving_out`` (its variance),
``embedding_distance``, ``levels`` (what is compared by its difference), ``wording``, ``going_on``, ``memory``,
``card`` (one scale), ``groups`` (its four groups of measures).
May import: ``cleaning``, ``training``, ``simulation`` and what is below them.
"""
