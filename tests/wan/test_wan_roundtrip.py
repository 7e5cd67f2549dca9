"""A picture or a video through the VAE and back: what a person runs, and what it says when it cannot."""

from __future__ import annotations

import math
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from remapkit.plugins.wan import roundtrip as module
from remapkit.plugins.wan.__main__ import main
from remapkit.plugins.wan.vae import Wan21VAE, WanVAE

import remapkit

av = pytest.importorskip("av")

TINY = Path(remapkit.__file__).parent.parent / "tests/data/wan22_vae_tiny/upstream.pth"


def picture(t, height, width):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, np.full((height, width), t * 20 % 256)], -1).astype("uint8")


def make(path, frames, height, width, codec="mpeg4", pix_fmt="yuv420p"):
    png = path.suffix == ".png"
    with av.open(str(path), "w", format="image2" if png else None) as container:
        stream = container.add_stream("png" if png else codec, rate=12)
        stream.height, stream.width, stream.pix_fmt = height, width, "rgb24" if png else pix_fmt
        for t in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(t, height, width), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def run(source, out, *more, checkpoint=TINY):
    return main(["roundtrip", str(source), "-o", str(out), "--checkpoint", str(checkpoint), *more])


def leftovers(folder):
    return [path.name for path in folder.iterdir() if ".part" in path.name]


@pytest.fixture
def identity(monkeypatch):
    """A codec that loses nothing: whatever differs afterwards was lost on the way to and from it."""
    kept = {}

    def encode(self, video, cache, check_finite):
        kept.setdefault("chunks", []).append(video)
        B, _, _, H, W = video.shape
        return torch.zeros(B, 48, 1, H // 16, W // 16)

    def decode(self, latent, cache, clamp, tiling, check_finite):
        return kept["chunks"][-1] + kept.get("offset", 0)

    monkeypatch.setattr(WanVAE, "encode", encode)
    monkeypatch.setattr(WanVAE, "decode", decode)
    return kept


def test_a_picture_through_a_codec_that_loses_nothing(identity, tmp_path, capsys):
    source = make(tmp_path / "in.png", 1, 48, 80)
    assert run(source, tmp_path / "out.png") == 0
    assert np.array_equal(frames_of(tmp_path / "out.png")[0], picture(0, 48, 80))
    assert "PSNR infinite (no difference)" in capsys.readouterr().out
    assert leftovers(tmp_path) == []


def test_a_video_is_coded_chunk_by_chunk_and_its_psnr_is_that_of_its_frames(identity, tmp_path, capsys):
    source = make(tmp_path / "in.mp4", 9, 48, 80)
    identity["offset"] = 2 / 127.5  # two of 255 everywhere, but where bytes end
    assert run(source, tmp_path / "out.mp4") == 0
    assert [chunk.shape[2] for chunk in identity["chunks"]] == [1, 4, 4]
    given, back = np.stack(frames_of(source)).astype(float), np.stack(frames_of(tmp_path / "out.mp4"))
    assert back.shape == given.shape
    changed = np.minimum(given + 2, 255)
    psnr = 10 * math.log10(255**2 / ((changed - given) ** 2).mean())
    out = capsys.readouterr().out
    assert f"PSNR {psnr:.2f} dB, worst" in out
    assert "9 frames of 48x80 -> latent [48, 3, 3, 5] -> back, by WanVAE in float32 on cpu" in out
    # What was written is what was decoded, but for the compression of the output.
    assert 10 * math.log10(255**2 / ((changed - back) ** 2).mean()) > 30


def test_a_real_model_streams_what_it_codes_at_once(tmp_path, capsys):
    source = make(tmp_path / "in.mp4", 9, 32, 48)
    assert run(source, tmp_path / "out.mp4", "--fast", "off") == 0
    said = capsys.readouterr().out
    vae = WanVAE.from_checkpoint(TINY)
    given = torch.from_numpy(np.stack(frames_of(source)))
    video = (given.permute(3, 0, 1, 2).unsqueeze(0).float() / 127.5 - 1).contiguous()
    with torch.inference_mode():
        back = vae.decode(vae.encode(video), clamp=True)
    bytes_ = ((back[0] + 1) * 127.5).round().permute(1, 2, 3, 0)
    psnr = 10 * math.log10(255**2 / (bytes_ - given).square().mean().item())
    assert f"PSNR {psnr:.2f} dB" in said


def test_the_other_generation_is_known_by_its_keys(randomise, tmp_path, capsys):
    torch.save(randomise(Wan21VAE(dim=4, dec_dim=4), 0).state_dict(), tmp_path / "vae.pth")
    source = make(tmp_path / "in.png", 1, 24, 40)
    assert run(source, tmp_path / "out.png", checkpoint=tmp_path / "vae.pth") == 0
    assert "latent [16, 1, 3, 5] -> back, by Wan21VAE" in capsys.readouterr().out


def test_odd_sizes_and_lengths_are_refused_with_their_rule_or_cropped(identity, tmp_path, capsys):
    source = make(tmp_path / "in.mp4", 11, 50, 100)
    assert run(source, tmp_path / "out.mp4") == 2
    said = capsys.readouterr().err
    for words in (
        "RK652",
        "50x100 pixels: height and width must be multiples of 16",
        "11 frames: must be 1 + 4k",
        "pass --crop to code the middle 48x96 of the first 9 frames",
    ):
        assert words in said
    assert list(tmp_path.iterdir()) == [source]
    assert run(source, tmp_path / "out.mp4", "--crop") == 0
    assert "cropped from 11 frames of 50x100 to 9 of 48x96" in capsys.readouterr().out
    middle = np.stack(frames_of(source))[:9, 1:49, 2:98].transpose(3, 0, 1, 2)
    coded = torch.cat(identity["chunks"], 2)[0]
    assert torch.equal(((coded + 1) * 127.5).round().byte(), torch.from_numpy(middle))


def test_a_limit_and_tiles(tmp_path, capsys):
    source = make(tmp_path / "in.mp4", 9, 32, 48)
    assert run(source, tmp_path / "out.mp4", "--max-frames", "5", "--tile", "32") == 0
    assert "5 frames of 32x48" in capsys.readouterr().out
    assert len(frames_of(tmp_path / "out.mp4")) == 5
    assert run(source, tmp_path / "one.png", "--max-frames", "1") == 0
    assert run(source, tmp_path / "no.mp4", "--tile", "40") == 2
    assert "--tile 40: " in capsys.readouterr().err


def broken(tmp_path):
    """A video that ends in the middle, with a header that promises all of it."""
    data = make(tmp_path / "whole.mkv", 41, 64, 64).read_bytes()
    (tmp_path / "broken.mkv").write_bytes(data[: len(data) // 2])
    return tmp_path / "broken.mkv"


WRONG = {
    "no file": (lambda p: p / "none.mp4", "out.mp4", "RK651", "does not exist"),
    "a folder": (lambda p: p, "out.mp4", "RK651", "is a directory"),
    "text": (
        lambda p: write(p / "in.txt", b"text " * 99),
        "out.mp4",
        "RK651",
        "holds no pictures",
    ),
    "empty": (lambda p: write(p / "in.mp4", b""), "out.mp4", "RK651", "cannot be read"),
    "too small": (lambda p: make(p / "in.png", 1, 8, 40), "out.png", "RK652", "at least 16x16 pixels are needed"),
    "video to png": (lambda p: make(p / "in.mp4", 5, 16, 16), "out.png", "RK653", "5 frames, a picture has one"),
    "unknown suffix": (
        lambda p: make(p / "in.png", 1, 16, 16),
        "out.gif",
        "RK653",
        "it must end in .png (a picture) or .mp4, .mov, .mkv, got .gif",
    ),
    "no folder": (lambda p: make(p / "in.png", 1, 16, 16), "no/out.png", "RK653", "no does not exist"),
    "input": (lambda p: make(p / "in.png", 1, 16, 16), "in.png", "RK653", "it is the input"),
}


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("source", "out", "code", "words"), WRONG.values(), ids=WRONG)
def test_wrong_inputs_and_outputs(tmp_path, capsys, source, out, code, words):
    path = source(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run(path, tmp_path / out) == 2
    said = capsys.readouterr()
    assert code in said.err and words in said.err
    assert "Traceback" not in said.err and said.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_checkpoints(tmp_path, capsys):
    source = make(tmp_path / "in.png", 1, 16, 16)
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    for checkpoint, code, exit_code in (
        (tmp_path / "none.pth", "RK400", 2),
        (source, "RK401", 2),
        (tmp_path / "other.pth", "RK645", 2),
    ):
        assert run(source, tmp_path / "out.png", checkpoint=checkpoint) == exit_code
        assert code in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["roundtrip", str(source), "-o", str(tmp_path / "out.png")])
    assert caught.value.code == 2
    assert "--checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_a_device_that_is_not_there(tmp_path, capsys):
    source = make(tmp_path / "in.png", 1, 16, 16)
    assert run(source, tmp_path / "out.png", "--device", "nonsense") == 2
    assert "RK630" in capsys.readouterr().err


def test_a_file_that_breaks_off_or_a_failure_leaves_the_old_output(tmp_path, capsys, monkeypatch):
    source = make(tmp_path / "in.mp4", 9, 16, 16)
    out = write(tmp_path / "out.mp4", b"old")
    with monkeypatch.context() as patch:
        read = module.Clip.read
        patch.setattr(module.Clip, "read", lambda self: islice(read(self), 6))
        assert run(source, out) == 2
    assert "ends after 5 of 9 frames" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(WanVAE, "decode", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("8 GiB")))
        assert run(source, out) == 2
    said = capsys.readouterr().err
    assert "RK654" in said and "--tile 512" in said
    with monkeypatch.context() as patch:
        patch.setattr(WanVAE, "decode", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run(source, out) == 130
    assert out.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_without_pyav(tmp_path, capsys, monkeypatch):
    source = make(tmp_path / "in.png", 1, 16, 16)
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(source, tmp_path / "out.png") == 2
    assert 'pip install "remapkit[video]"' in capsys.readouterr().err


def test_memory_does_not_follow_the_length(identity, tmp_path, monkeypatch):
    """At most two chunks of frames are alive at any time, however long the video is."""
    import weakref

    source, alive, most = make(tmp_path / "in.mp4", 41, 16, 16), [], []
    stack = module.torch.stack

    def watched(frames):
        chunk = stack(frames)
        alive.append(weakref.ref(chunk))
        most.append(sum(ref() is not None for ref in alive))
        return chunk

    monkeypatch.setattr(module.torch, "stack", watched)
    assert run(source, tmp_path / "out.mp4") == 0
    assert len(most) == 11 and max(most) <= 2
