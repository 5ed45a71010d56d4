"""Generated message types of the `tickring` protocol."""
