"""From pixels to the net's input: the spec, what applies it, and how a configuration becomes one."""
