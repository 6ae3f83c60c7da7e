"""Published checkpoints: the forward pass as plain functions of the file's tensors, and refusals."""

import argparse

import pytest
import torch
from torch.nn import functional as F

from bmvtrack import prior
from bmvtrack.errors import UserError
from bmvtrack.models import BetaMVAE, BetaMVUNet, load_network
from bmvtrack.models.published import load_published

WIDTH, SAMPLES, CLASSES = 4, 10, 6


class Maker:
    """A state dict with random values under published names."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.tensors = {}

    def random(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def layer(self, name, *shape, bias=True, outputs=0):
        fan_in = torch.Size(shape).numel() / shape[0]
        self.tensors[f"{name}.weight"] = self.random(*shape) * (2 / fan_in) ** 0.5
        if bias:
            self.tensors[f"{name}.bias"] = 0.1 * self.random(outputs or shape[0])

    def norm(self, name, channels):
        self.tensors[f"{name}.weight"] = 1 + 0.1 * self.random(channels)
        self.tensors[f"{name}.bias"] = 0.1 * self.random(channels)
        self.tensors[f"{name}.running_mean"] = 0.1 * self.random(channels)
        self.tensors[f"{name}.running_var"] = 1 + self.random(channels).abs()
        self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def double(self, name, before, after):
        self.layer(f"{name}.double_conv.0", after, before, 3, 3, bias=False)
        self.norm(f"{name}.double_conv.1", after)
        self.layer(f"{name}.double_conv.3", after, after, 3, 3, bias=False)
        self.norm(f"{name}.double_conv.4", after)

    def heads(self, features):
        for name in ("fc_mu", "fc_var"):
            self.layer(name, 5 * SAMPLES, features)


def mvunet_tensors():
    make, w = Maker(), WIDTH
    make.double("inc", 3, w)
    for i in range(1, 5):
        make.double(f"down{i}.maxpool_conv.1", w * 2 ** (i - 1), w * 2**i)
    make.layer("flat", 16 * w, 16 * w * 16 * 16)
    make.heads(16 * w)
    make.layer("z_dim", 16 * w * 8 * 8, 5 * SAMPLES)
    for i in range(1, 5):
        before, after = w * 2 ** (5 - i), w * 2 ** (4 - i)
        make.layer(f"up{i}.up", before, after, 2, 2, outputs=after)
        make.double(f"up{i}.conv", before, after)
    make.layer("outc.conv", CLASSES, w, 1, 1)
    return make.tensors


def mvae_tensors(paired=False):
    """``paired``: an enlarging convolution is the second of a pair, as in lightning-bolts."""
    make, w, last = Maker(), WIDTH, ".1" if paired else ""

    def block(name, first, second, shortcut, nested=""):
        make.layer(f"{name}.conv1", first[1], first[0], 3, 3, bias=False)
        make.norm(f"{name}.bn1", first[1])
        make.layer(f"{name}.conv2{nested}", second[1], second[0], 3, 3, bias=False)
        make.norm(f"{name}.bn2", second[1])
        if shortcut and first[0] != second[1]:
            make.layer(f"{name}.{shortcut}.0{nested}", second[1], first[0], 1, 1, bias=False)
            make.norm(f"{name}.{shortcut}.1", second[1])

    make.layer("encoder.conv1", w, 3, 7, 7, bias=False)
    make.norm("encoder.bn1", w)
    for i, (a, b) in enumerate([(w, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)], 1):
        block(f"encoder.layer{i}.0", (a, b), (b, b), "downsample")
        block(f"encoder.layer{i}.1", (b, b), (b, b), "")
    make.heads(8 * w)
    make.layer("decoder.linear", 8 * w * 4 * 4, 5 * SAMPLES)
    for i, (a, b) in enumerate([(8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (w, w)], 1):
        block(f"decoder.layer{i}.0", (a, a), (a, b), "upsample", last if a != b else "")
        block(f"decoder.layer{i}.1", (b, b), (b, b), "")
    make.layer("decoder.conv1", 3, w, 3, 3, bias=False)
    make.layer("outc.conv.0", 11, 3, 3, 3, bias=False)
    make.layer("outc.conv.1", 33, 11, 3, 3, bias=False)
    make.layer("outc.conv.2", CLASSES, 33, 1, 1)
    return make.tensors


class Forward:
    """The networks in evaluation mode, straight from the tensors."""

    def __init__(self, tensors):
        self.t = tensors

    def convolve(self, name, x, **options):
        return F.conv2d(x, self.t[f"{name}.weight"], self.t.get(f"{name}.bias"), **options)

    def linear(self, name, x):
        return F.linear(x, self.t[f"{name}.weight"], self.t[f"{name}.bias"])

    def norm(self, name, x):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.t[f"{name}.{part}"] for part in names))

    def heads(self, features):
        """Mean ``(B, 5)`` and the covariance of the batch ``(5, 5)``."""
        mean, spread = (
            self.linear(name, features).reshape(-1, 5, SAMPLES) for name in ("fc_mu", "fc_var")
        )
        return mean.mean(dim=2), torch.cov(spread.mean(dim=0))

    def double(self, name, x):
        for first in (0, 3):
            x = self.convolve(f"{name}.double_conv.{first}", x, padding=1)
            x = F.relu(self.norm(f"{name}.double_conv.{first + 1}", x))
        return x

    def mvunet(self, x, latents=None):
        maps = [self.double("inc", x)]
        for i in range(1, 5):
            maps.append(self.double(f"down{i}.maxpool_conv.1", F.max_pool2d(maps[-1], 2)))
        posterior = self.heads(self.linear("flat", maps.pop().flatten(1)))
        if latents is None:
            latents = posterior[0][..., None].repeat(1, 1, SAMPLES)
        x = self.linear("z_dim", latents.reshape(-1, 5 * SAMPLES)).reshape(-1, 16 * WIDTH, 8, 8)
        for i in range(1, 5):
            weight, bias = (self.t[f"up{i}.up.{part}"] for part in ("weight", "bias"))
            x = F.conv_transpose2d(x, weight, bias, stride=2)
            if i == 1:
                assert x.shape[2:] == (16, 16)
                padded = torch.zeros(len(x), x.shape[1], 32, 32)
                padded[:, :, 8:24, 8:24] = x
                x = padded
            x = self.double(f"up{i}.conv", torch.cat([maps.pop(), x], dim=1))
        return self.convolve("outc.conv", x), *posterior

    def encoder_block(self, name, x, stride):
        y = self.convolve(f"{name}.conv1", x, stride=stride, padding=1)
        y = F.leaky_relu(self.norm(f"{name}.bn1", y), 0.01)
        y = self.norm(f"{name}.bn2", self.convolve(f"{name}.conv2", y, padding=1))
        if f"{name}.downsample.0.weight" in self.t:
            x = self.convolve(f"{name}.downsample.0", x, stride=stride)
            x = self.norm(f"{name}.downsample.1", x)
        return F.leaky_relu(x + y, 0.01)

    def decoder_block(self, name, x):
        def larger(z):
            return z.repeat_interleave(2, 2).repeat_interleave(2, 3) if enlarge else z

        enlarge = f"{name}.upsample.1.weight" in self.t
        last = ".1" if f"{name}.conv2.1.weight" in self.t else ""
        y = self.convolve(f"{name}.conv1", x, padding=1)
        y = F.leaky_relu(self.norm(f"{name}.bn1", y), 0.01)
        y = self.convolve(f"{name}.conv2{last}", larger(y), padding=1)
        y = self.norm(f"{name}.bn2", y)
        if enlarge:
            x = self.convolve(f"{name}.upsample.0{last}", larger(x))
            x = self.norm(f"{name}.upsample.1", x)
        return F.leaky_relu(x + y, 0.01)

    def mvae(self, x, latents=None):
        x = self.convolve("encoder.conv1", x, stride=2, padding=3)
        x = F.leaky_relu(self.norm("encoder.bn1", x), 0.01)
        for i in range(1, 5):
            x = self.encoder_block(f"encoder.layer{i}.0", x, 1 if i == 1 else 2)
            x = self.encoder_block(f"encoder.layer{i}.1", x, 1)
        posterior = self.heads(x.mean(dim=(2, 3)))
        if latents is None:
            latents = posterior[0][..., None].repeat(1, 1, SAMPLES)
        x = self.linear("decoder.linear", latents.reshape(-1, 5 * SAMPLES))
        x = x.reshape(-1, 8 * WIDTH, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        for i in range(1, 5):
            x = self.decoder_block(f"decoder.layer{i}.0", x)
            x = self.decoder_block(f"decoder.layer{i}.1", x)
        x = self.convolve("decoder.conv1", F.interpolate(x, scale_factor=2), padding=1)
        x = self.convolve("outc.conv.1", self.convolve("outc.conv.0", x, padding=1), padding=1)
        return self.convolve("outc.conv.2", x), *posterior


KINDS = {
    "mvae": (BetaMVAE, mvae_tensors, Forward.mvae),
    "mvae, paired": (BetaMVAE, lambda: mvae_tensors(paired=True), Forward.mvae),
    "mvunet": (BetaMVUNet, mvunet_tensors, Forward.mvunet),
}


def write(folder, tensors, **beside):
    """A checkpoint as Lightning writes it."""
    path = folder / "published.ckpt"
    content = {"epoch": 3, "pytorch-lightning_version": "1.7.7", "state_dict": tensors}
    torch.save(content | beside, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_imported_network_is_the_published_one(tmp_path, kind):
    architecture, make, forward = KINDS[kind]
    tensors = make()
    network = load_published(write(tmp_path, tensors))
    assert type(network) is architecture
    assert not network.training
    assert (network.classes, network.input_channels, network.input_size) == (CLASSES, 3, 256)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 256, 256, generator=generator)
    latents = torch.randn(2, 5, SAMPLES, generator=generator)
    plain = Forward(tensors)
    with torch.no_grad():
        output = network(x)
        drawn = network.decode(latents, network.encode(x))
        logits, mean, covariance = forward(plain, x)
        expected, *_ = forward(plain, x, latents)
    assert_close(output.logits, logits)
    assert_close(output.posterior.mean, mean)
    assert_close(output.posterior.covariance[0], covariance)
    assert_close(drawn, expected)
    assert (drawn - output.logits).abs().max() > 1e-2 * logits.abs().max()


def assert_close(found, expected):
    largest = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_keeps_every_bit_and_says_how_it_was_trained(tmp_path, kind):
    architecture, make, _ = KINDS[kind]
    tensors = make()
    load_published(write(tmp_path, tensors)).save_weights(tmp_path / "weights", half=False)
    network = load_network(tmp_path / "weights")
    assert type(network) is architecture
    state = network.state_dict()
    assert len(state) == len(tensors)
    assert torch.equal(state["bottleneck.mean_head.weight"], tensors["fc_mu.weight"])
    assert torch.equal(state["bottleneck.covariance_head.bias"], tensors["fc_var.bias"])
    sums = [sorted(v.double().sum().item() for v in d.values()) for d in (state, tensors)]
    assert sums[0] == sums[1]
    bottleneck = network.bottleneck
    assert bottleneck.samples == SAMPLES
    assert (bottleneck.covariance_kind, bottleneck.reduction) == ("batch", "mean")
    assert bottleneck.reparameterization == "affine"
    assert torch.equal(bottleneck.scale, torch.ones(5))
    paper = torch.tensor(prior.named("paper").covariance).float()
    assert torch.equal(bottleneck.latent_covariance, paper)


def test_half_precision_and_other_sizes_are_read(tmp_path):
    tensors = mvunet_tensors()
    tensors["flat.weight"] = tensors["flat.weight"][:, : 16 * WIDTH * 8 * 8]
    tensors["inc.double_conv.0.weight"] = torch.zeros(WIDTH, 4, 3, 3)
    halves = {n: v.half() if v.is_floating_point() else v for n, v in tensors.items()}
    network = load_published(write(tmp_path, halves))
    assert (network.input_size, network.input_channels) == (128, 4)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def without(name):
    return lambda tensors: tensors.pop(name)


def with_(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "mvunet",
            without("up3.conv.double_conv.1.bias"),
            r"lacks up3\.conv\.double_conv\.1\.bias",
        ),
        ("mvunet", without("fc_var.weight"), r"lacks fc_var\.weight"),
        ("mvunet", without("fc_mu.bias"), r"fc_mu\.bias is missing"),
        (
            "mvunet",
            without("inc.double_conv.0.weight"),
            r"neither βMVAE nor βMVUnet.* no inc\.double",
        ),
        ("mvunet", with_("loss.weight", torch.zeros(3)), r"has loss\.weight, which the paper's"),
        ("mvunet", with_("loss.weight", 3.0), r"'loss\.weight' in its state_dict is not a tensor"),
        (
            "mvunet",
            with_("up1.up.bias", torch.zeros(3)),
            r"does not fit: up1\.up\.bias is \(3,\), not \(32,\)",
        ),
        (
            "mvunet",
            with_("flat.weight", torch.zeros(64, 1000)),
            r"no valid network: input_size must be .*128 \(alignment padded\), not 48",
        ),
        (
            "mvunet",
            with_("flat.weight", torch.zeros(64, 64 * 257)),
            r"flat\.weight is \(64, 16448\), not \(64, 16384\)",
        ),
        ("mvunet", with_("fc_mu.bias", torch.zeros(53)), r"fc_mu\.bias is \(53,\), not \(50,\)"),
        ("mvunet", with_("fc_mu.bias", torch.tensor(1.0)), r"fc_mu\.bias is of shape \(\)"),
        ("mvunet", with_("fc_mu.bias", torch.zeros(20)), r"samples > 5, not 3, 6, 4 and 4"),
        (
            "mvunet",
            with_("inc.double_conv.0.weight", torch.zeros(0, 3, 3, 3)),
            "width ≥ 1 and samples > 5, not 3, 6, 0 and 10",
        ),
        (
            "mvae",
            without("decoder.layer2.0.upsample.0.weight"),
            r"lacks decoder\.layer2\.0\.upsample",
        ),
        (
            "mvae, paired",
            with_("decoder.layer1.0.conv2.1.weight", torch.zeros(1)),
            r"does not fit: decoder\.layer1\.0\.conv2\.1\.weight is \(1,\), not \(16, 32, 3, 3\)",
        ),
        (
            "mvae",
            with_("encoder.conv1.weight", torch.zeros(4, 5, 7, 7)),
            "input_channels must be 3 or 4",
        ),
    ],
)
def test_what_is_not_the_papers_is_refused_by_name(tmp_path, kind, change, message):
    tensors = KINDS[kind][1]()
    change(tensors)
    refused(write(tmp_path, tensors), message)


def refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        load_published(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_pickled_objects_are_not_unpickled(tmp_path):
    path = write(tmp_path, mvae_tensors(), hyper_parameters=argparse.Namespace(beta=5))
    refused(path, "holds Python objects besides tensors.* not unpickled")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint, or damaged"),
        (b"not a checkpoint", "Python objects besides tensors, or is damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file.ckpt"
    path.write_bytes(content)
    refused(path, message)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path, share):
    path = write(tmp_path, mvae_tensors())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "damaged")


@pytest.mark.parametrize("content", [torch.zeros(3), {"weights": {}}, {"state_dict": [1]}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "file.ckpt"
    torch.save(content, path)
    refused(path, "it has no state_dict")


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "nowhere.ckpt", "no file .*nowhere.ckpt")


def test_a_changed_bit_is_noticed(tmp_path):
    path = write(tmp_path, mvae_tensors())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not a checkpoint, or damaged"):
        load_published(path)
