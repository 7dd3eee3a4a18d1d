"""From a file's bytes to the net's input: read once, decode whole, bring to geometry, in processes of their own."""
