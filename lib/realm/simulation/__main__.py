"""``python -m realm.simulation``: a profile's conversations, whole, in shards, or merged."""

import sys

from realm.simulation.run import main

if __name__ == "__main__":
    sys.exit(main())
