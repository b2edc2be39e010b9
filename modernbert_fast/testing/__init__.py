"""What is right, and how to ask: the one error rule, plain torch as a yardstick, problems, poison and guard bands.

It ships with the package: `modernbert-fast check` asks a user's machine the same questions as the tests.
"""

from modernbert_fast.testing.errors import assert_as_good_as, assert_same_bits, error_limit
from modernbert_fast.testing.memory import Guarded, dirty_allocator, poisoned
from modernbert_fast.testing.problems import Problem
from modernbert_fast.testing.small import SMALL

__all__ = [
    "SMALL",
    "Guarded",
    "Problem",
    "assert_as_good_as",
    "assert_same_bits",
    "dirty_allocator",
    "error_limit",
    "poisoned",
]
