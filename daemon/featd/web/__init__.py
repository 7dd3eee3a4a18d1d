"""The page: a process that shows what featd does, to browsers and to programs. It only reads, and nobody needs it."""
