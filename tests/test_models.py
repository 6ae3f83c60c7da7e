"""One base test for every network of the family."""

import pytest
import torch
from network_tests import DAVIS, NetworkTests
from networks import change_config

from bmvtrack import prior
from bmvtrack.models import (
    BetaMVAE,
    BetaMVUNet,
    ResNetUNet,
    load_network,
)


class TestResNetUNet(NetworkTests):
    architecture = ResNetUNet
    small = {"width": 4, "input_size": 64}  # noqa: RUF012
    shapes = (
        {},
        {"input_channels": 3, "classes": 66, "covariance": "batch", "standardized": False},
        {"width": 8, "input_size": 128, "samples": 10},
        {"width": 1, "input_size": 192, "classes": 3},
    )

    def test_is_resnet18_at_its_width(self):
        """The four stages of torchvision's, and one more."""
        from torchvision.models import resnet18

        network, reference = self.make(width=64, input_channels=3), resnet18()
        sizes = [sum(p.numel() for p in stage.parameters()) for stage in network.stages]
        layers = reference.layer1, reference.layer2, reference.layer3, reference.layer4
        assert sizes[:4] == [sum(p.numel() for p in layer.parameters()) for layer in layers]
        assert len(sizes) == 5

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"input_size": 100}, "multiple of 64, not 100"),
            ({"input_size": 0}, "multiple of 64, not 0"),
            ({"input_channels": 5}, "input_channels must be 3 or 4"),
            ({"classes": 1}, "classes ≥ 2"),
            ({"width": 0}, "width ≥ 1"),
            ({"samples": 5}, "samples > 5"),
        ],
    )
    def test_sizes_that_cannot_be_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.make(**options)


def counts(architecture, **options):
    """Parameters of each part and in all, at the published size unless told otherwise."""
    with torch.device("meta"):
        network = architecture(prior.named("paper"), **options)
    parts = {**dict(network.named_children()), **dict(network.bottleneck.named_children())}
    result = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return result | {"total": sum(p.numel() for p in network.parameters())}


class PaperTests(NetworkTests):
    """What holds for both networks of the paper."""

    parts: dict[str, int]
    """Parameters that the paper's network has."""

    def test_has_the_parameters_of_the_paper(self):
        found = counts(self.architecture)
        assert self.parts.items() <= found.items()
        with torch.device("meta"):
            bottleneck = self.architecture(prior.named("paper")).bottleneck
        assert (bottleneck.covariance_kind, bottleneck.reduction) == ("batch", "norm")
        assert bottleneck.reparameterization == "affine"

    def test_ten_samples_a_variable_change_what_touches_them(self):
        """§4.2 of the paper says 10."""
        found, usual = counts(self.architecture, samples=10), counts(self.architecture)
        changed = {name for name, count in found.items() if count != usual[name]}
        assert changed == {
            "bottleneck", "mean_head", "covariance_head", "total", self.behind_the_latents
        }  # fmt: skip
        features = self.parts["mean_head"] // 250 - 1
        assert found["mean_head"] == found["covariance_head"] == 50 * features + 50

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"input_size": 72}, "multiple of 16 and at least 64.*, not 72"),
            ({"input_size": 48}, "multiple of 16 and at least 64.*, not 48"),
            ({"input_channels": 1}, "input_channels must be 3 or 4"),
            ({"classes": 1}, "classes ≥ 2"),
            ({"width": 0}, "width ≥ 1"),
            ({"samples": 5}, "samples > 5"),
        ],
    )
    def test_sizes_that_cannot_be_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.make(**options)


class TestBetaMVAE(PaperTests):
    architecture = BetaMVAE
    small = {"width": 4, "input_size": 64, "classes": 2}  # noqa: RUF012
    shapes = (
        {},
        {"input_channels": 4, "classes": 66, "covariance": "frame", "standardized": True},
        {"width": 1, "input_size": 80, "samples": 10},
        {"width": 2, "input_size": 256},
    )
    behind_the_latents = "decoder"
    parts = {  # noqa: RUF012
        "encoder": 11_176_512,
        "decoder": 8_576_448,
        "outc": 5_808,
        "mean_head": 128_250,
        "covariance_head": 128_250,
        "total": 20_015_268,
    }

    def test_the_mask_knows_of_the_patch_by_the_latents_alone(self):
        network = self.make().eval()
        latents = torch.randn(3, 5, 50, generator=torch.Generator().manual_seed(0))
        first, second = (
            network.decode(latents, network.encode(self.patches(network, seed=seed)))
            for seed in (1, 2)
        )
        assert torch.equal(first, second)

    def test_its_encoder_is_resnet18_with_leaky_relu_and_without_max_pool(self):
        from torchvision.models import resnet18

        torch.manual_seed(0)
        network, reference = BetaMVAE(DAVIS, input_size=64).eval(), resnet18()
        reference.fc = torch.nn.Identity()
        reference.load_state_dict(network.encoder.state_dict())
        reference.maxpool = torch.nn.Identity()
        reference.relu = torch.nn.LeakyReLU()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(reference, name):
                block.relu = torch.nn.LeakyReLU()
        x = self.patches(network, 2)
        torch.testing.assert_close(network.encode(x).features, reference.eval()(x))


class TestBetaMVUNet(PaperTests):
    architecture = BetaMVUNet
    small = {"width": 4, "input_size": 64, "classes": 2}  # noqa: RUF012
    shapes = (
        {},
        {"input_channels": 4, "classes": 66, "covariance": "frame", "standardized": True},
        {"width": 1, "input_size": 80, "samples": 10},
        {"width": 1, "input_size": 256, "alignment": "padded"},
    )
    behind_the_latents = "z_dim"
    parts = {  # noqa: RUF012
        "flat": 268_436_480,
        "mean_head": 256_250,
        "covariance_head": 256_250,
        "z_dim": 16_449_536,
        "outc": 4_290,
        "total": 316_440_374,
    }

    def test_its_encoder_and_decoder_have_the_parameters_of_the_paper(self):
        found = counts(BetaMVUNet)
        downs = [found[name] for name in ("inc", "down1", "down2", "down3", "down4")]
        assert sum(downs) == 18_847_168
        assert sum(found[f"up{i}"] for i in range(1, 5)) == 12_190_400

    @pytest.mark.parametrize(("alignment", "border"), [("padded", 8), ("resize", 0)])
    def test_where_the_latents_reach(self, alignment, border):
        """Padded, the map of the latents fills the middle 16×16 of the deepest skip's 32×32."""
        network = self.make(input_size=256, alignment=alignment).eval()
        seen = []
        network.up1.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            encoding = network.encode(self.patches(network, 1))
            network.decode(torch.zeros(1, 5, 50), encoding)
        (joined,) = seen
        skip, map_ = joined.chunk(2, dim=1)
        assert torch.equal(skip, encoding.skips[0])
        filled = (map_ != 0).any(dim=1)[0]
        expected = torch.zeros(32, 32, dtype=torch.bool)
        expected[border : 32 - border, border : 32 - border] = True
        assert torch.equal(filled, expected)

    def test_alignments_share_their_weights_and_are_saved(self, tmp_path):
        padded = self.trained_a_little(input_size=144, alignment="padded")
        padded.save_weights(tmp_path, half=False)
        x = self.patches(padded)
        first, saved = padded(x).logits, load_network(tmp_path)(x).logits
        assert torch.equal(first, saved)
        change_config(tmp_path, alignment="resize")
        resized = load_network(tmp_path)(x).logits
        assert (resized - first).abs().max() > 1e-3 * first.abs().max()

    def test_at_128_pixels_there_is_nothing_to_align(self):
        networks = [self.make(input_size=128, alignment=a).eval() for a in ("padded", "resize")]
        x = self.patches(networks[0])
        assert torch.equal(networks[0](x).logits, networks[1](x).logits)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"alignment": "padded"}, r"at least 128 \(alignment padded\), not 64"),
            ({"alignment": "crop"}, "alignment must be resize or padded, not 'crop'"),
        ],
    )
    def test_alignments_that_cannot_be_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.make(**options)
