"""Files become pending rows. The scan decides; the watch only says where to look. Neither opens a file."""
