"""All commands and their options, as an argparse parser; what they mean is said in `commands/`."""

from __future__ import annotations

import argparse

from remapkit.cli.command_parser import CommandParser, Parser
from remapkit.cli.store_once import StoreOnce

_RULES = "a rule file, or the name of an installed pack"
_MODEL = "plugin.module:Class (wan.vae:WanVAE) or py:package.module:Class; importing a model runs its code"
_CKPT = "a checkpoint: .pth, .safetensors, an index.json of shards, or a folder that holds one"
_SOURCE = f"{_CKPT}; several are joined; PREFIX=FILE puts PREFIX before its keys ('tp{{t}}.=consolidated.{{t}}.pth')"


class _VersionAction(argparse.Action):
    """`--version`, looked up only when requested: reading package metadata costs 25 ms."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from remapkit.diagnostics.version import VERSION

        print(f"remapkit {VERSION}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="remapkit",
        description="Prove that a checkpoint's keys map onto a model, then move the bytes at the speed of cp.",
        epilog="exit codes: 0 success; 1 the input failed a check; 2 bad usage or unreadable input; 3 a bug; "
        "130 interrupted",
    )
    parser.add_argument("--version", action=_VersionAction, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=CommandParser)
    _add_apply(commands)
    _add_convert(commands)
    _add_check(commands)
    _add_rule_commands(commands)
    _add_checkpoint_commands(commands)
    _add_report(commands)
    _add_verify(commands)
    _add_authoring_commands(commands)
    return parser


Commands = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_command(commands: Commands, name: str, help: str) -> argparse.ArgumentParser:  # type: ignore[valid-type]
    parser: argparse.ArgumentParser = commands.add_parser(  # type: ignore[attr-defined]
        name, help=help, description=help[0].upper() + help[1:] + "."
    )
    parser.add_argument(
        "--format", choices=("text", "json", "github"), default="text", help="how to print results (default: text)"
    )
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help=f"the target model: {_MODEL}")
    _add_model_arguments(parser)
    parser.add_argument(
        "--target-keys",
        metavar="FILE",
        action=StoreOnce,
        help="use a manifest or a checkpoint as the target instead",
    )
    parser.add_argument("--strict-dtype", action="store_true", help="report a dtype mismatch as an error, not a note")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-arg", metavar="KEY=VALUE", action="append", default=[], help="an argument for its constructor"
    )
    parser.add_argument("--model-config", metavar="FILE", help="its config, a file with a JSON object")


def _add_params(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--param",
        metavar="NAME=NUMBER",
        action="append",
        default=[],
        help="set a number that the rules name under params; for a list: NAME=1,1,2",
    )
    parser.add_argument("--config", metavar="FILE", help="look up params in a model's config.json")


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    _add_reading_options(parser)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="A.B", help="the mapping, or the prefix of keys, that is the state dict")


def _add_more_files(parser: argparse.ArgumentParser) -> None:
    for side in ("a", "b"):
        help = f"a further file of {side.upper()}, or a mount PREFIX=FILE; repeatable"
        parser.add_argument(f"--more-{side}", metavar="FILE", action="append", default=[], help=help)


def _add_strip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strip", metavar="NAME", action="append", default=[], help="take this segment out of every key; repeatable"
    )


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    _add_strip(parser)
    parser.add_argument(
        "--strict-pickle",
        action="store_true",
        help="refuse a .pth whose pickle names anything that no state dict needs",
    )
    parser.add_argument(
        "--allow-expand",
        action="store_true",
        help="accept tensors that expand a small storage into a very large tensor (stride 0)",
    )
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="read shards that are links out of the checkpoint's folder (those of a download cache always are)",
    )


def _add_undecided(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-undecided", action="store_true", help="continue even if a proof over all keys is undecided"
    )


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    about = "their rules follow from those of the weights; a root may be the prefix of one of several: lora_unet_"
    group = parser.add_argument_group("adapters (LoRA)", about)
    group.add_argument(
        "--adapter-format",
        choices=("peft", "diffusers", "kohya", "comfy"),
        action=StoreOnce,
        help="how the result is named (default: like the input)",
    )
    group.add_argument(
        "--fold-alpha", action="store_true", help="multiply alphas into the up matrices, each alpha / LoRA rank"
    )
    group.add_argument(
        "--alpha", metavar="NUMBER", type=float, help="the alpha of all modules, where the file has none"
    )
    group.add_argument(
        "--base",
        metavar="MODEL",
        action=StoreOnce,
        help="the model that the adapter is for: a checkpoint, a manifest, plugin.module:Class (default: the pack's "
        "own manifest)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        action="append",
        help="the file to write (default: CKPT with .safetensors, beside it); repeatable as PREFIX=FILE, such as "
        "vae.=vae.safetensors or tp{t}.=rank{t:02d}.pth: FILE gets the keys that begin with PREFIX, without it",
    )
    parser.add_argument(
        "--to-format",
        choices=("safetensors", "pth"),
        help="the format of OUT (default: by its suffix: .safetensors, or .pth, .pt, .bin, .ckpt)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show every move; write nothing")
    parser.add_argument("--dtype", metavar="D", help="cast every plain float to bf16, fp16, fp32 or fp64")
    parser.add_argument(
        "--shard-size", metavar="SIZE", help="write shards of at most SIZE (5GB, 500MiB) and their index"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read the output back and compare every tensor with its source"
    )
    parser.add_argument(
        "--untie",
        action="store_true",
        help="write tied weights as copies, not once with the other names in the metadata",
    )
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")


def _add_convert(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add_command(commands, "convert", "write a checkpoint in another layout, by a route of packs")
    parser.add_argument("checkpoint", metavar="CKPT", nargs="+", help=_SOURCE)
    parser.add_argument(
        "--to", metavar="LAYOUT", required=True, help="the layout to write; see `remapkit packs --graph`"
    )
    parser.add_argument(
        "--from",
        "--from-layout",
        dest="from_layout",
        metavar="LAYOUT",
        action=StoreOnce,
        help="the layout of CKPT, where its names and shapes leave several open",
    )
    parser.add_argument(
        "--via",
        metavar="NAME",
        action="append",
        default=[],
        help="a layout or a pack that the route must pass; repeatable, in order",
    )
    _add_output(parser)
    parser.add_argument(
        "--partial",
        action="store_true",
        help="accept a checkpoint that lacks known keys, and a route on which something is lost",
    )
    parser.add_argument(
        "--with-files", action="store_true", help="copy the files beside the weights of a folder (config, tokenizer)"
    )
    _add_undecided(parser)
    _add_model(parser)
    _add_params(parser)
    _add_source_options(parser)


def _add_apply(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add_command(commands, "apply", "prove, plan and check, then write the checkpoint under its new keys")
    parser.add_argument("rules", metavar="RULES", help=_RULES)
    parser.add_argument("checkpoint", metavar="CKPT", nargs="+", help=_SOURCE)
    parser.add_argument(
        "--metadata-from",
        metavar="FILE",
        action=StoreOnce,
        help="where the metadata of several CKPTs contradict each other, keep those of FILE",
    )
    _add_output(parser)
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="rename inside CKPT, a single safetensors file: write only its header, under a journal",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="accept a checkpoint that lacks keys that the rules are known to read",
    )
    parser.add_argument(
        "--no-target", action="store_true", help="do not check the result against the target that RULES declare"
    )
    _add_undecided(parser)
    _add_model(parser)
    _add_params(parser)
    _add_source_options(parser)
    _add_adapter(parser)


def _add_check(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add_command(commands, "check", "check rules against a source header and a target; write nothing")
    parser.add_argument(
        "rules", metavar="RULES", nargs="*", help=f"{_RULES} (default: every pack whose target is --model)"
    )
    _add_source_and_target(parser)


def _add_source_and_target(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--ckpt",
        metavar="C",
        action="append",
        help=f"the source: {_CKPT} (default: the pack's own manifest); PREFIX=FILE is a mount; repeatable",
    )
    source.add_argument("--keys", metavar="FILE", action="append", help="the source: a manifest; repeatable")
    _add_undecided(parser)
    _add_model(parser)
    _add_params(parser)
    _add_source_options(parser)
    _add_adapter(parser)


def _add_report(commands: Commands) -> None:  # type: ignore[valid-type]
    help = "make a page that shows rules, source and target side by side, with every problem"
    parser = _add_command(commands, "report", help)
    parser.add_argument("rules", metavar="RULES", help=_RULES)
    parser.add_argument("-o", "--output", metavar="FILE", help="the page to write, in HTML (default: print it)")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    _add_source_and_target(parser)


def _add_rule_commands(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add_command(commands, "lint", "check rule files on their own, and prove them over all keys")
    parser.add_argument("rules", metavar="RULES", nargs="*", help=f"{_RULES} (default: every installed pack)")
    _add_undecided(parser)
    _add_params(parser)
    parser = _add_command(commands, "test", "run the tests in rule files, and check their manifests end to end")
    parser.add_argument("rules", metavar="RULES", nargs="*", help=f"{_RULES} (default: every installed pack)")
    _add_params(parser)
    parser = _add_command(
        commands, "explain", "show which rule took a key, and where every other rule stopped matching"
    )
    parser.add_argument("rules", metavar="RULES", help=_RULES)
    parser.add_argument("keys", metavar="KEY", nargs="+", help="a source key")
    _add_params(parser)

    parser = _add_command(commands, "invert", "write the inverse of a rule file, or say why there is none")
    parser.add_argument("rules", metavar="RULES", help=_RULES)
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write (default: stdout)")
    parser.add_argument("--partial", action="store_true", help="if keys are dropped, write the inverse of the rest")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    _add_params(parser)


def _add_checkpoint_commands(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add_command(commands, "inspect", "show a checkpoint's header as key families, with dtypes and sizes")
    parser.add_argument("checkpoint", metavar="CKPT", nargs="+", help=_SOURCE)
    parser.add_argument("--all", action="store_true", help="print every key on a line of its own")
    parser.add_argument("--manifest", metavar="FILE", help="also write the header as a manifest")
    parser.add_argument("--force", action="store_true", help="replace the manifest if it exists")
    _add_source_options(parser)
    parser = _add_command(commands, "identify", "say which layout a checkpoint has, from its header")
    parser.add_argument("checkpoint", metavar="CKPT", nargs="+", help=_SOURCE)
    _add_source_options(parser)
    parser = _add_command(commands, "recover", "restore a file whose rename in place was interrupted")
    parser.add_argument("file", metavar="FILE", help="the file that was given to apply --in-place")
    parser = _add_command(commands, "diff", "compare two checkpoints: keys, shapes, dtypes and values")
    parser.add_argument("a", metavar="A", help=f"{_CKPT}, or a mount PREFIX=FILE")
    parser.add_argument("b", metavar="B", help="the other checkpoint")
    _add_more_files(parser)
    parser.add_argument("--rules-a", metavar="R", help="remap the keys of A first")
    parser.add_argument("--rules-b", metavar="R", help="remap the keys of B first")
    parser.add_argument("--root-a", metavar="A.B", help="the mapping or the prefix of keys to take from A")
    parser.add_argument("--root-b", metavar="A.B", help="the mapping or the prefix of keys to take from B")
    _add_reading_options(parser)
    _add_params(parser)
    _add_adapter(parser)
    parser.add_argument(
        "--tolerance",
        metavar="T",
        type=_parse_tolerance,
        default=0.0,
        help="the largest |difference| to accept (default: 0)",
    )


def _add_verify(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add_command(commands, "verify", "compare values: run both models on one input, or use an oracle")
    parser.add_argument("rules", metavar="RULES", help=_RULES)
    for side in ("source", "target"):
        default = "" if side == "source" else " (default: the pack's own)"
        parser.add_argument(f"--{side}", metavar="M", help=f"the {side} model: {_MODEL}{default}")
        parser.add_argument(
            f"--{side}-arg",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="an argument for its constructor",
        )
        parser.add_argument(f"--{side}-config", metavar="FILE", help="its config, a file with a JSON object")
    parser.add_argument(
        "--forward",
        metavar="NAME",
        action="append",
        help="the method to compare (default: forward); repeatable",
    )
    parser.add_argument(
        "--input", metavar="SHAPE", help="the input's shape: 1,3,32,32, or 2,7:1000 for integers < 1000"
    )
    parser.add_argument("--oracle", metavar="py:module:function", help="a converter from state dict to state dict")
    parser.add_argument(
        "--keys",
        metavar="FILE",
        action="append",
        help="for an oracle: the source's manifest (default: the pack's); repeatable",
    )
    _add_root(parser)
    _add_strip(parser)
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="the seed of the random values (default: 0)")
    parser.add_argument(
        "--tolerance",
        metavar="T",
        type=_parse_tolerance,
        default=1e-4,
        help="the largest difference of outputs to accept, relative to the largest value (default: 1e-4)",
    )
    parser.add_argument(
        "--write", action="store_true", help="save the result beside the rule file (NAME.witness.json)"
    )
    _add_params(parser)
    _add_undecided(parser)


def _parse_tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"a tolerance must be a number that is not negative, got {text}")
    return value


def _add_authoring_commands(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add_command(commands, "new", "start a rule file from a real checkpoint")
    parser.add_argument("name", metavar="NAME", help="the name of the pack")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="CKPT",
        action="append",
        required=True,
        help=f"the source: {_CKPT}; PREFIX=FILE is a mount; repeatable",
    )
    parser.add_argument("--to", dest="target", metavar="M", help=f"the target: {_MODEL}; or a checkpoint or manifest")
    _add_model_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write (default: NAME.yaml; - for stdout)")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    _add_source_options(parser)
    parser = _add_command(commands, "learn", "derive a rule file from two checkpoints that hold the same weights")
    parser.add_argument("a", metavar="A", nargs="?", help=f"the source: {_CKPT}, or a mount PREFIX=FILE")
    parser.add_argument("b", metavar="B", nargs="?", help="the same weights under the names of the target")
    _add_more_files(parser)
    _add_converter_options(parser)
    parser.add_argument("--name", help="the name of the pack (default: that of the file, or learned)")
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write (default: NAME.yaml; - for stdout)")
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        help="a JSON object, source key to target key, for pairs that values leave open (of manifests: all pairs)",
    )
    parser.add_argument("--root-a", metavar="A.B", help="the mapping or the prefix of keys to take from A")
    parser.add_argument("--root-b", metavar="A.B", help="the mapping or the prefix of keys to take from B")
    parser.add_argument("--root", metavar="A.B", help="with --through: the mapping or the prefix of keys to take")
    _add_reading_options(parser)
    parser.add_argument("--force", action="store_true", help="replace the files if they exist")
    parser = _add_command(commands, "packs", "list the installed packs and plugins, and where they come from")
    parser.add_argument("--graph", action="store_true", help="show the layouts that packs read and write instead")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the graph as a picture: .svg or .html")
    parser.add_argument("--force", action="store_true", help="replace the picture if it exists")
    _add_command(commands, "schema", "print the JSON Schema of rule files")


def _add_converter_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--through",
        metavar="CONVERTER",
        help="instead of A and B: run this converter, py:module:function or file.py:NAME, and learn what it does",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="CKPT",
        action="append",
        help="with --through: the source, a checkpoint or a manifest; its values are not read; repeatable",
    )
    parser.add_argument(
        "--arg",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="with --through: an argument for the converter",
    )
