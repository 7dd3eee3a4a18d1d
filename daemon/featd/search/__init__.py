"""Questions about the pictures: which are nearest to this one, and which are there more than once."""
