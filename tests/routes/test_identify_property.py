"""What identifies a layout against brute force: every layout, under every prefix, compared name by name.

The layouts are random and small; their packs match the numbers that they say. The oracle shares no code with what it
judges: it compares dictionaries.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remapkit.registry import layouts
from remapkit.registry.fit_layouts import MAX_NEAR, LayoutFit, LayoutFits, Verdict, fit_layouts
from remapkit.tensors.spec import StateDictSpec, TensorSpec

Shape = tuple[int, ...]
KINDS = ("in.weight", "h.*.w", "h.*.b", "h.*.e.*.w", "mid.in.weight", "mid.h.*.w", "mid.h.*.b", "norm.g")
SHAPES: tuple[Shape, ...] = ((2,), (3,), (2, 2))
PREFIXES = ("", "net", "model.net", "first_stage_model")
FOREIGN = ("zz.w", "head.q", "h.0.zz", "net.zz", "step")


@dataclass(frozen=True)
class Known:
    """A layout: its tensors, and the largest number that its pack matches (None: any)."""

    name: str
    tensors: Mapping[str, Shape] = field(hash=False)
    most: int | None

    @property
    def kinds(self) -> set[str]:
        return set(map(mask, self.tensors))

    def matches(self, name: str) -> bool:
        numbers = list(map(int, re.findall(r"(?<=\.)\d+(?=\.)", name)))
        return mask(name) in self.kinds and (self.most is None or all(number <= self.most for number in numbers))


def mask(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def number(kind: str, count: int) -> list[str]:
    """The names of a kind with `count` layers, two experts each."""
    first = [kind.replace("*", str(layer), 1) for layer in range(count)] if "*" in kind else [kind]
    return [name.replace("*", str(expert)) for name in first for expert in range(2 if "*" in name else 1)]


@st.composite
def draw_layouts(draw: st.DrawFn) -> list[Known]:
    made: list[Known] = []
    for letter in "abcd"[: draw(st.integers(1, 4))]:
        kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5, unique=True))
        layers = draw(st.integers(1, 3))
        names = [name for kind in kinds for name in number(kind, layers)]
        tensors = {name: draw(st.sampled_from(SHAPES[: draw(st.integers(1, 3))])) for name in names}
        how = draw(st.sampled_from(["its own", "its own", "like another", "around another"])) if made else "its own"
        if how == "around another":
            inner = {f"mid.{name}": shape for name, shape in made[-1].tensors.items()}
            outer = {name: shape for name, shape in tensors.items() if not name.startswith("mid.")}
            tensors = {**outer, **inner} or tensors
        elif how == "like another":  # one that differs from another in little, or in nothing
            tensors = dict(made[-1].tensors)
            if draw(st.booleans()):
                tensors[draw(st.sampled_from(sorted(tensors)))] = draw(st.sampled_from(SHAPES))
        made.append(Known(f"m/{letter}", tensors, draw(st.sampled_from([None, None, 1, 3]))))
    return made


@dataclass
class Made:
    """A header, and the same without the companions of scaled weights."""

    header: dict[str, TensorSpec]
    plain: dict[str, Shape]


@st.composite
def draw_headers(draw: st.DrawFn, known: list[Known]) -> Made:
    """One layout or two under prefixes, whole or changed, with scales or without."""
    plain: dict[str, Shape] = {}
    for prefix in draw(st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=2, unique=True)):
        tensors = dict(draw(st.sampled_from(known)).tensors)
        change = draw(st.sampled_from(["none", "none", "less", "more", "shape", "far", "part"]))
        if change == "less":
            del tensors[draw(st.sampled_from(sorted(tensors)))]
        elif change == "part":
            kept = draw(st.sets(st.sampled_from(sorted(tensors)), min_size=1))
            tensors = {name: tensors[name] for name in sorted(kept)}
        elif change == "shape":
            tensors[draw(st.sampled_from(sorted(tensors)))] = (7,)
        elif change == "more":
            layer = draw(st.integers(1, 5))
            tensors |= {re.sub(r"\b0\b", str(layer), name, count=1): shape for name, shape in tensors.items()}
        elif change == "far":
            tensors |= dict.fromkeys(draw(st.sets(st.sampled_from(FOREIGN), min_size=1)), (1,))
        plain |= {f"{prefix}.{name}" if prefix else name: shape for name, shape in tensors.items()}
    if draw(st.integers(0, 3)) == 0:
        plain["step"] = (1,)
    header = {name: TensorSpec("F32", shape) for name, shape in plain.items()}
    style = draw(st.sampled_from(["plain", "plain", "scale_weight", "weight_scale", "bnb"]))
    for name in sorted(plain) if style != "plain" else ():
        if name.endswith(".weight") and draw(st.booleans()):
            module = name.removesuffix("weight")
            header[name] = TensorSpec("U8", (9, 1)) if style == "bnb" else TensorSpec("F8_E4M3", plain[name])
            companions = [f"{name}.absmax", f"{name}.quant_state.bitsandbytes__nf4"] if style == "bnb" else []
            companions = companions or [f"{module}{style}", f"{module}input_scale"]
            header |= {each: TensorSpec("F32", ()) for each in companions}
    return Made(header, plain)


def write_pattern(kind: str, sort: str) -> str:
    pattern = kind
    for capture in "ijk"[: kind.count("*")]:
        pattern = pattern.replace("*", f"{{{capture}:{sort}}}", 1)
    return pattern


@contextmanager
def install(known: list[Known]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        files = []
        for each in known:
            letter = each.name[-1]
            entries = {fqn: {"dtype": "F32", "shape": list(shape)} for fqn, shape in each.tensors.items()}
            (Path(name) / f"{letter}.json").write_text(json.dumps(entries))
            sort = "int" if each.most is None else f"0..{each.most}"
            keep = [write_pattern(kind, sort) for kind in each.kinds]
            text = f"remapkit: 1\nname: {letter}\nfrom: {each.name}\nsource: {{keys: {letter}.json}}\n"
            (Path(name) / f"{letter}.yaml").write_text(f"{text}keep: {json.dumps(sorted(keep))}\n")
            files.append(layouts.PackFile(letter, Path(name) / f"{letter}.yaml", "test"))
        with mock.patch.object(layouts, "packs", lambda: tuple(files)):
            yield name


# -------------------------------------------------------------------------------------------------------- the oracle


def list_prefixes(names: Mapping[str, object]) -> list[str]:
    """Every prefix, the outer first; behind a number there is no root."""
    found = {""}
    for name in names:
        words = name.split(".")[:-1]
        found |= {".".join(words[:end]) for end in range(len(words) + 1) if not any(map(str.isdigit, words[:end]))}
    return sorted(found, key=lambda root: (root.count(".") + bool(root), root))


def cut(tensors: Mapping[str, Shape], root: str) -> dict[str, Shape]:
    prefix = f"{root}." if root else ""
    return {name[len(prefix) :]: shape for name, shape in tensors.items() if name.startswith(prefix)}


def is_inside(root: str, other: str) -> bool:
    return not other or root == other or root.startswith(f"{other}.")


def equals(inside: Mapping[str, Shape], layout: Known, made: Made, root: str) -> bool:
    """Whether all names and shapes are those of a layout; a packed weight has the shape of its numbers."""
    prefix = f"{root}." if root else ""
    packed = {name for name in inside if made.header[prefix + name].dtype == "U8"}
    return inside.keys() == layout.tensors.keys() and all(
        inside[name] == layout.tensors[name] or name in packed for name in inside
    )


def keeps_equal(layout: Known, inside: Mapping[str, Shape]) -> bool:
    """Return whether any two dimensions that are equal in all sizes of the layout seen are equal in a file."""
    alike: dict[tuple[str, int], set[Shape]] = {}  # tensors of other ranks have no dimensions in common
    for name, shape in layout.tensors.items():
        alike.setdefault((mask(name), len(shape)), set()).add(shape)
    single = [
        (kind, dim, size) for kind, (shape, *more) in alike.items() if not more for dim, size in enumerate(shape)
    ]
    there = [
        ((mask(name), len(shape)), dim, size) for name, shape in inside.items() for dim, size in enumerate(shape)
    ]
    return all(
        one == other
        for kind, dim, size in single
        for kind2, dim2, size2 in single
        if size == size2
        for name, place, one in there
        for name2, place2, other in there
        if (name, place, name2, place2) == (kind, dim, kind2, dim2)
    )


def count_off(inside: Mapping[str, Shape], layout: Known, made: Made, root: str) -> int:
    prefix = f"{root}." if root else ""
    common = inside.keys() & layout.tensors.keys()
    shapes = {name for name in common if inside[name] != layout.tensors[name]}
    shapes -= {name for name in shapes if made.header[prefix + name].dtype == "U8"}
    return len(inside.keys() ^ layout.tensors.keys()) + len(shapes)


def speaks(inside: Mapping[str, Shape], layout: Known) -> bool:
    """Whether keys can be a layout's: no others, at least half of its kinds, and numbers that it has or matches."""
    here = set(map(mask, inside))
    known = all(name in layout.tensors or layout.matches(name) for name in inside)
    return known and here <= layout.kinds and 2 * len(layout.kinds - here) <= len(layout.kinds)


def find_exact(known: list[Known], made: Made) -> set[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for root in list_prefixes(made.plain):
        if any(is_inside(root, other) for _, other in found):
            continue
        found += [(each.name, root) for each in known if equals(cut(made.plain, root), each, made, root)]
    return set(found)


def order_near(known: list[Known], made: Made) -> list[str]:
    """The layouts that know at least half of the keys under some prefix, those that are least far off first."""
    ranked = []
    for layout in known:
        fits = []
        for root in list_prefixes(made.plain):
            inside = cut(made.plain, root)
            here = set(map(mask, inside))
            foreign = sum(mask(name) not in layout.kinds for name in inside)
            lacking = len(layout.kinds - here)
            part = not foreign and 2 * lacking <= len(layout.kinds)
            if 2 * foreign <= len(inside) and foreign < len(inside):
                fits.append((not part, foreign + lacking, root.count(".") + bool(root), root, layout.name))
        ranked += [min(fits)] if fits else []
    return [name for *_, name in sorted(ranked)]


# ---------------------------------------------------------------------------------------------------- the properties


def check_lost(fit: LayoutFit, known: list[Known], made: Made) -> None:
    """A prefix is lost where with it the names are a layout's, all or, if near, half of them."""
    (layout,) = (each for each in known if each.name == fit.layout)
    here = {mask(f"{fit.lost}{name}") for name in made.plain}
    known_names = sum(mask(f"{fit.lost}{name}") in layout.kinds for name in made.plain)
    assert not fit.root and 2 * known_names >= len(made.plain)
    assert not fit.fits or (here <= layout.kinds and 2 * len(layout.kinds - here) <= len(layout.kinds))
    assert layout.name not in order_near(known, made)


def check_answer(found: LayoutFits, known: list[Known], made: Made) -> None:
    lost = [fit for fit in (*found.fits, *found.near) if fit.lost]
    for fit in lost:
        check_lost(fit, known, made)
    if any(fit.lost for fit in found.fits):
        return
    exact = {(fit.layout, fit.root) for fit in found.fits if fit.verdict is Verdict.EXACT}
    assert exact == find_exact(known, made)
    others = [fit for fit in found.fits if fit.verdict is not Verdict.EXACT]
    for fit in others:
        check_other(fit, known, made, {each.layout for each in found.fits if each.root == fit.root})
    free = [
        root
        for root in list_prefixes(made.plain)
        if not any(is_inside(root, fit.root) or is_inside(fit.root, root) for fit in found.fits)
    ]
    assert not any(speaks(cut(made.plain, root), each) for root in free for each in known), "one was overlooked"
    if found.fits:
        assert not found.near
    else:
        plain = [fit.layout for fit in found.near if not fit.lost]
        assert plain == order_near(known, made)[: MAX_NEAR - len(lost)]
        assert all(fit.verdict is Verdict.NEAR for fit in found.near)


def check_other(fit: LayoutFit, known: list[Known], made: Made, named: set[str]) -> None:
    inside = cut(made.plain, fit.root)
    (layout,) = (each for each in known if each.name == fit.layout)
    assert speaks(inside, layout)
    off = {each.name: count_off(inside, each, made, fit.root) for each in known if speaks(inside, each)}
    assert off[fit.layout] == min(off.values()), "another layout is nearer"
    nearest = [each for each in known if off.get(each.name) == off[fit.layout]]
    is_packed = any(spec.dtype == "U8" for spec in made.header.values())
    alike = [each for each in nearest if not is_packed and keeps_equal(each, inside)]
    assert {each.name for each in alike or nearest} == named, "one as near is not named"
    assert fit.keys == len(inside) and fit.numbers == len(inside.keys() ^ layout.tensors.keys())
    lacking = layout.kinds - set(map(mask, inside))
    foreign = inside.keys() - layout.tensors.keys()
    shapes = bool(fit.shapes)
    wanted = Verdict.OTHER_SIZE if not lacking and (foreign or shapes) else Verdict.PART
    assert fit.verdict is wanted
    if fit.verdict is Verdict.PART:
        every = lacking if foreign or shapes else layout.tensors.keys() - inside.keys()
        assert set(fit.missing) == set(every)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_identify_is_what_brute_force_says(data: st.DataObject) -> None:
    known = data.draw(draw_layouts())
    made = data.draw(draw_headers(known))
    cached = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch, install(known) as folder:
        patch.setenv("REMAPKIT_CACHE", f"{folder}/cache" if cached else "")
        layouts._KNOWN.clear()
        found = fit_layouts(StateDictSpec(made.header))
        check_answer(found, known, made)
        turned = dict(reversed(made.header.items()))
        again = fit_layouts(StateDictSpec(turned))
        assert [(fit.layout, fit.root, fit.verdict) for fit in again.fits] == [
            (fit.layout, fit.root, fit.verdict) for fit in found.fits
        ]
    layouts._KNOWN.clear()


FORMS = {
    "PEFT": (("base_model.model.", "base_model.model.diffusion_model."), "."),
    "ComfyUI": (("diffusion_model.", "model.diffusion_model.", "text_encoders.clip_l.transformer."), "."),
    "diffusers": (("transformer.", "unet.", "text_encoder.", "text_encoder_2."), "."),
    "kohya": (("lora_unet_", "lora_transformer_", "lora_te1_", "lora_te2_", "lora_te_", "lycoris_"), "_"),
    "bare": (("",), "."),
}


@settings(max_examples=80, deadline=None)
@given(data=st.data(), form=st.sampled_from(sorted(FORMS)), strangers=st.integers(0, 2))
def test_an_adapter_is_of_the_layouts_that_have_most_of_its_modules(
    data: st.DataObject, form: str, strangers: int
) -> None:
    known = data.draw(draw_layouts())
    one = data.draw(st.sampled_from(known))
    every = sorted({name.rpartition(".")[0] for name in one.tensors})
    chosen = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    modules = [*chosen, *(f"no.such.{n}" for n in range(strangers))]
    prefixes, dot = FORMS[form]
    prefix = data.draw(st.sampled_from(prefixes))
    ends = data.draw(st.sampled_from([("lora_A", "lora_B"), ("lora_down", "lora_up")]))
    names = [f"{prefix}{module.replace('.', dot)}.{end}.weight" for module in modules for end in ends]
    names += [f"{prefix}{module.replace('.', dot)}.alpha" for module in modules] if form == "kohya" else []
    with pytest.MonkeyPatch.context() as patch, install(known):
        patch.setenv("REMAPKIT_CACHE", "")
        layouts._KNOWN.clear()
        found = fit_layouts(StateDictSpec({name: TensorSpec("F32", (2, 2)) for name in names}))
    layouts._KNOWN.clear()
    had = {
        each.name: sum(mask(m) in {mask(name.rpartition(".")[0]) for name in each.tensors} for m in modules)
        for each in known
    }
    assert not found.fits
    said = {(each.layout, each.known, each.modules) for each in found.adapters if each.form == form}
    assert said == {(name, count, len(modules)) for name, count in had.items() if count == max(had.values())}
    assert found.known == (not strangers)
