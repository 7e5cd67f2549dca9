"""Demo on a small Wan 2.2 VAE: check the pack, convert upstream's .pth, load it, compare with upstream's outputs.

Run it with `make demo`. It writes into `demo-out/` only.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "wan22_vae_tiny"
OUT = ROOT / "demo-out"
TOLERANCE = 1e-4

Step = tuple[str, str, bool, float]


def main() -> int:
    """Run every step, print the results, and return 0 if all steps passed."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    converted = OUT / "wan22_vae_tiny.safetensors"
    say("Check that the rule pack fits the full-size model (on the meta device: no weights, no memory).")
    steps = [timed("check the pack", lambda: command("check", "--model", "wan.vae:WanVAE"))]
    say("Convert a small checkpoint in upstream's layout.")
    pack, checkpoint = ROOT / "rules" / "wan22_pth.yaml", DATA / "upstream.pth"
    steps.append(timed("convert the .pth", lambda: command("apply", pack, checkpoint, "-o", converted)))
    if not all(ok for _, _, ok, _ in steps):
        return report(steps)
    say("Load it strictly, encode and decode the sample videos, and compare with the outputs of upstream's model.")
    model = None

    def load() -> tuple[bool, str]:
        nonlocal model
        model, found = load_model(converted)
        return True, found

    steps.append(timed("load it, strict", load))
    steps.append(timed("encode", lambda: worst_error(model, "video", "latent")))
    steps.append(timed("decode", lambda: worst_error(model, "latent", "decoded")))
    return report(steps)


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def timed(name: str, step: Callable[[], tuple[bool, str]]) -> Step:
    started = time.monotonic()
    ok, found = step()
    return name, found, ok, time.monotonic() - started


def command(*arguments: object) -> tuple[bool, str]:
    """Run the remapkit command line in this process, as a user would type it."""
    from remapkit.cli.app import main as remapkit

    words = [str(Path(word).relative_to(ROOT)) if isinstance(word, Path) else str(word) for word in arguments]
    print(f"$ remapkit {' '.join(words)}", flush=True)
    code = remapkit([str(word) for word in arguments])
    return code == 0, {"check": "196 keys to 196 targets", "apply": "196 tensors renamed, bytes copied"}[words[0]]


def load_model(path: Path) -> tuple[object, str]:
    """A small WanVAE, built on meta and loaded from the file: nothing missing, nothing left on meta."""
    import torch
    from remapkit.plugins.wan.vae import WanVAE
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = WanVAE(dim=8, dec_dim=12)
    model.load_state_dict(load_file(path), strict=True, assign=True)
    left = sum(tensor.is_meta for tensor in model.state_dict().values())
    return model.eval(), f"{len(model.state_dict())} tensors, {left} left on meta"


def worst_error(model: object, given: str, wanted: str) -> tuple[bool, str]:
    """The largest relative error ‖out - ref‖ / ‖ref‖ over all samples."""
    import torch
    from safetensors.torch import load_file

    golden = load_file(DATA / "golden.safetensors")
    names = [name.partition("_")[2] for name in golden if name.startswith("video_")]
    run = model.encode if wanted == "latent" else model.decode  # type: ignore[attr-defined]
    errors = []
    with torch.inference_mode():
        for name in names:
            reference = golden[f"{wanted}_{name}"]
            errors.append(float((run(golden[f"{given}_{name}"]) - reference).norm() / reference.norm()))
    return max(errors) <= TOLERANCE, f"{len(names)} samples, relative error {max(errors):.1e} (at most {TOLERANCE:g})"


def report(steps: list[Step]) -> int:
    """Print the table of results and return the exit code."""
    print()
    width = max(len(found) for _, found, _, _ in steps)
    print(f"{'step':<18}{'result':<{width + 2}}{'verdict':<9}seconds")
    print(f"{'-' * 16}  {'-' * width}  {'-' * 7}  {'-' * 7}")
    for name, found, ok, seconds in steps:
        print(f"{name:<18}{found:<{width + 2}}{'ok' if ok else 'FAILED':<9}{seconds:7.2f}")
    good = all(ok for _, _, ok, _ in steps)
    where = f"The converted checkpoint is {OUT.name}/wan22_vae_tiny.safetensors; `remapkit inspect` shows it."
    print(f"\n{where if good else 'A step above failed.'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
