"""The causal video autoencoders of the Wan family, written for checkpoints with readable names.

`wan.vae:WanVAE` is the VAE of Wan 2.2 TI2V-5B (48 latent channels, 16x16x4 compression), `wan.vae:Wan21VAE` that of
Wan 2.1 (16 latent channels, 8x8x4). Both are configurations of the same modules:

* `config` the widths and constants of a model, checked once;
* `cache` the frames that layers remember between calls;
* `layers` norm, causal convolution, residual block, attention, resampling, patches;
* `fast` the parts of the fast path, `kernel` its Triton kernel, `graphs` its CUDA graphs;
* `coder` the stages, the encoder and the decoder; `latents` the statistics of latents;
* `checks` checks of weights and inputs before anything runs;
* `tiling` overlapping tiles of large frames; `decoding` one call of `decode`, tile by tile;
* `checkpoint` from a file to a loaded model;
* `vae` the models and the public API;
* `media` and `roundtrip` pictures and videos, for `python -m remapkit.plugins.wan roundtrip`.

Nothing is imported here: finding the plugin must not import torch.
"""
