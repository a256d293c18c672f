"""ReaLM-repro: train the user, let it talk, train the assistant on what was said.

Rooms, lowest floor first; a room imports only from floors below:
  0  conversation, profile, provenance, intervals
  1  assets, cleaning, template
  2  training, endpoint (with llama_cpp, the laptop's server)
  3  simulation, realism, mt_bench
  4  paper, figures
  5  pipeline: the stages in order, what may be skipped, the report
"""

__version__ = "0.1.0"
