"""From a file's bytes to pixels: read once, header checked, decoded whole."""
