"""The Wan VAEs compared with diffusers' `AutoencoderKLWan`: time, peak memory and error, with the same weights.

On a GPU, in full (704x1280, 61 and 121 frames, bf16, published widths):

    python benchmarks/wan_vae_cuda.py

On a CPU it runs a small model on small frames, to test it and to show the savings from buffers:

    python benchmarks/wan_vae_cuda.py --small

Weights are random, with the published shapes, and go from diffusers to `WanVAE` through the pack `wan22_diffusers`.
Times are medians: by CUDA events on a GPU, one method after the other; on a CPU the methods take turns, because other
processes use it too. Errors are relative, ||out - ref|| / ||ref||, against the plain method in fp32. Cases that do
not fit into memory are reported, and the others continue. Only the report is written.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from remapkit.plugins.wan.config import WAN21_MEAN, WAN21_STD, WAN22_MEAN, WAN22_STD
from remapkit.plugins.wan.fast import has_triton
from remapkit.plugins.wan.vae import Fast, Wan21VAE, WanCache, WanVAE
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import remapkit

Code = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One size of video."""

    height: int
    width: int
    frames: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {self.frames} frames"


@dataclass
class Result:
    """The result of one method in one direction; None if it failed."""

    seconds: list[float]
    peak: int = 0
    error: float | None = None
    failed: str = ""


def main() -> int:
    """Run every method on every size, in both directions, and print one table each."""
    args = _arguments()
    device = torch.device(args.device)
    print(_machine(device))
    print(f"model: {args.model}, dim {args.dim}, decoder dim {args.dec_dim}, {args.dtype}; medians of {args.rounds}")
    oracle = _oracle(args) if args.diffusers else None
    ours = _ours(args, oracle).to(device)
    for case in args.cases:
        for direction in ("encode", "decode"):
            x = _input(case, direction, ours)
            reference = _reference(args, ours, direction, x) if args.error else None
            results = {}
            with _converted(ours, device, args.dtype), _converted(oracle, device, args.dtype):
                ways = _ways(args, ours, oracle, direction)
                results = _measure(ways, x.to(device, args.dtype), args.rounds, reference, device)
            _table(case, direction, results, device)
    if args.ops:
        _operations(ours, device, args)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small widths and frames; the default without a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=("wan22", "wan21"), default="wan22")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"))
    parser.add_argument("--frames", nargs="+", type=int, metavar="T")
    parser.add_argument("--no-diffusers", dest="diffusers", action="store_false")
    parser.add_argument("--no-error", dest="error", action="store_false", help="leave out the run in fp32")
    parser.add_argument("--no-ops", dest="ops", action="store_false", help="leave out the count of operations")
    args = parser.parse_args()
    if not args.device.startswith("cuda"):
        args.small = True
    height, width = args.size or ((128, 160) if args.small else (704, 1280))
    frames = args.frames or ([13] if args.small else [61, 121])
    args.cases = [Case(height, width, count) for count in frames]
    published = {"wan22": (160, 256), "wan21": (96, 96)}[args.model]
    args.dim, args.dec_dim = (32, 32) if args.small else published
    args.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[args.dtype]
    return args


def _machine(device: torch.device) -> str:
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device.type == "cuda":
        triton = "with" if has_triton() else "without"
        return f"{torch.cuda.get_device_name(device)}, {versions}, CUDA {torch.version.cuda}, {triton} Triton"
    return f"CPU ({torch.get_num_threads()} threads; these are no GPU figures), {platform.machine()}, {versions}"


def _oracle(args: argparse.Namespace) -> nn.Module | None:
    try:
        import diffusers
    except ImportError:
        print("diffusers is not installed: measured without it", file=sys.stderr)
        return None
    config: dict[str, object] = {
        "base_dim": args.dim,
        "latents_mean": list(WAN21_MEAN),
        "latents_std": list(WAN21_STD),
    }
    if args.model == "wan22":
        config |= {"decoder_base_dim": args.dec_dim, "z_dim": 48, "in_channels": 12, "out_channels": 12}
        config |= {"patch_size": 2, "scale_factor_spatial": 16, "is_residual": True}
        config |= {"latents_mean": list(WAN22_MEAN), "latents_std": list(WAN22_STD)}
    model: nn.Module = diffusers.AutoencoderKLWan(**config)
    return _random(model)


def _random(model: nn.Module) -> nn.Module:
    """Randomize every tensor; the last layer with smaller values, because diffusers clamps its output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for fqn, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if fqn.endswith("gamma"):
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise)
            if fqn.startswith(("decoder.conv_out", "decoder.head.2")):
                parameter.mul_(0.1)
    return model.eval().requires_grad_(False)


def _ours(args: argparse.Namespace, oracle: nn.Module | None) -> WanVAE:
    cls = {"wan22": WanVAE, "wan21": Wan21VAE}[args.model]
    if oracle is None:
        model = _random(cls(dim=args.dim, dec_dim=args.dec_dim))
        assert isinstance(model, WanVAE)
        return model
    with torch.device("meta"):
        vae: WanVAE = cls(dim=args.dim, dec_dim=args.dec_dim)
    remapkit.load_into(vae, oracle.state_dict(), f"{args.model}_diffusers", requires_grad=False, copy=True)
    return vae.eval()


def _input(case: Case, direction: str, vae: WanVAE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if direction == "encode":
        return torch.rand(1, 3, case.frames, case.height, case.width, generator=generator) * 2 - 1
    factor, chunks = vae.config.spatial_factor, 1 + (case.frames - 1) // vae.config.temporal_factor
    shape = (1, vae.config.z_dim, chunks, case.height // factor, case.width // factor)
    return torch.randn(shape, generator=generator)


def _reference(args: argparse.Namespace, vae: WanVAE, direction: str, x: Tensor) -> Tensor:
    """Return the result of the plain method in fp32, on the same device, without TF32."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    vae.optimize("off").float()
    code = getattr(vae, direction)
    with torch.inference_mode():
        out: Tensor = code(x.to(args.device)).cpu()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    return out


@contextmanager
def _converted(model: nn.Module | None, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Convert a model to a dtype temporarily. fp32 -> bf16 -> fp32 would round the weights, so they are saved."""
    if model is None:
        yield
        return
    kept = {fqn: tensor.cpu() for fqn, tensor in model.state_dict().items()}
    model.to(device, dtype)
    yield
    model.float()
    model.load_state_dict(kept)


def _ways(
    args: argparse.Namespace, ours: WanVAE, oracle: nn.Module | None, direction: str
) -> dict[str, tuple[Callable[[], object], Code]]:
    """Return for each name the preparation of the method, and the method itself."""
    on_gpu = args.device.startswith("cuda")
    settings: dict[str, Fast | str] = {
        "ours, plain": "off",
        "+ channels last": Fast(channels_last=True, autotune=on_gpu),
        "+ buffers": Fast(windows=True, channels_last=True, autotune=on_gpu),
        "buffers alone": Fast(windows=True),
    }
    if on_gpu:
        kernels = {"+ fused norm (Triton)": "triton", "+ fused norm (torch.compile)": "compile"}
        # torch.compile generates Triton kernels on CUDA too.
        for name, norm in kernels.items() if has_triton() else ():
            settings[name] = Fast(windows=True, channels_last=True, norm=norm, autotune=True)
        settings["+ graphs (auto)"] = "auto"
    found = {
        name: ((lambda setting=setting: ours.optimize(setting)), getattr(ours, direction))
        for name, setting in settings.items()
    }
    if oracle is None:
        return found
    return {"diffusers": (lambda: None, _of_diffusers(oracle, direction)), **found}


def _of_diffusers(oracle: nn.Module, direction: str) -> Code:
    def statistics_like(x: Tensor) -> Iterator[Tensor]:
        config = oracle.config
        return (
            torch.tensor(v, device=x.device).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std)
        )

    def encode(x: Tensor) -> Tensor:
        mean, std = statistics_like(x)
        return ((oracle.encode(x).latent_dist.mode() - mean) / std).to(x.dtype)

    def decode(x: Tensor) -> Tensor:
        mean, std = statistics_like(x)
        out: Tensor = oracle.decode((x * std + mean).to(x.dtype)).sample
        return out

    return encode if direction == "encode" else decode


def _measure(
    ways: dict[str, tuple[Callable[[], object], Code]],
    x: Tensor,
    rounds: int,
    reference: Tensor | None,
    device: torch.device,
) -> dict[str, Result]:
    """Run each method twice to warm up (and to record graphs) with its error, then the timed rounds."""
    results = {name: Result([]) for name in ways}
    # Taking turns rebuilds graphs and layouts each time: too slow on a GPU, where no other process interferes.
    turns = rounds if device.type == "cpu" else 1
    for turn in range(turns):
        for name, (ready, code) in ways.items():
            result = results[name]
            if result.failed:
                continue
            try:
                ready()
                _collect(device)
                with torch.inference_mode():
                    out = code(x)
                    if turn == 0:
                        out = code(x)
                    if turn == 0 and reference is not None:
                        result.error = float((out.float().cpu() - reference).norm() / reference.norm())
                    del out
                    result.seconds += [_timed(code, x, device) for _ in range(rounds // turns)]
                result.peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
            except (torch.OutOfMemoryError, RuntimeError) as error:
                result.failed = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return results


def _collect(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _timed(code: Code, x: Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        code(x)
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1000
    started = time.perf_counter()
    code(x)
    return time.perf_counter() - started


def _table(case: Case, direction: str, results: dict[str, Result], device: torch.device) -> None:
    print(f"\n{direction}, {case}")
    first = next((r for r in results.values() if r.seconds), None)
    base = statistics.median(first.seconds) if first else 1.0
    print(f"{'way':30} {'seconds':>9} {'min':>8} {'speed':>7} {'peak GB':>8} {'error':>9}")
    for name, result in results.items():
        if not result.seconds:
            print(f"{name:30} {result.failed}")
            continue
        median = statistics.median(result.seconds)
        peak = f"{result.peak / 1e9:.2f}" if device.type == "cuda" else "-"
        error = "-" if result.error is None else f"{result.error:.1e}"
        print(f"{name:30} {median:9.3f} {min(result.seconds):8.3f} {base / median:6.2f}x {peak:>8} {error:>9}")


class _Count(TorchDispatchMode):
    """Counts operations, and the bytes of the tensors that they create."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if isinstance(out, Tensor) and not func.is_view and not name.endswith("_"):
            self.bytes += out.numel() * out.element_size()
        return out


def _operations(vae: WanVAE, device: torch.device, args: argparse.Namespace) -> None:
    """Print the operations of one steady chunk, plain and with buffers; the same on every device."""
    print("\none steady chunk: calls, and bytes of new tensors")
    print("direction  way                cat  clone   copy    all   MB made   MB kept")
    vae.to(device, args.dtype)
    case = Case(128, 160, 17)
    for direction in ("encode", "decode"):
        x = _input(case, direction, vae).to(device, args.dtype)
        split = 13 if direction == "encode" else 4
        for name, setting in (("plain", Fast()), ("buffers", Fast(windows=True))):
            vae.optimize(setting)
            cache = WanCache()
            with torch.inference_mode():
                getattr(vae, direction)(x[:, :, :split], cache)
                with _Count() as count:
                    getattr(vae, direction)(x[:, :, split:], cache)
            calls, made, kept = count.calls, count.bytes / 1e6, cache.nbytes / 1e6
            columns = [calls["cat"], calls["clone"], calls["copy_"], sum(calls.values())]
            widths = (5, 6, 6, 6)
            numbers = " ".join(f"{n:{w}}" for n, w in zip(columns, widths, strict=True))
            print(f"{direction:10} {name:16} {numbers} {made:9.1f} {kept:9.1f}")


if __name__ == "__main__":
    sys.exit(main())
