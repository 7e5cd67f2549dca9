"""The picture of a rule set on two headers: its data, and the page that shows it."""
