"""GM-DiT and the spectrum network: what they give, which checkpoints they take, and what they say of others."""

import json
from dataclasses import replace

import pytest
import torch
from fewstep.samplers.gmflow import network
from fewstep.samplers.gmflow.checkpoint import GMDiTConfig, check_state_dict
from fewstep.samplers.gmflow.mixture import Gaussian, Mixture
from fewstep.samplers.gmflow.network import GMDiT, SpectrumNetwork, attend
from fewstep.samplers.gmflow.spectral import fitted, statistics
from support.gmflow import assert_same, golden, normal, tiny_gmdit, tiny_spectrum, weights
from support.goldens import FOLDER
from torch import nn

IO = golden("tiny_gmdit_io")
LAST_PLACE = 2.0**-23  # of float32
EVERY = slice(None)


def inputs(dtype=torch.float32):
    return IO.tensor("x").to(dtype), IO.tensor("t").to(dtype) / 1000, IO.tensor("labels")


def published(name: str) -> dict[str, tuple[int, ...]]:
    keys = json.loads((FOLDER / "gmflow" / f"{name}_keys.json").read_text(encoding="utf-8"))
    return {key: tuple(shape) for key, shape in keys.items()}


def on_meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, dtype=torch.bfloat16, device="meta") for key, shape in shapes.items()}


def small(**changes) -> GMDiT:
    config = weights("tiny_gmdit")[1] | changes
    torch.manual_seed(0)
    return GMDiT(GMDiTConfig.of_json(config)).requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------
# Against the authors' code


def condition(rows: slice = EVERY) -> Mixture:
    """By how much the answer may differ from the recorded one, for want of the recorder's time features.

    Its rates came from a float32 exp, good to a unit in the last place, which is another one on another processor. Each
    of the 128 rates is moved by that, in double precision, and the sizes of all changes are added.
    """
    exact, (x, t, labels) = tiny_gmdit().double(), inputs(torch.float64)
    rates, far = network.time_rates(x.device), 2.0**-16
    found = [torch.zeros(()).double()] * 3
    with pytest.MonkeyPatch.context() as patch:
        answer = parts(exact.mixture(x[:, :, rows], t, labels))
        for k in range(len(rates)):
            moved = rates.double()
            moved[k] *= 1 + far
            patch.setattr(network, "time_rates", lambda device, moved=moved: moved)
            there = parts(exact.mixture(x[:, :, rows], t, labels))
            found = [s + (b - a).abs() / far * LAST_PLACE for s, a, b in zip(found, answer, there, strict=True)]
    return Mixture(*found)


def parts(mixture: Mixture) -> list[torch.Tensor]:
    return [mixture.means.double(), mixture.logweights.double(), mixture.logstds.double()]


def assert_recorded(found: Mixture, recorded: Mixture, bound: Mixture) -> None:
    """Within 1e-5, and what the time features are worth."""
    for ours, theirs, allowed in zip(parts(found), parts(recorded), parts(bound), strict=True):
        assert ((ours - theirs).abs() <= 1e-5 + allowed).all()


def test_forward():
    bound = condition()
    assert bound.means.max() < 5e-4
    assert_recorded(tiny_gmdit().mixture(*inputs()), IO.mixture("out"), bound)
    assert_recorded(tiny_gmdit().double().mixture(*inputs(torch.float64)), IO.mixture("out64"), bound)


def test_forward_of_a_rectangle():
    x, t, labels = inputs()
    narrow = slice(0, 4)
    assert_recorded(tiny_gmdit().mixture(x[:, :, narrow], t, labels), IO.mixture("out_4x8"), condition(narrow))


@pytest.mark.parametrize("name, size", [("spectrum", (8, 8)), ("spectrum_6x6", (6, 6)), ("spectrum_5x6", (5, 6))])
def test_spectrum(name, size):
    """A smaller latent is a corner of the recorded one."""
    whole, (height, width) = IO.gaussian("x0gauss"), size
    corner = Gaussian(whole.mean[..., :height, :width], whole.var[..., :height, :width])
    base = tiny_spectrum()(statistics(corner))
    torch.testing.assert_close(fitted(base, *size), IO.tensor(name), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------
# Published checkpoints


def test_the_published_checkpoint_fits():
    state = on_meta(published("gmdit_k8"))
    config = GMDiTConfig.of_state_dict(state)
    assert config == GMDiTConfig()
    network = GMDiT(config, dtype=torch.bfloat16, device="meta")
    check_state_dict(network, state)
    assert sum(p.numel() for p in network.parameters()) == 676_164_001
    assert len(network.state_dict()) == 407


def test_the_published_spectrum_network_fits():
    state = on_meta(published("spectrum_k8"))
    network = SpectrumNetwork.of_state_dict(state, device="meta")
    check_state_dict(network, state)
    assert network.base_size == (4, 32, 32)


def test_a_checkpoint_with_other_keys_is_told_by_name():
    state = on_meta(published("gmdit_k8"))
    network = GMDiT(device="meta")
    del state["proj_out_2.bias"]
    state["pos_embed.extra"] = torch.zeros(1)
    state["proj_out_1.bias"] = torch.zeros(7)
    with pytest.raises(ValueError) as error:
        check_state_dict(network, state)
    for told in ("1 missing: proj_out_2.bias", "1 unknown: pos_embed.extra", "proj_out_1.bias (7 instead of 2304)"):
        assert told in str(error.value)


def test_many_missing_keys_are_counted():
    with pytest.raises(ValueError, match="407 missing: .* and 401 more"):
        check_state_dict(GMDiT(device="meta"), {})


@pytest.mark.parametrize("lost", ["pos_embed.proj.weight", "proj_out_2.weight", "gm_out.logstd_layers.1.weight"])
def test_what_is_no_gmflow_model_is_told(lost):
    state = on_meta(published("gmdit_k8"))
    del state[lost]
    with pytest.raises(ValueError, match=f"no GMFlow model: {lost}"):
        GMDiTConfig.of_state_dict(state)


def test_a_width_without_a_known_head_asks_for_the_config():
    with pytest.raises(ValueError, match="config.json"):
        GMDiTConfig.of_state_dict(weights("tiny_gmdit")[0])


def test_a_config_that_is_no_number_is_told():
    with pytest.raises(ValueError, match="num_layers is '28'; patch_size is 0"):
        GMDiTConfig.of_json({"num_layers": "28", "patch_size": 0, "_class_name": "GMDiTTransformer2DModel"})


def test_a_spectrum_network_of_another_latent_is_told():
    with pytest.raises(ValueError, match="4096 outputs"):
        SpectrumNetwork.of_state_dict(on_meta(published("spectrum_k8")), channels=3)


# ---------------------------------------------------------------------------------------------------------
# Any latent


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (3, 16)])
@pytest.mark.parametrize("components", [1, 3])
def test_any_size_and_one_component(size, components):
    network = small(num_gaussians=components)
    mixture = network.mixture(normal((2, 4, *size), 0, torch.float32), torch.tensor([1.0, 0.3]), torch.tensor([1, 10]))
    assert mixture.means.shape == (2, components, 4, *size)
    torch.testing.assert_close(mixture.weights.sum(1), torch.ones(2, 1, *size))
    assert mixture.means.isfinite().all() and mixture.means.std() > 0


def test_an_item_does_not_depend_on_its_batch():
    network, (x, t, labels) = tiny_gmdit(), inputs()
    alone = network.velocity(x[1:2], t[1:2], labels[1:2])
    torch.testing.assert_close(network.velocity(x, t, labels)[1:2], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_every_label_and_none_has_a_row(classes):
    network = small(num_embeds_ada_norm=classes)
    labels = torch.arange(classes + 1)
    x, t = normal((1, 4, 8, 8), 0, torch.float32), torch.tensor([0.5])
    answers = network.velocity(x.expand(len(labels), -1, -1, -1), t.expand(len(labels)), labels)
    assert answers.flatten(1).unique(dim=0).shape[0] == classes + 1
    with pytest.raises(ValueError, match="out of range"):
        network.velocity(x, t, torch.tensor([classes + 1]))


def test_a_config_of_a_larger_network_than_its_checkpoint_is_told():
    """Before anything of that size is made; no number of a real one is above the longest side of its tensors."""
    made = small()
    config, state = made.config, made.state_dict()
    longest = max(n for value in state.values() for n in value.shape)
    one_more = {name: getattr(config, name) + 1 for name in ("num_layers", "gm_num_logstd_layers")}
    sides = ("num_gaussians", "logstd_inner_dim", "in_channels", "patch_size", "num_embeds_ada_norm")
    as_large = [{}, {"num_attention_heads": 1, "attention_head_dim": longest}, {"sample_size": 4096}]
    too_large = [{name: n} for name, n in one_more.items()]
    too_large += [{"num_attention_heads": longest + 1, "attention_head_dim": 1}, {"sample_size": 4097}]
    for changes in as_large + [{name: longest} for name in sides]:
        replace(config, **changes).check_size(state)
    for changes in too_large + [{name: longest + 1} for name in sides]:
        with pytest.raises(ValueError, match="is of a larger one"):
            replace(config, **changes).check_size(state)


@pytest.mark.parametrize("label", [-1, 11])
def test_a_label_out_of_range_is_told(label):
    with pytest.raises(ValueError, match="out of range: this model knows 0 to 9; 10 stands for no label"):
        x, t, _ = inputs()
        tiny_gmdit().mixture(x, t, torch.tensor([0, 1, label]))


def test_log_weights_leave_half_precision_before_they_overflow():
    """Logits of +-5e4 are float16 numbers; their difference is not."""
    network = small().half()
    network.proj_out_2.bias[-3:] = torch.tensor([5e4, -5e4, 0]).half()
    mixture = network.mixture(normal((1, 4, 8, 8), 0, torch.float16), torch.tensor([0.5]), torch.tensor([0]))
    assert mixture.logweights.dtype == torch.float32 and mixture.logweights.isfinite().all()
    assert mixture.logweights.min() < -65504


# ---------------------------------------------------------------------------------------------------------
# The host's own layers and attention


class Counted:
    """Stands for the host's operations: the same layers, counted."""

    made: list[str] = []

    def __getattr__(self, name):
        self.made.append(name)
        return getattr(nn, name)


def test_every_layer_with_weights_comes_from_the_operations_given():
    Counted.made = []
    config = GMDiTConfig.of_json(weights("tiny_gmdit")[1])
    network = GMDiT(config, operations=Counted())
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding))]
    assert len(Counted.made) == len(layers)
    held = {id(p) for layer in layers for p in layer.parameters()}
    assert held == {id(p) for p in network.parameters()}


def test_attention_can_be_the_hosts():
    calls = []

    def spy(q, k, v, heads):
        calls.append((tuple(q.shape), heads))
        return attend(q, k, v, heads)

    state, config = weights("tiny_gmdit")
    network = GMDiT(GMDiTConfig.of_json(config), attention=spy)
    network.load_state_dict(state)
    expected = tiny_gmdit().mixture(*inputs())
    assert_same(network.requires_grad_(False).mixture(*inputs()), expected, 1e-5)
    assert calls == [((3, 16, 16), 2)] * 2
