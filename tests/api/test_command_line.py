"""Where an option stands among the arguments of a command changes nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.cli.parser import make_parser


def list_commands() -> Mapping[str, argparse.ArgumentParser]:
    (commands,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return commands.choices


COMMANDS = list_commands()
WITH_ARGUMENTS = [
    name for name, command in COMMANDS.items() if any(not each.option_strings for each in command._actions)
]
MOST = {None: (1, 1), "?": (0, 1), "+": (1, 3), "*": (0, 3)}
"""How many words an argument takes."""


def write_option(draw: st.DrawFn, action: argparse.Action) -> list[str]:
    name = draw(st.sampled_from(action.option_strings))
    if action.nargs == 0:
        return [name]
    value = "0" if action.type is not None else "v=1"
    value = str(draw(st.sampled_from(sorted(action.choices)))) if action.choices else value
    return [f"{name}={value}"] if name.startswith("--") and draw(st.booleans()) else [name, value]


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, list[list[str]], list[str]]:
    """A command, its options, each once, and its arguments: an optional one only if those before it are there."""
    name = draw(st.sampled_from(WITH_ARGUMENTS))
    actions = COMMANDS[name]._actions
    free = [each for each in actions if each.option_strings and "--help" not in each.option_strings]
    chosen = draw(st.lists(st.sampled_from(free), unique=True, max_size=4))
    chosen += [each for each in free if each.required and each not in chosen]
    if {"--ckpt", "--keys"} <= {word for each in chosen for word in each.option_strings}:
        chosen = [each for each in chosen if "--keys" not in each.option_strings]  # only one of them may be given
    low, high = (sum(MOST[each.nargs][side] for each in actions if not each.option_strings) for side in (0, 1))
    words = draw(st.lists(st.sampled_from(["a", "b.json", "p=c.pth", "-"]), min_size=low, max_size=high))
    return name, [write_option(draw, each) for each in draw(st.permutations(chosen))], words


@settings(max_examples=400, deadline=None)
@given(line=lines(), data=st.data())
def test_options_may_stand_anywhere(line: tuple[str, list[list[str]], list[str]], data: st.DataObject) -> None:
    name, options, words = line
    parser = make_parser()
    wanted = parser.parse_args([name, *(word for option in options for word in option), *words])
    places = sorted(data.draw(st.lists(st.integers(0, len(words)), min_size=len(options), max_size=len(options))))
    mixed = [name]
    for number in range(len(words) + 1):
        mixed += [word for place, option in zip(places, options, strict=True) if place == number for word in option]
        mixed += words[number : number + 1]
    assert parser.parse_args(mixed) == wanted


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_behind_two_dashes_nothing_is_an_option(name: str) -> None:
    command = COMMANDS[name]
    needed = [
        word
        for each in command._actions
        if each.required and each.option_strings
        for word in (each.option_strings[0], "x")
    ]
    arguments = [each for each in command._actions if not each.option_strings]
    words = ["--force", "-o"][: len(arguments)]
    found = make_parser().parse_args([name, *needed, "--", *words])
    read = [getattr(found, each.dest) for each in arguments]
    assert [word for each in read for word in (each if isinstance(each, list) else [each])] == words


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("learn A --bogus B", "unrecognized arguments: --bogus"),
        ("learn A B --force C", "unrecognized arguments: C"),
        ("convert", "the following arguments are required: CKPT, --to"),
        ("convert --to l", "the following arguments are required: CKPT\n"),
        ("convert --dtype bf16 a", "the following arguments are required: --to\n"),
        ("explain --param n=1 r", "the following arguments are required: KEY\n"),
        ("check r --ckpt a --keys b", "argument --keys: not allowed with argument --ckpt"),
        ("diff a --root-a", "argument --root-a: expected one argument"),
    ],
)
def test_wrong_arguments_are_named(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(line.split())
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_help_names_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for name in WITH_ARGUMENTS:
        with pytest.raises(SystemExit):
            make_parser().parse_args([name, "--help"])
        usage = capsys.readouterr().out.partition("\n\n")[0]
        assert all(str(each.metavar) in usage for each in COMMANDS[name]._actions if not each.option_strings)


def test_a_parser_can_be_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser()
    for _ in range(2):
        with pytest.raises(SystemExit):
            parser.parse_args(["convert", "--partial"])
        assert "required: CKPT, --to" in capsys.readouterr().err
        assert parser.parse_args(["convert", "a", "--to", "l", "b"]).checkpoint == ["a", "b"]
