"""What holds for every network of the family."""

import pytest
import torch
from networks import assert_same, disturb
from safetensors.torch import load_file

from bmvtrack import prior
from bmvtrack.models import (
    ARCHITECTURES,
    MultivariationalNetwork,
    load_network,
)

DAVIS = prior.named("davis16")


class NetworkTests:
    """What holds for every network. Subclasses name an architecture and options of small ones."""

    architecture: type[MultivariationalNetwork]
    small: dict = {}  # noqa: RUF012
    shapes: tuple[dict, ...] = ({},)
    """Options whose shapes are tested."""

    def make(self, seed=0, **options):
        torch.manual_seed(seed)
        return self.architecture(**{"prior": DAVIS, **self.small, **options})

    def patches(self, network, batch=3, seed=1):
        size = network.input_size
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, network.input_channels, size, size, generator=generator)

    def test_is_known_by_name(self):
        assert ARCHITECTURES[self.architecture.__name__] is self.architecture

    def test_shapes(self):
        for options in self.shapes:
            network = self.make(**options)
            for name in {"input_size", "input_channels", "classes"} & options.keys():
                assert getattr(network, name) == options[name]
            output = network(self.patches(network, 2))
            size, samples = network.input_size, network.bottleneck.samples
            assert output.logits.shape == (2, network.classes, size, size)
            assert output.features.shape == (2, network.feature_count)
            assert output.posterior.mean.shape == (2, 5)
            encoding = network.encode(self.patches(network, 2))
            assert network.decode(torch.zeros(2, 5, samples), encoding).shape == output.logits.shape

    def test_gradients_reach_every_parameter(self):
        network = self.make()
        output = network(self.patches(network))
        kl = network.bottleneck.kl_divergence(output.posterior).mean()
        (output.logits.square().mean() + kl).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert (parameter.grad != 0).any(), name

    def test_the_mask_depends_on_the_latents(self):
        network = self.make().eval()
        x = self.patches(network)
        encoding, shape = network.encode(x), (3, 5, network.bottleneck.samples)
        masks = [network.decode(torch.full(shape, z), encoding) for z in (-1.0, 1.0)]
        assert (masks[0] - masks[1]).abs().max() > 1e-5

    def test_evaluation_is_deterministic_and_training_is_not(self):
        network = self.make()
        x = self.patches(network)
        first, second = network(x), network(x)
        assert not torch.equal(first.logits, second.logits)
        assert torch.equal(first.posterior.mean, second.posterior.mean)
        network.eval()
        torch.testing.assert_close(network(x).logits, network(x).logits, rtol=0, atol=0)

    @pytest.mark.parametrize("factor", [2, 3])
    @pytest.mark.parametrize("training", [False, True])
    def test_widened_it_computes_the_same(self, factor, training):
        narrow, wide = self.make(), self.make(width=factor * self.small["width"])
        disturb(narrow)
        wide.load_state_dict(wide.widened_state(narrow.state_dict()))
        patches, latents = self.patches(narrow), torch.randn(3, 5, narrow.bottleneck.samples)
        masks, posteriors = [], []
        for network in (narrow, wide):
            encoding = network.train(training).encode(patches)
            posteriors.append(network.bottleneck(encoding.features))
            masks.append(network.decode(latents, encoding))
        largest = masks[0].abs().max().item()
        torch.testing.assert_close(masks[1], masks[0], rtol=0, atol=1e-4 * largest)
        torch.testing.assert_close(posteriors[1].mean, posteriors[0].mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            posteriors[1].covariance, posteriors[0].covariance, rtol=1e-3, atol=1e-5
        )

    def test_copies_of_a_channel_learn_different_things(self):
        """With equal gradients they would remain copies, and the network as good as narrow."""
        narrow, wide = self.make(), self.make(width=2 * self.small["width"])
        disturb(narrow)
        wide.load_state_dict(wide.widened_state(narrow.state_dict()))
        output = wide(self.patches(wide))
        output.logits.square().mean().backward()
        known = narrow.state_dict()
        for name, parameter in wide.named_parameters():
            layer = wide.get_submodule(name.rpartition(".")[0])
            transposed = isinstance(layer, torch.nn.ConvTranspose2d) and parameter.dim() > 1
            written = 1 if transposed else 0
            if parameter.shape[written] == known[name].shape[written] or "bottleneck" in name:
                continue  # not widened, or without a gradient here
            dim, cells = wide.cells.get(name, (written, 1))
            cells = cells if dim == written else 1
            first, second = parameter.grad.unflatten(written, (-1, 2, cells)).unbind(written + 1)
            assert not torch.equal(first, second), name

    def test_noise_is_asked_for_and_seeded(self):
        network = self.make().eval()
        x = self.patches(network)

        def masks(seed):
            generator = torch.Generator().manual_seed(seed)
            return network(x, stochastic=True, generator=generator).logits

        assert torch.equal(masks(1), masks(1))
        assert not torch.equal(masks(1), masks(2))
        assert not torch.equal(masks(1), network(x).logits)
        network.train()
        assert torch.equal(network(x, stochastic=False).logits, network(x, stochastic=False).logits)

    def test_items_of_a_batch_do_not_meet_in_evaluation(self):
        network = self.make(covariance="frame").eval()
        x = self.patches(network)
        together, alone = network(x), network(x[1:2])
        torch.testing.assert_close(together.logits[1:2], alone.logits, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            together.posterior.covariance[1:2], alone.posterior.covariance, rtol=1e-3, atol=1e-4
        )

    def test_channels_last_changes_nothing(self):
        network = self.make().eval()
        x = self.patches(network)
        expected = network(x).logits
        network.to(memory_format=torch.channels_last)
        result = network(x.contiguous(memory_format=torch.channels_last)).logits
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)

    def trained_a_little(self, **options):
        """A network whose running statistics are not those of a fresh one."""
        network = self.make(**options)
        network(self.patches(network, seed=5))
        return network.eval()

    @pytest.mark.parametrize("half", [True, False])
    def test_saved_weights_are_loaded(self, tmp_path, half):
        network = self.trained_a_little(samples=11, reparameterization="affine")
        network.save_weights(tmp_path / "weights", half=half)
        assert {p.name for p in (tmp_path / "weights").iterdir()} == {
            "config.json",
            "model.safetensors",
        }
        loaded = load_network(tmp_path / "weights")
        assert type(loaded) is self.architecture
        assert not loaded.training
        assert_same(loaded, network, 2e-2 if half else 0)
        assert loaded.bottleneck.samples == 11
        assert loaded.bottleneck.reparameterization == "affine"
        weights = load_file(tmp_path / "weights" / "model.safetensors")
        kinds = {w.dtype for w in weights.values() if w.is_floating_point()}
        assert kinds == {torch.float16 if half else torch.float32}

    def test_pretrained_networks_come_back_as_they_were(self, tmp_path):
        network = self.trained_a_little(prior=prior.named("paper"), samples=10)
        network.save_pretrained(tmp_path / "network")
        for loaded in (
            self.architecture.from_pretrained(tmp_path / "network"),
            MultivariationalNetwork.from_pretrained(str(tmp_path / "network")),
            load_network(tmp_path / "network"),
        ):
            assert type(loaded) is self.architecture
            assert not loaded.training
            assert_same(loaded, network, 0)
        loaded.save_pretrained(tmp_path / "again")
        for name in ("config.json", "model.safetensors"):
            again, first = ((tmp_path / f / name).read_bytes() for f in ("again", "network"))
            assert again == first

    def test_saved_weights_are_pretrained_ones(self, tmp_path):
        network = self.trained_a_little()
        network.save_weights(tmp_path / "weights", half=False)
        assert_same(self.architecture.from_pretrained(tmp_path / "weights"), network, 0)
