"""Where drafted tokens come from: one file per kind of draft."""
