"""What property tests draw from, apart from `factories`, which the tests of a GPU import without hypothesis."""

from hypothesis import strategies as st

SEEDS, SIZES = st.integers(0, 2**32), st.integers(2, 6)
"""What property tests of losses draw their tensors from."""
