"""Methods that decide how much each pair counts, around another method."""
