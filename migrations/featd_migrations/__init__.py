"""The catalog's migrations. They import no featd code: an old revision must not change when featd does."""
