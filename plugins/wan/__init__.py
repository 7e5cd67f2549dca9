"""The causal video autoencoders of the Wan family, written for checkpoints with readable names.

`wan.vae:WanVAE` is the VAE of Wan 2.2 TI2V-5B (48 latent channels, 16x16x4 compression), `wan.vae:Wan21VAE` that of
Wan 2.1 (16 latent channels, 8x8x4). Both are configurations of the same modules:

* `config` the widths and constants of a model, checked once;
* `cache` what a rollout remembers between calls;
* `layers` norm, causal convolution, residual block, attention, resampling, patches;
* `fast` which of the faster ways to compute, `kernel` one of them for Triton, `graphs` one for CUDA;
* `coder` the stages, the encoder and the decoder;
* `checks` wrong use, told in full before anything runs;
* `tiling` large frames cut into overlapping tiles;
* `checkpoint` a file to a loaded model;
* `vae` the model itself;
* `media` and `roundtrip` pictures and videos, for `python -m remapkit.plugins.wan roundtrip`.

Nothing is imported here: finding the plugin must not import torch.
"""
