"""Side-by-side ratios in one process on the real assets: ``python -m benchmarks.data``.

Each benchmark interleaves its contestants, writes every repetition to ``results/NAME.csv`` and prints medians,
one ``name=value`` a line. Ratios travel between machines, seconds do not.
"""
