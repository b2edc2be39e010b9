"""python -m modernbert_fast is modernbert-fast."""

import sys

from modernbert_fast.cli import main

sys.exit(main())
