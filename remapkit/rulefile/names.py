"""Choose names for new rules, captures and tables in a rule file."""

from __future__ import annotations


def choose_name(name: str, taken: set[str], mark: str = "") -> str:
    """Return the name, or the first of `name2`, `name3`, ... that is not taken, and add it to `taken`.

    >>> taken = {"rest"}
    >>> choose_name("rest", taken), choose_name("rest", taken), choose_name("rest", taken, "-")
    ('rest2', 'rest3', 'rest-2')
    """
    number, chosen = 2, name
    while chosen in taken:
        number, chosen = number + 1, f"{name}{mark}{number}"
    taken.add(chosen)
    return chosen
