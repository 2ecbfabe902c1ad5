"""A convolution explained: its numbers, its formulas and its page."""
