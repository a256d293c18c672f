"""ReaLM-repro: train the user, let it talk, train the assistant on what was said.

Rooms, lowest floor first; a room imports only from floors below:
  0  provenance, profile, intervals, json_stream, pins, guard
  1  conversation, assets
  2  cleaning, template, llama_cpp
  3  training, endpoint
  4  simulation
  5  realism, mt_bench
  6  paper, figures, report
  7  display, pipeline
"""

__version__ = "0.1.0"
