"""Performance gates and scenarios. `make bench` runs the gates."""
