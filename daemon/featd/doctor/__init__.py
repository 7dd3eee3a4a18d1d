"""Whether this machine and this configuration can work: one finding for each check. Nothing is changed."""
