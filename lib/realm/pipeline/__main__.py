"""``python -m realm.pipeline``: what ``run_all.sh`` calls."""

import sys

from realm.pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main())
