"""The Wan VAEs: videos to latents and back, a chunk at a time.

`WanVAE` is the VAE of Wan 2.2 TI2V-5B, `Wan21VAE` that of Wan 2.1. The architecture is the published one; the state
dict is grouped by stage (`encoder.downsamples.1.resnets.0.residual.2.weight`): names, not positions, separate
residual blocks from resampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from .cache import RolloutKey, Stream, WanCache, WanCacheError, choose_cache
from .checks import WanInputError, WanNotLoadedError, check_input, check_values, find_placement
from .coder import Decoder, Encoder
from .config import WAN21_MEAN, WAN21_STD, WAN22_MEAN, WAN22_STD, VAEConfig
from .decoding import Decoding, StepName
from .fast import (
    Fast,
    Setting,
    WanFastError,
    autotune_cudnn,
    choose_fast,
    choose_memory_format,
    find_autocast_dtype,
    lay_out_weights,
)
from .graphs import Graphs
from .latents import LatentStatistics
from .layers import CausalConv3d, patchify, unpatchify
from .tiling import Tile, Tiling, make_whole_frame

if TYPE_CHECKING:
    from remapkit import Reader, RuleSet
    from remapkit.plugin import SourceLike

__all__ = [
    "Fast",
    "Tiling",
    "Wan21VAE",
    "WanCache",
    "WanCacheError",
    "WanFastError",
    "WanInputError",
    "WanNotLoadedError",
    "WanVAE",
]


class WanVAE(nn.Module):
    """The causal video VAE of Wan 2.2 TI2V-5B: `[B, 3, T, H, W]` <-> `[B, 48, 1+(T-1)/4, H/16, W/16]`.

    Videos are RGB in [-1, 1]; latents are the posterior's mean, normalised per channel with the published statistics,
    so encoding is deterministic. The first frame becomes one latent frame, then every four frames do. Both
    directions work in such chunks, and with a `WanCache` they continue from the end of the last call.

    Args:
        dim: base width of the encoder. Stage `i` is `dim * dim_mult[i]` wide.
        dec_dim: base width of the decoder.
        z_dim: latent channels.
        dim_mult: widths of the stages, in units of the base width.
        num_res_blocks: residual blocks of an encoder stage; a decoder stage has one more.
        temporal_downsample: for each resampling, whether it halves the frame rate too.
        patch_size: side, in pixels, of the squares that are folded into channels before the encoder.
        stage_shortcuts: the parameter-free averaging and duplicating paths around the stages (Wan 2.2).
        latents_mean, latents_std: per-channel statistics, `z_dim` values each. They are settings, not buffers: no
            checkpoint has them, and a model built on meta is complete after `load_state_dict(assign=True)`.
        encoder, decoder: False leaves that half out; its weights are then not in the state dict.

    The model computes in the dtype of its weights (fp32, bf16, fp16); inputs of another floating dtype are cast. It
    works under autograd: wrap inference in `torch.inference_mode()`. Without gradients it can compute faster with
    the same result, see `optimize`.

    Raises `ValueError` for invalid settings, with every reason.

    Source: the VAE published with Wan 2.2 TI2V-5B (`Wan2.2_VAE.pth`): 196 tensors, 704,688,668 parameters.

    >>> with torch.device("meta"):
    ...     vae = WanVAE()
    >>> len(vae.state_dict()), sum(p.numel() for p in vae.parameters())
    (196, 704688668)
    >>> small = WanVAE(dim=8, dec_dim=12)
    >>> with torch.inference_mode():
    ...     latent = small.encode(torch.zeros(1, 3, 5, 32, 48))
    ...     video = small.decode(latent)
    >>> tuple(latent.shape), tuple(video.shape)
    ((1, 48, 2, 2, 3), (1, 3, 5, 32, 48))
    """

    encoder: Encoder | None
    conv1: nn.Conv3d | None
    conv2: nn.Conv3d | None
    decoder: Decoder | None

    def __init__(
        self,
        *,
        dim: int = 160,
        dec_dim: int = 256,
        z_dim: int = 48,
        dim_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        temporal_downsample: Sequence[bool] = (False, True, True),
        patch_size: int = 2,
        stage_shortcuts: bool = True,
        latents_mean: Sequence[float] = WAN22_MEAN,
        latents_std: Sequence[float] = WAN22_STD,
        encoder: bool = True,
        decoder: bool = True,
    ) -> None:
        super().__init__()
        self.config = VAEConfig(
            dim=dim,
            dec_dim=dec_dim,
            z_dim=z_dim,
            dim_mult=tuple(dim_mult),
            num_res_blocks=num_res_blocks,
            temporal_downsample=tuple(temporal_downsample),
            patch_size=patch_size,
            stage_shortcuts=stage_shortcuts,
            latents_mean=tuple(latents_mean),
            latents_std=tuple(latents_std),
        )
        if not (encoder or decoder):
            raise ValueError("encoder=False and decoder=False leave no model")
        # In the order of the published file.
        self.encoder = Encoder(self.config) if encoder else None
        self.conv1 = nn.Conv3d(z_dim * 2, z_dim * 2, 1) if encoder else None
        self.conv2 = nn.Conv3d(z_dim, z_dim, 1) if decoder else None
        self.decoder = Decoder(self.config) if decoder else None
        for fqn, module in self.named_modules():
            if isinstance(module, CausalConv3d):
                module.slot = fqn
        # Caches are bound to this, not to the model itself: a cache must not keep gigabytes of weights alive.
        self._identity = object()
        self._fast: Setting | Fast = "auto"
        self._graphs = Graphs()
        self._statistics = LatentStatistics(self.config)

    @classmethod
    def from_checkpoint(
        cls,
        path: SourceLike | Reader,
        rules: RuleSet | str | Path | None = None,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | Literal["model"] | None = None,
        encoder: bool = True,
        decoder: bool = True,
        root: str | None = None,
        strip: Sequence[str] = (),
        copy: bool = False,
        requires_grad: bool | None = False,
        train: bool = False,
        **settings: Any,
    ) -> Self:
        """Load a model. The load is planned and checked first; then every tensor is read directly into place.

        `path` is a file or several, a folder of diffusers (the VAE's, or the pipeline's), an index of shards, or an
        open reader; `root` and `strip` say where its state dict is, and which segments are taken out of its keys.
        Without `rules` the layout is recognised by its keys: upstream's, diffusers', or the model's own as
        `remapkit apply` writes it. Widths (`dim`, `dec_dim`, `z_dim`) come from the shapes; all other `settings` from
        the arguments, else from a diffusers config next to the checkpoint, else from the published model.
        `encoder=False` or `decoder=False` loads one half; the bytes of the other half are never read.

        On the CPU the weights stay in the mapped file (`copy=True` reads them into memory); on CUDA they go through
        page-locked buffers and are cast there. `dtype=None` keeps the checkpoint's dtype. The model is frozen and in
        eval mode unless `requires_grad` (None: as constructed) and `train` override that.

        Raises `remapkit.UsageError` (`RK645`: no layout fits, or only the other generation's; `RK646`: several fit;
        `RK647`: other input channels), `FailedCheck` (names or shapes), `UnreadableCheckpoint`, or `ValueError` for
        invalid widths.

        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "vae.pth")
        >>> torch.save(WanVAE(dim=8, dec_dim=12).state_dict(), file)
        >>> vae = WanVAE.from_checkpoint(file, dtype=torch.bfloat16, encoder=False)
        >>> vae.config.dec_dim, vae.conv2.weight.dtype, vae.encoder
        (12, torch.bfloat16, None)
        """
        from .checkpoint import load_vae

        settings |= {"encoder": encoder, "decoder": decoder}
        how = {"device": device, "dtype": dtype, "copy": copy, "requires_grad": requires_grad, "train": train}
        siblings = [other for other in (WanVAE, Wan21VAE) if other is not cls]
        vae = load_vae(cls, path, rules, root=root, strip=strip, siblings=siblings, settings=settings, **how)
        assert isinstance(vae, cls)
        return vae

    @property
    def fast(self) -> Setting | Fast:
        """The setting of the last `optimize` call; "auto" if there was none."""
        return self._fast

    def optimize(self, fast: Setting | Fast = "auto") -> Self:
        """Choose how to compute wherever no gradients are needed; returns the model.

        "auto" selects what the device supports: on CUDA all parts of `Fast` except torch.compile (Triton only if
        installed); on the CPU the buffers, whose result is bit for bit the plain one, and channels last for 16-bit
        weights. "off" computes the plain way. A `Fast` names the parts; one that cannot run raises `WanFastError` at
        the next call. Caches stay valid across a change. Buffers and graphs of the previous setting are released, and
        the weights return to their plain layout.

        >>> WanVAE(dim=8, dec_dim=12).optimize(Fast(windows=True, norm="compile")).fast.norm
        'compile'
        """
        if not isinstance(fast, Fast) and fast not in ("auto", "off"):
            raise ValueError(f"fast must be 'auto', 'off' or a Fast(...), got {fast!r}")
        self._fast = fast
        with self._graphs.lock:
            self._graphs.clear()
            lay_out_weights([self], channels_last=False)
        return self

    def encode(self, video_BCTHW: Tensor, cache: WanCache | None = None, *, check_finite: bool = True) -> Tensor:
        """Encode a video to its normalised latent: `[B, 3, T, H, W]` -> `[B, z_dim, t, h, w]`.

        Without a cache, or at the cache's first use, T is 1 + 4k and t is 1 + k. Later calls with the same cache
        continue the video: T is 4k and t is k. How a video is split over calls does not change the latent. H and W
        are multiples of 16. (4 and 16 are `config.temporal_factor` and `config.spatial_factor`.)

        `check_finite=False` skips the check of all values, which waits for the device.

        Raises `WanInputError` (shape, dtype, device, NaN or infinite values, values far outside [-1, 1]),
        `WanCacheError` (the cache belongs to another model, size or dtype) or `WanNotLoadedError` (weights on meta).

        >>> vae, cache = WanVAE(dim=8, dec_dim=12), WanCache()
        >>> vae.encode(torch.zeros(1, 3, 1, 32, 32), cache).shape
        torch.Size([1, 48, 1, 2, 2])
        >>> vae.encode(torch.zeros(1, 3, 4, 32, 32), cache).shape
        torch.Size([1, 48, 1, 2, 2])
        """
        if self.encoder is None or self.conv1 is None:
            raise WanNotLoadedError("this WanVAE was built with encoder=False: it cannot encode")
        rollout = choose_cache(cache).encoding
        device, dtype = self._find_placement(("encoder", "conv1"), video_BCTHW)
        check_input("video", video_BCTHW, self.config, device, is_first=rollout.chunks == 0)
        B, _, T, H, W = video_BCTHW.shape
        factor = self.config.spatial_factor
        tiles = make_whole_frame(H // factor, W // factor)
        rollout.bind_key(self._make_key((B, H, W), dtype, device, tiles), device)
        if check_finite:
            check_values("video", video_BCTHW)
        fast = self._choose_fast(("encoder", "conv1"), video_BCTHW, device, dtype)
        start = rollout.chunks
        chunks = -(-T // self.config.temporal_factor)
        latent_BCTHW = torch.empty(B, self.config.z_dim, chunks, H // factor, W // factor, device=device, dtype=dtype)
        with rollout.advance(chunks):
            for t in range(chunks):
                frames = self.config.locate_frames(start, start + t)
                latent_BCTHW[:, :, t : t + 1] = self._run_step(
                    "encode", video_BCTHW[:, :, frames].to(dtype), 0, rollout.stream("frame"), fast
                )
        rollout.detach()
        return latent_BCTHW

    def decode(
        self,
        latent_BCTHW: Tensor,
        cache: WanCache | None = None,
        *,
        clamp: bool = False,
        tiling: Tiling | None = None,
        check_finite: bool = True,
    ) -> Tensor:
        """Decode a normalised latent to a video: `[B, z_dim, t, h, w]` -> `[B, 3, T, H, W]`.

        Without a cache, or at the cache's first use, T is 1 + 4(t-1); later calls with the same cache continue the
        video and T is 4t. How a latent is split over calls does not change the video.

        The decoder's output is not bounded: values outside [-1, 1] are returned unchanged, unless `clamp=True`.
        `tiling` decodes tile by tile, for frames that do not fit into memory.

        Raises the errors of `encode`.

        >>> vae = WanVAE(dim=8, dec_dim=12)
        >>> vae.decode(torch.zeros(1, 48, 2, 2, 3)).shape
        torch.Size([1, 3, 5, 32, 48])
        """
        job = self._start_decoding(latent_BCTHW, cache, tiling, clamp=clamp, check_finite=check_finite)
        video_BCTHW = job.run(keep=cache is not None)
        job.rollout.detach()
        return video_BCTHW

    def iter_decode(
        self,
        latents: Tensor | Iterable[Tensor],
        cache: WanCache | None = None,
        *,
        clamp: bool = False,
        tiling: Tiling | None = None,
        check_finite: bool = True,
    ) -> Iterator[Tensor]:
        """Like `decode`, but yields the video as it is computed: one chunk `[B, 3, 1 or 4, H, W]` per latent frame.

        `latents` is one tensor, or an iterable of tensors that continue each other (a generator, for example). A
        single tensor is checked immediately, those of an iterable when they arrive. The iteration may stop after any
        chunk: the cache can then continue from there.

        >>> vae = WanVAE(dim=8, dec_dim=12)
        >>> with torch.inference_mode():
        ...     [chunk.shape[2] for chunk in vae.iter_decode(torch.zeros(1, 48, 3, 2, 2))]
        [1, 4, 4]
        """
        cache = choose_cache(cache)
        if isinstance(latents, Tensor):
            jobs: Iterable[Decoding] = [
                self._start_decoding(latents, cache, tiling, clamp=clamp, check_finite=check_finite)
            ]
        else:
            jobs = (self._start_decoding(z, cache, tiling, clamp=clamp, check_finite=check_finite) for z in latents)
        return (chunk_BCTHW for job in jobs for chunk_BCTHW in job)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Encode and decode a video; return the reconstruction."""
        return self.decode(self.encode(video_BCTHW))

    def example_input(self, method: str) -> Tensor:
        """Return a small random input for `encode`, `decode` or `forward`, two latent frames long, for `verify`."""
        factor = self.config.spatial_factor
        if method == "decode":
            return torch.rand(1, self.config.z_dim, 2, 2, 3) * 2 - 1
        return torch.rand(1, 3, 1 + self.config.temporal_factor, 2 * factor, 3 * factor) * 2 - 1

    def reference_output(self, source: nn.Module, method: str, x: Tensor) -> object:
        """Return the output of diffusers' `AutoencoderKLWan`, with its latents normalised as in this class."""
        config = getattr(source, "config", None)
        if not hasattr(config, "latents_mean") or method not in ("encode", "decode"):
            return NotImplemented
        mean, std = (torch.tensor(v).reshape(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        call = getattr(source, method)
        return (call(x).latent_dist.mean - mean) / std if method == "encode" else call(x * std + mean).sample

    def comparable_output(self, method: str, x: Tensor) -> object:
        """Return what to compare with `reference_output`: diffusers clamps decoded videos, this class on request."""
        return self.decode(x, clamp=True) if method == "decode" else NotImplemented

    def extra_repr(self) -> str:
        return f"dim={self.config.dim}, dec_dim={self.config.dec_dim}, z_dim={self.config.z_dim}"

    def _run_step(self, name: StepName, x_BCTHW: Tensor, stages: int, stream: Stream, fast: Fast) -> Tensor:
        """Run one chunk through a part of the model; afterwards `stream` holds the frames to remember."""
        stream.fast = fast
        step = {"encode": self._encode_chunk, "begin": self._begin_chunk, "finish": self._finish_chunk}[name]

        def run(x_BCTHW: Tensor, stream: Stream) -> Tensor:
            return step(x_BCTHW, stages, stream)

        with autotune_cudnn(fast, x_BCTHW.device):
            if fast.graphs:
                B, _, _, H, W = x_BCTHW.shape
                cast = find_autocast_dtype(x_BCTHW.device)
                with self._graphs.lock:
                    pointers = self._list_weight_pointers(name)
                    key = (stages, B, H, W, x_BCTHW.dtype, cast, x_BCTHW.device, fast, pointers)
                    out_BCTHW = self._graphs.run(name, key, run, x_BCTHW, stream)
            else:
                stream.leave_host()
                out_BCTHW = run(x_BCTHW, stream)
        stream.chunks += 1
        return out_BCTHW

    def _encode_chunk(self, video_BCTHW: Tensor, _: int, stream: Stream) -> Tensor:
        """Encode one chunk of frames to one latent frame."""
        assert self.encoder is not None and self.conv1 is not None
        x_BCTHW = patchify(video_BCTHW, self.config.patch_size).contiguous(
            memory_format=choose_memory_format(stream.fast)
        )
        posterior_BCTHW: Tensor = self.conv1(self.encoder(x_BCTHW, stream))
        mean, std = self._statistics.on_device(posterior_BCTHW.device)
        # The second half is the log-variance, which a deterministic latent does not need.
        mu_BCTHW = posterior_BCTHW[:, : self.config.z_dim]
        return ((mu_BCTHW - mean) / std).to(video_BCTHW.dtype)

    def _begin_chunk(self, latent_BCTHW: Tensor, stages: int, stream: Stream) -> Tensor:
        """Run one latent frame through the part of the decoder that needs the whole frame."""
        assert self.decoder is not None and self.conv2 is not None
        mean, std = self._statistics.on_device(latent_BCTHW.device)
        z_BCTHW = (latent_BCTHW * std + mean).to(latent_BCTHW.dtype)
        z_BCTHW = z_BCTHW.contiguous(memory_format=choose_memory_format(stream.fast))
        return self.decoder.begin(self.conv2(z_BCTHW), stages, stream)

    def _finish_chunk(self, h_BCTHW: Tensor, stages: int, stream: Stream) -> Tensor:
        """Run the rest of the decoder; return one chunk of frames."""
        assert self.decoder is not None
        h_BCTHW = h_BCTHW.contiguous(memory_format=choose_memory_format(stream.fast))
        return unpatchify(self.decoder.finish(h_BCTHW, stages, stream), self.config.patch_size)

    def _start_decoding(
        self, latent_BCTHW: Tensor, cache: WanCache | None, tiling: Tiling | None, *, clamp: bool, check_finite: bool
    ) -> Decoding:
        """Check a call of `decode`, and return it ready to run."""
        if self.decoder is None or self.conv2 is None:
            raise WanNotLoadedError("this WanVAE was built with decoder=False: it cannot decode")
        rollout = choose_cache(cache).decoding
        device, dtype = self._find_placement(("decoder", "conv2"), latent_BCTHW)
        check_input("latent", latent_BCTHW, self.config, device, is_first=rollout.chunks == 0)
        B, _, _, H, W = latent_BCTHW.shape
        factor = self.config.spatial_factor
        tiles = make_whole_frame(H, W) if tiling is None else tiling.tiles(H, W, self.config)
        # A tiling that does not cut the frame is ignored.
        stages = 0 if tiling is None or len(tiles) == 1 else tiling.whole_stages
        rollout.bind_key(self._make_key((B, H * factor, W * factor), dtype, device, tiles, stages), device)
        if check_finite:
            check_values("latent", latent_BCTHW)
        fast = self._choose_fast(("decoder", "conv2"), latent_BCTHW, device, dtype)
        return Decoding(self._run_step, self.config, latent_BCTHW.to(dtype), rollout, tiles, stages, clamp, fast)

    def _choose_fast(self, names: tuple[str, str], x: Tensor, device: torch.device, dtype: torch.dtype) -> Fast:
        """Choose how this call computes, and give the weights that it needs the matching memory layout."""
        half = [self.get_submodule(name) for name in names]
        weights = [weight for module in half for weight in module.parameters()]
        grads = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
        fast = choose_fast(
            self._fast, device, dtype, grads=grads, graphs_work=self._graphs.capture.can_record(device)
        )
        if fast.channels_last:
            # Under the lock: a recording of another thread reads the weights at their current addresses.
            with self._graphs.lock:
                lay_out_weights(half, channels_last=True)
        return fast

    def _list_weight_pointers(self, name: StepName) -> tuple[int, ...]:
        """Return the addresses of a step's weights: part of a graph's key, since a graph reads these addresses."""
        half = (self.encoder, self.conv1) if name == "encode" else (self.decoder, self.conv2)
        return tuple(weight.data_ptr() for module in half if module is not None for weight in module.parameters())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Graphs are useless once the weights have moved: free their memory now, not at the next call.
        self._graphs.clear()
        return super()._apply(fn, recurse)

    def _find_placement(self, names: tuple[str, str], x: Tensor) -> tuple[torch.device, torch.dtype]:
        half, conv = (self.get_submodule(name) for name in names)
        weights = [(f"{names[0]}.{fqn}", p) for fqn, p in half.named_parameters()]
        weights += [(f"{names[1]}.{fqn}", p) for fqn, p in conv.named_parameters()]
        return find_placement(weights, x.device if isinstance(x, Tensor) else torch.device("cpu"))

    def _make_key(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        tiles: tuple[Tile, ...],
        stages: int = 0,
    ) -> RolloutKey:
        """Make the key that a cache is bound to; `shape` is the batch, height and width of the video."""
        label = f"{type(self).__name__}({self.extra_repr()})"
        boxes = tuple(tile.box for tile in tiles)
        return RolloutKey(self._identity, label, *shape, dtype, boxes, stages, find_autocast_dtype(device))


class Wan21VAE(WanVAE):
    """The causal video VAE of Wan 2.1: `[B, 3, T, H, W]` <-> `[B, 16, 1+(T-1)/4, H/8, W/8]`.

    The same modules as `WanVAE` with one width for both halves, no patches and no shortcuts around the stages.
    Arguments, methods and errors are the same as for `WanVAE`.

    Source: the VAE published with Wan 2.1 (`Wan2.1_VAE.pth`): 194 tensors, 126,892,531 parameters.

    >>> with torch.device("meta"):
    ...     vae = Wan21VAE()
    >>> len(vae.state_dict()), sum(p.numel() for p in vae.parameters())
    (194, 126892531)
    """

    def __init__(
        self,
        *,
        dim: int = 96,
        dec_dim: int = 96,
        z_dim: int = 16,
        dim_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        temporal_downsample: Sequence[bool] = (False, True, True),
        latents_mean: Sequence[float] = WAN21_MEAN,
        latents_std: Sequence[float] = WAN21_STD,
        encoder: bool = True,
        decoder: bool = True,
    ) -> None:
        super().__init__(
            dim=dim,
            dec_dim=dec_dim,
            z_dim=z_dim,
            dim_mult=dim_mult,
            num_res_blocks=num_res_blocks,
            temporal_downsample=temporal_downsample,
            patch_size=1,
            stage_shortcuts=False,
            latents_mean=latents_mean,
            latents_std=latents_std,
            encoder=encoder,
            decoder=decoder,
        )
