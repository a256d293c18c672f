"""``python -m realm.training``: one stage's training, alone or under ``accelerate launch``."""

import sys

from realm.training.launch import main

if __name__ == "__main__":
    sys.exit(main())
