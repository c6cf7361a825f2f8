import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import forked
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from motionanim.files import file_sha256 as digest
from motionanim.models import pretrained
from motionanim.models.pretrained import WEIGHTS, MissingWeights, Weights, download, find, load, main

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MOTIONANIM_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT as its server's `manner` says."""

    def do_GET(self):
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.starts.append(start)
        manner = self.server.manner
        if manner == "gone":
            return self.send_error(404)
        if manner == "no ranges":
            start = 0
        if start >= len(CONTENT):
            return self.send_error(416)
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if manner == "slow":
            self.wfile.write(body[:1000])
            time.sleep(1)
            body = body[1000:]
        # A cut connection: fewer bytes than announced.
        self.wfile.write(body[: len(body) // 2] if manner == "cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.manner, server.starts = "whole", []
    server.url = f"http://127.0.0.1:{server.server_port}/some.bin"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(WEIGHTS, "some", Weights("some.bin", server.url, DIGEST, 1, "none", "a test"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def seen(folder):
    """Files without those of locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_table_agrees_with_torchvision():
    published = {
        "lpips-alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
        "lpips-vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
        "raft-small": Raft_Small_Weights.DEFAULT, "raft-large": Raft_Large_Weights.DEFAULT,
    }  # fmt: skip
    for name, theirs in published.items():
        weights = WEIGHTS[name]
        assert weights.url == theirs.url
        # torchvision's file names end with the first 8 digits.
        assert theirs.url.endswith(f"/{weights.file}")
        assert weights.file.endswith(f"-{weights.sha256[:8]}.pth")
        assert weights.megabytes == round(theirs.meta["_file_size"] * 2**20 / 1e6)
    assert all(len(bytes.fromhex(weights.sha256)) == 32 for weights in WEIGHTS.values())
    assert len({weights.file for weights in WEIGHTS.values()}) == len(WEIGHTS)


def test_a_missing_file_says_what_where_and_how(own_folder, monkeypatch, tmp_path):
    with pytest.raises(MissingWeights, match=r"i3d_pretrained_400\.pt does not exist.*51 MB") as error:
        find("i3d")
    for part in (str(own_folder), "motionanim.models.pretrained download i3d", WEIGHTS["i3d"].url, "its path"):
        assert part in str(error.value)
    with pytest.raises(MissingWeights, match=r"elsewhere\.pt does not exist"):
        find("i3d", own_folder / "elsewhere.pt")
    assert not own_folder.exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MOTIONANIM_WEIGHTS")
    assert pretrained.folder() == tmp_path / ".cache" / "motionanim" / "weights"


def test_a_file_needs_its_own_hash(tmp_path):
    path = tmp_path / "mine.pt"
    path.write_bytes(b"mine")
    published, converted = WEIGHTS["i3d"].sha256, WEIGHTS["i3d"].package.sha256
    message = f"{digest(path)}, not {published} or {converted}: it is damaged or another file"
    with pytest.raises(ValueError, match=message):
        find("i3d", path)
    for expected in (digest(path), digest(path)[:8], digest(path)[:16].upper()):
        assert find("i3d", path, expected) == path
    for bad in ("", digest(path)[:7], digest(path) + "0", "not hex!"):
        with pytest.raises(ValueError, match="must be the first 8 to 64 hex digits"):
            find("i3d", path, bad)
    with pytest.raises(ValueError, match="weights 'i4d': must be one of i3d, lpips-alex"):
        find("i4d")


def test_state_dicts_are_read_and_anything_else_is_refused(tmp_path):
    state = {"weight": torch.arange(3.0)}
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "run.pth")
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    for name in ("a.pth", "a.safetensors"):
        path = tmp_path / name
        assert torch.equal(load("i3d", path, digest(path))["weight"], state["weight"])
    for name in ("list.pth", "run.pth", "broken.pth", "broken.safetensors", "evil.pth"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a state dict"):
            load("i3d", tmp_path / name, digest(tmp_path / name))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("net", "builder"), [("alex", torchvision.models.alexnet), ("vgg", torchvision.models.vgg16)])
def test_a_backbone_has_the_file_s_weights_frozen(tmp_path, net, builder):
    path, generator = tmp_path / "backbone.pth", torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = builder(weights=None).features.state_dict()
    state = {f"features.{key}": torch.randn(v.shape, generator=generator) * 0.05 for key, v in shapes.items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, path)  # instead of the large classifier
    before = torch.random.get_rng_state()
    backbone = pretrained.lpips_backbone(net, str(path), digest(path))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {f"features.{key}" for key in backbone.state_dict()} == state.keys()
    assert all(torch.equal(value, state[f"features.{key}"]) for key, value in backbone.state_dict().items())
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone(torch.zeros(1, 3, 64, 64)).isfinite().all()
    other = {"alex": "vgg", "vgg": "alex"}[net]
    with pytest.raises(ValueError, match=f"weights for lpips-{other} do not fit"):
        pretrained.lpips_backbone(other, str(path), digest(path))
    with pytest.raises(ValueError, match="net='squeeze'"):
        pretrained.lpips_backbone("squeeze")


def openclip_layout(model: CLIPVisionModelWithProjection) -> dict[str, torch.Tensor]:
    state = {key.removeprefix("vision_model."): value for key, value in model.state_dict().items()}
    found = {
        "visual.class_embedding": state["embeddings.class_embedding"],
        "visual.positional_embedding": state["embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["embeddings.patch_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        # Parts of the text tower, which the image encoder has to leave alone.
        "positional_embedding": torch.zeros(2, 2),
        "logit_scale": torch.zeros(()),
    }
    for part in ("weight", "bias"):
        found[f"visual.ln_pre.{part}"] = state[f"pre_layrnorm.{part}"]
        found[f"visual.ln_post.{part}"] = state[f"post_layernorm.{part}"]
        for i in range(model.config.num_hidden_layers):
            ours, theirs = f"visual.transformer.resblocks.{i}", f"encoder.layers.{i}"
            found[f"{ours}.attn.in_proj_{part}"] = torch.cat(
                [state[f"{theirs}.self_attn.{x}_proj.{part}"] for x in "qkv"]
            )
            for one, other in {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
                               "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}.items():  # fmt: skip
                found[f"{ours}.{one}.{part}"] = state[f"{theirs}.{other}.{part}"]
    return {key: value.contiguous() for key, value in found.items()}


@pytest.mark.slow  # the real architecture: 88 million weights, twice
def test_the_clip_encoder_equals_transformers(tmp_path):
    torch.manual_seed(0)
    theirs = CLIPVisionModelWithProjection(CLIPVisionConfig()).eval()
    path = tmp_path / "clip.safetensors"
    save_file(openclip_layout(theirs), path)
    ours = pretrained.clip_image_encoder(str(path), digest(path))
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(pixel_values=pixels).image_embeds
        torch.testing.assert_close(ours(pixels), expected, atol=5e-6, rtol=1e-5)
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights for clip-vit-b32 do not fit"):
        pretrained.clip_image_encoder(str(tmp_path / "other.pth"), digest(tmp_path / "other.pth"))


def test_a_download_is_checked_and_not_repeated_nor_its_folder_written(server, own_folder, monkeypatch):
    assert download("some") == own_folder / "some.bin"
    assert (own_folder / "some.bin").read_bytes() == CONTENT
    monkeypatch.setattr(pretrained, "FileLock", None)
    assert download("some") == find("some")
    assert server.starts == [0]
    assert seen(own_folder) == ["some.bin"]


@pytest.mark.parametrize("then", ["whole", "no ranges"])
def test_a_cut_download_is_continued(server, own_folder, then):
    server.manner = "cut"
    with pytest.raises(ValueError, match=r"stopped after 640000 of 1280000 bytes.*some\.bin\.part keeps what came"):
        download("some")
    with pytest.raises(MissingWeights):
        find("some")
    server.manner = then
    assert download("some").read_bytes() == CONTENT
    assert server.starts == [0, len(CONTENT) // 2]
    assert not (own_folder / "some.bin.part").exists()


def test_what_lies_there_is_finished_deleted_or_left_alone(server, own_folder):
    own_folder.mkdir()
    part, whole = own_folder / "some.bin.part", own_folder / "some.bin"
    part.write_bytes(CONTENT)  # a run that stopped after the last byte
    assert download("some").read_bytes() == CONTENT
    assert server.starts == [len(CONTENT)]
    whole.unlink()
    part.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=f"not {DIGEST}; it was deleted"):
        download("some")
    assert seen(own_folder) == []
    whole.write_bytes(b"mine")
    server.starts.clear()
    with pytest.raises(ValueError, match="damaged or another file"):
        download("some")
    assert (whole.read_bytes(), server.starts) == (b"mine", [])


def test_a_download_that_cannot_be_had_is_one_line(server, own_folder, monkeypatch):
    server.manner = "gone"
    with pytest.raises(ValueError, match=r"some\.bin cannot be downloaded \(HTTP Error 404"):
        download("some")
    monkeypatch.setitem(WEIGHTS, "some", WEIGHTS["some"]._replace(url="http://127.0.0.1:9/some.bin"))
    with pytest.raises(ValueError, match=r"cannot be downloaded \(.*refused"):
        download("some")
    assert seen(own_folder) == []


def download_some(url):
    WEIGHTS["some"] = Weights("some.bin", url, DIGEST, 1, "none", "a test")
    download("some")


@pytest.mark.slow  # starts processes
def test_processes_that_download_together_make_one_whole_file(server, own_folder):
    server.manner = "slow"  # so that the second begins while the first writes
    with forked.calling(download_some, server.url) as first, forked.calling(download_some, server.url) as second:
        assert (first.wait(timeout=60), second.wait(timeout=60)) == (0, 0)
    assert (own_folder / "some.bin").read_bytes() == CONTENT
    assert server.starts == [0], "one waited for the other"
    assert seen(own_folder) == ["some.bin"]


def test_the_command_lists_downloads_and_ends_in_one_line(server, own_folder, capsys):
    own_folder.mkdir()
    (own_folder / WEIGHTS["i3d"].file).write_bytes(b"another file")
    main(["download", "some"])
    assert capsys.readouterr().out.strip() == str(own_folder / "some.bin")
    main([])
    listed = capsys.readouterr().out
    for line in (
        "some: present",
        "lpips-vgg: missing",
        f"i3d: wrong (its SHA-256 is {digest(own_folder / 'i3d_pretrained_400.pt')})",
    ):
        assert line in listed
    for weights in WEIGHTS.values():
        assert str(own_folder / weights.file) in listed
        assert weights.url in listed
    (own_folder / "some.bin").unlink()
    server.manner = "gone"
    for name, message in (("some", "error: some: http://127.0.0.1"), ("unknown", "usage")):
        with pytest.raises(SystemExit, match="2"):
            main(["download", name])
        assert capsys.readouterr().err.startswith(message)
