"""Names for what is added to a rule file: rules, captures, tables."""

from __future__ import annotations


def choose_name(name: str, taken: set[str], mark: str = "") -> str:
    """The name, or the first of `name2`, `name3`, ... that is not taken; from now on it is.

    >>> taken = {"rest"}
    >>> choose_name("rest", taken), choose_name("rest", taken), choose_name("rest", taken, "-")
    ('rest2', 'rest3', 'rest-2')
    """
    number, chosen = 2, name
    while chosen in taken:
        number, chosen = number + 1, f"{name}{mark}{number}"
    taken.add(chosen)
    return chosen
