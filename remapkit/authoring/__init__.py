"""Rule files written for users: started (`new`), derived from examples (`learn`), inverted (`invert`)."""
