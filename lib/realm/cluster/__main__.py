"""``python -m realm.cluster``: what ``run_all.sh`` calls for ``--slurm``, ``--status`` and ``--fetch``."""

import sys

from realm.cluster.commands import main

if __name__ == "__main__":
    sys.exit(main())
