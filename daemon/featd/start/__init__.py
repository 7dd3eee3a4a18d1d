"""What happens before and between runs: the check of everything at a start, and the reload of a configuration."""
