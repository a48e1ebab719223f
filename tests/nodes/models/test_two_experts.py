"""Two experts in one run, in this process: the same as the halves by hand, on exact mixtures and the bundled model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.mixture import picture_like
from torch import Tensor

pytestmark = pytest.mark.usefixtures("host")
SIGMAS = torch.tensor([1.0, 0.96, 0.91, 0.875, 0.8, 0.6, 0.3, 0.0])  # node 4, 0.8, is the first that is low
CUT = 4


# ---------------------------------------------------------------------------------------------------------
# What the tests run


def noise(shape: tuple[int, ...] = (2, 4, 16, 16), seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mixture(seed: int = 0, kind: str = "flow", shift: float = 1.0) -> Any:
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(seed=seed), kind, shift)


def prompts(count: int = 2) -> tuple[list, list]:
    from support.host_mixture import label_conditioning

    return label_conditioning(([0, 3, 5, 1] * count)[:count]), label_conditioning([-1] * count)


def demo(*variants: str) -> tuple:
    """Models of the bundled variants and two prompts."""
    from fewstep.nodes.models.demo import load_clip, load_model

    clip = load_clip()
    texts = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", ""))
    return *map(load_model, variants), *texts


def experts(high, low, texts: Sequence[list], cfg_high: float = 3.0, cfg_low: float = 2.0, boundary: float = 0.875):
    from fewstep.nodes.models.two_experts import two_experts_guider

    positive, negative = texts
    return two_experts_guider(high, low, positive, negative, cfg_high, cfg_low, boundary)


def alone(model, texts: Sequence[list], cfg: float):
    from fewstep.nodes.host.guiders import guider_for

    positive, negative = texts
    return guider_for(model, positive, negative, cfg)


def sampler(name: str = "euler", function=None):
    """One of the host, or `function` as one, or ours of that name."""
    import comfy.samplers
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.samplers.dpm_solver_v3 import Options

    if name == "DPM-Solver-v3":
        return dpm_solver_v3_sampler(Choice(Options(), None, "data", "never"))
    return comfy.samplers.KSAMPLER(function) if function else comfy.samplers.sampler_object(name)


def run(guider, sigmas: Tensor, x: Tensor, latent: Tensor | None = None, name: str = "euler", **given) -> Tensor:
    latent = torch.zeros_like(x) if latent is None else latent
    how = given.pop("sampler", None) or sampler(name)
    return guider.sample(x, latent, how, sigmas, disable_pbar=True, seed=7, **given)


def by_hand(high, low, sigmas: Tensor, x: Tensor, cut: int, latent: Tensor | None = None, **given) -> Tensor:
    """Two runs, cut at node `cut`; the latent is handed on as the sampler has it, so that nothing is rounded."""
    name, kept = given.pop("name", "euler"), []

    def first(model, x, sigmas, **host):
        kept.append(sampler(name).sampler_function(model, x, sigmas, **host))
        return kept[0]

    def second(model, x, sigmas, **host):
        return sampler(name).sampler_function(model, kept[0], sigmas, **host)

    run(high, sigmas[: cut + 1], x, latent, sampler=sampler(function=first), **given)
    return run(low, sigmas[cut:], x, latent, sampler=sampler(function=second), **given)


class Watched:
    """Which patchers the host loaded, in order, and which model every call of a network was of."""

    def __init__(self, monkeypatch, **models):
        import comfy.model_management
        import comfy.sampler_helpers

        self.loaded: list[str] = []
        self.called: list[str] = []
        self.together: list[set[str]] = []
        self.sigmas: list[float] = []
        self.names = {id(model.model): name for name, model in models.items()}
        load = comfy.model_management.load_models_gpu

        def loading(patchers, *given, **named):
            self.loaded += [self.names[id(patcher.model)] for patcher in patchers]
            return load(patchers, *given, **named)

        monkeypatch.setattr(comfy.model_management, "load_models_gpu", loading)
        for name, model in models.items():
            self.watch(monkeypatch, name, model.model)

    def watch(self, monkeypatch, name: str, model) -> None:
        import comfy.model_management

        applied = model.apply_model

        def apply_model(x, t, *given, **named):
            self.called.append(name)
            self.sigmas.append(float(t[0]))
            there = [loaded.model for loaded in comfy.model_management.current_loaded_models]
            self.together.append({self.names[id(one.model)] for one in there if id(one.model) in self.names})
            return applied(x, t, *given, **named)

        monkeypatch.setattr(model, "apply_model", apply_model)


def watched(monkeypatch, high, low) -> Watched:
    return Watched(monkeypatch, high=high, low=low)


@pytest.fixture(autouse=True)
def nothing_loaded():
    import comfy.model_management

    yield
    comfy.model_management.unload_all_models()


# ---------------------------------------------------------------------------------------------------------
# The same as the halves by hand


@pytest.mark.parametrize("kind", ["flow", "eps", "edm"])
def test_it_is_the_halves_by_hand_on_mixtures(kind):
    high, low, x, texts = mixture(0, kind), mixture(1, kind), noise(), prompts()
    guider = experts(high, low, texts)
    sigmas = SIGMAS if kind == "flow" else 0.05 + SIGMAS / 0.875 * guider.sigma_boundary * 0.98
    cut = next(i for i, sigma in enumerate(sigmas.tolist()) if not guider.is_high(sigma))
    whole = run(guider, sigmas, x)
    halves = by_hand(alone(high, texts, 3.0), alone(low, texts, 2.0), sigmas, x, cut)
    assert 1 < cut < 6 and torch.equal(whole, halves)
    assert (run(experts(high, low, texts, 3.0, 3.0), sigmas, x) - whole).abs().max() > 1e-3


def test_it_is_split_sigmas_with_two_guiders():
    """As a person wires it: the first half's latent goes into the second without noise, and rounds on the way."""
    high, low, x, texts = mixture(0), mixture(1), noise(), prompts()
    whole = run(experts(high, low, texts), SIGMAS, x)
    half = run(alone(high, texts, 3.0), SIGMAS[: CUT + 1], x)
    halves = run(alone(low, texts, 2.0), SIGMAS[CUT:], torch.zeros_like(x), half)
    torch.testing.assert_close(whole, halves, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pair", ["eps and v", "v and eps", "flow and its LoRA", "clones with another shift"])
def test_it_is_the_halves_by_hand_on_the_bundled_model(pair):
    high, low, sigmas, boundary, texts = bundled(pair)
    x, guider = noise((1, 3, 32, 32)), experts(high, low, texts, boundary=boundary)
    cut = next(i for i, sigma in enumerate(sigmas.tolist()) if not guider.is_high(sigma))
    whole = run(guider, sigmas, x)
    halves = by_hand(alone(high, texts, 3.0), alone(low, texts, 2.0), sigmas, x, cut)
    assert 1 < cut < 6 and torch.equal(whole, halves)
    assert torch.equal(run(guider, sigmas, x), whole)  # nothing is left over for the next run


def bundled(pair: str) -> tuple:
    """High, low, sigmas, a boundary and prompts, of models with weights."""
    if pair in ("eps and v", "v and eps"):
        high, low, *texts = demo(*pair.split(" and "))
        return high, low, torch.tensor([14.6, 7.0, 4.0, 2.0, 1.0, 0.3, 0.0]), 0.7, texts
    high, *texts = demo("flow")
    low = with_lora(high) if "LoRA" in pair else shifted(high, 5.0)
    return (high if "LoRA" in pair else shifted(high, 2.0)), low, SIGMAS, 0.875, texts


def with_lora(model):
    """A clone of the MODEL with a patch on its weights, which the host exchanges at the boundary."""
    patched = model.clone()
    weights = {name: value for name, value in model.model_state_dict().items() if value.ndim == 4}
    patched.add_patches({name: ("diff", (0.05 * torch.ones_like(value),)) for name, value in weights.items()})
    return patched


def shifted(model, shift: float):
    import comfy_extras.nodes_model_advanced

    return comfy_extras.nodes_model_advanced.ModelSamplingSD3().patch(model, shift)[0]


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_the_shift_does_not_move_the_boundary(shift, monkeypatch):
    import comfy.samplers

    high, low = mixture(0, shift=shift), mixture(1, shift=shift)
    seen = watched(monkeypatch, high, low)
    sigmas = comfy.samplers.calculate_sigmas(high.get_model_object("model_sampling"), "simple", 12)
    run(experts(high, low, prompts()), sigmas, noise())
    assert {name for name, at in zip(seen.called, seen.sigmas, strict=True) if at >= 0.875} <= {"high"}
    assert {name for name, at in zip(seen.called, seen.sigmas, strict=True) if at < 0.875} == {"low"}


@pytest.mark.parametrize("boundary", [0.875, 0.9, 0.3])
def test_a_call_on_the_boundary_is_the_high_experts_whatever_float32_makes_of_it(boundary, monkeypatch):
    high, low = mixture(0), mixture(1)
    seen = watched(monkeypatch, high, low)
    run(experts(high, low, prompts(), boundary=boundary), torch.tensor([1.0, boundary, boundary - 1e-4, 0.0]), noise())
    assert list(dict.fromkeys(zip(seen.called, seen.sigmas, strict=True)))[1][0] == "high"
    assert seen.called[-1] == "low"


def test_the_boundary_of_an_eps_model_is_a_share_of_its_timesteps():
    """874 of 999, as start_percent 0.125 of other nodes."""
    sampling = mixture(0, "eps").get_model_object("model_sampling")
    guider = experts(mixture(0, "eps"), mixture(1, "v"), prompts())
    assert float(sampling.timestep(torch.tensor(guider.sigma_boundary))) == pytest.approx(0.875 * 999, abs=1)
    assert guider.sigma_boundary == sampling.percent_to_sigma(0.125)


# ---------------------------------------------------------------------------------------------------------
# What is loaded, and when


@pytest.mark.parametrize(
    "name", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "res_multistep", "dpmpp_sde", "DPM-Solver-v3"]
)
def test_there_is_one_change_a_run(name, monkeypatch):
    high, low = mixture(0), mixture(1)
    seen = watched(monkeypatch, high, low)
    drawn = run(experts(high, low, prompts()), SIGMAS, noise(), name=name)
    assert seen.loaded == ["high", "low"] and drawn.isfinite().all()
    assert seen.called == sorted(seen.called)  # "high" before "low"


@pytest.mark.parametrize(
    "sigmas, only", [([0.8, 0.5, 0.0], "low"), ([1.0, 0.95, 0.875], "high"), ([1.0, 0.9, 0.0], "high")]
)
def test_a_run_on_one_side_loads_one_model(sigmas, only, monkeypatch):
    """Image to image below the boundary; a schedule that ends above it; one whose only low node is its end."""
    high, low, x, texts = mixture(0), mixture(1), noise(), prompts()
    latent = picture_like().sample(2, seed=1).float()
    expected = run(alone({"high": high, "low": low}[only], texts, 3.0), torch.tensor(sigmas), x, latent)
    seen = watched(monkeypatch, high, low)
    drawn = run(experts(high, low, texts, 3.0, 3.0), torch.tensor(sigmas), x, latent)
    assert seen.loaded == [only] and set(seen.called) == {only} and torch.equal(drawn, expected)


def test_noise_that_a_sampler_adds_beyond_a_schedule_of_one_loads_no_other(monkeypatch):
    """s_churn calls the model a little above the sigmas."""
    import comfy.samplers

    high, low = mixture(0), mixture(1)
    seen = watched(monkeypatch, high, low)
    churned = comfy.samplers.ksampler("euler", {"s_churn": 1.0})
    drawn = run(experts(high, low, prompts()), torch.tensor([0.87, 0.5, 0.0]), noise(), sampler=churned)
    assert seen.loaded == ["low"] and max(seen.sigmas) > 0.875 and drawn.isfinite().all()


def test_with_little_memory_only_one_is_there_at_a_time(monkeypatch):
    """--disable-smart-memory on a device that the host takes for no CPU: what is not in use is freed."""
    import comfy.model_management

    high, low = mixture(0), mixture(1)
    for model in (high, low):
        model.load_device = torch.device("cpu", 0)
    monkeypatch.setattr(comfy.model_management, "DISABLE_SMART_MEMORY", True)
    seen = watched(monkeypatch, high, low)
    run(experts(high, low, prompts()), SIGMAS, noise())
    assert seen.together == [{name} for name in seen.called] and set(seen.called) == {"high", "low"}


def test_with_much_memory_both_stay(monkeypatch):
    high, low = mixture(0), mixture(1)
    seen = watched(monkeypatch, high, low)
    run(experts(high, low, prompts()), SIGMAS, noise())
    assert seen.together[-1] == {"high", "low"}


def test_a_restart_across_the_boundary_changes_there_and_back(monkeypatch):
    from fewstep.nodes.host.sampler import restart_sampler

    high, low = mixture(0), mixture(1)
    seen = watched(monkeypatch, high, low)
    sigmas = torch.tensor([1.0, 0.9, 0.6, 0.4, 0.95, 0.7, 0.3, 0.0])
    drawn = run(experts(high, low, prompts()), sigmas, noise(), sampler=restart_sampler(sampler(), 1.0))
    assert seen.loaded == ["high", "low", "high", "low"] and drawn.isfinite().all()
    for name, sigma in zip(seen.called, seen.sigmas, strict=True):
        assert name == ("high" if sigma >= 0.875 else "low")


def test_noise_that_rises_begins_with_the_low_expert(monkeypatch):
    high, low = mixture(0), mixture(1)
    seen = watched(monkeypatch, high, low)
    latent = picture_like().sample(2, seed=1).float()
    run(experts(high, low, prompts()), SIGMAS[:-1].flip(0), torch.zeros_like(latent), latent)
    assert seen.loaded == ["low", "high"]


# ---------------------------------------------------------------------------------------------------------
# What hangs on a model, and what the host does around a run


def test_masks_and_batches():
    """The kept half is the latent's; an item is the same alone and in a batch."""
    high, low, x, texts = mixture(0), mixture(1), noise((3, 4, 16, 16)), prompts(3)
    latent, mask = picture_like().sample(3, seed=1).float(), torch.ones(3, 1, 16, 16)
    mask[:, :, :8] = 0
    whole = run(experts(high, low, texts), SIGMAS, x, latent, denoise_mask=mask)
    halves = by_hand(alone(high, texts, 3.0), alone(low, texts, 2.0), SIGMAS, x, CUT, latent, denoise_mask=mask)
    assert torch.equal(whole, halves)
    torch.testing.assert_close(whole[:, :, :8], latent[:, :, :8], atol=0.02, rtol=0)
    one = [[part[[1]], options] for ((part, options),) in texts]
    alone_drawn = run(experts(high, low, (one[:1], one[1:])), SIGMAS, x[[1]], latent[[1]], denoise_mask=mask[[1]])
    torch.testing.assert_close(alone_drawn[0], whole[1], atol=2e-4, rtol=0)


def test_previews_and_steps_are_told_through_the_change():
    told: list[tuple] = []

    def callback(step, denoised, x, total):
        told.append((step, total, bool(denoised.isfinite().all())))

    run(experts(mixture(0), mixture(1), prompts()), SIGMAS, noise(), callback=callback)
    assert told == [(step, 7, True) for step in range(7)]


@pytest.mark.parametrize("at, calls", [(1, 1), (5, 5)])
def test_a_cancel_ends_the_run_at_the_call_and_the_next_run_is_as_ever(at, calls, monkeypatch):
    from support.host_mixture import fail

    high, low, x, texts = mixture(0), mixture(1), noise(), prompts()
    guider = experts(high, low, texts, 1.0, 1.0)
    rest, expected = dict(vars(guider)), run(guider, SIGMAS, x)
    failing = high if at < CUT else low
    fail(failing, at if at < CUT else at - CUT, KeyboardInterrupt())
    seen = watched(monkeypatch, high, low)
    with pytest.raises(KeyboardInterrupt):
        run(guider, SIGMAS, x)
    assert len(seen.called) == calls + 1
    assert high.model.current_patcher is None and low.model.current_patcher is None
    failing.model.diffusion_model.failing = None
    assert vars(guider) == rest and torch.equal(run(guider, SIGMAS, x), expected)


def test_a_model_that_cannot_be_loaded_leaves_the_guider_as_it_was(monkeypatch):
    import comfy.model_management

    high, low, x, texts = mixture(0), mixture(1), noise(), prompts()
    guider = experts(high, low, texts)
    rest, load = dict(vars(guider)), comfy.model_management.load_models_gpu

    def full(patchers, *given, **named):
        if any(patcher is low for patcher in patchers):
            raise MemoryError("no room")
        return load(patchers, *given, **named)

    with monkeypatch.context() as within:
        within.setattr(comfy.model_management, "load_models_gpu", full)
        with pytest.raises(MemoryError, match="no room"):
            run(guider, SIGMAS, x)
    assert vars(guider) == rest and run(guider, SIGMAS, x).isfinite().all()


def test_a_copy_is_a_guider_of_its_own():
    from support.host_mixture import label_conditioning

    high, low, x = mixture(0), mixture(1), noise()
    guider = experts(high, low, prompts())
    first, twin = run(guider, SIGMAS, x), copy.copy(guider)
    assert torch.equal(run(twin, SIGMAS, x), first)
    twin.set_conds(label_conditioning([6, 6]), prompts()[1])
    twin.cfg_low = 6.0
    assert torch.equal(run(guider, SIGMAS, x), first) and not torch.equal(run(twin, SIGMAS, x), first)


def test_one_leaves_before_the_other_comes_in():
    """What hangs on a model is told of its start and its end, and the runs of the two do not overlap."""
    import comfy.patcher_extension

    seen: list[str] = []
    models = {"high": mixture(0).clone(), "low": mixture(1).clone()}
    for name, model in models.items():
        for when in ("ON_PRE_RUN", "ON_CLEANUP"):
            kind = getattr(comfy.patcher_extension.CallbacksMP, when)
            model.add_callback(kind, lambda *_, told=f"{name} {when}": seen.append(told))
    run(experts(models["high"], models["low"], prompts()), SIGMAS, noise())
    assert seen[:4] == ["high ON_PRE_RUN", "high ON_CLEANUP", "low ON_PRE_RUN", "low ON_CLEANUP"]


def test_a_controlnet_of_the_prompts_is_made_ready_for_each_expert_and_let_go():
    import comfy.controlnet

    seen: list[str] = []

    class Told(comfy.controlnet.ControlBase):
        def get_control(self, *given):
            seen.append("call")
            return None

        def pre_run(self, model, percent_to_timestep_function):
            seen.append({id(high.model): "for high", id(low.model): "for low"}[id(model)])

        def cleanup(self):
            seen.append("let go")

        def get_models(self):
            return []

    high, low, (positive, negative) = mixture(0), mixture(1), prompts()
    controlled = [[positive[0][0], {"control": Told()}]]
    run(experts(high, low, (controlled, negative)), SIGMAS, noise())
    assert seen[: CUT + 2] == ["for high", *["call"] * CUT, "let go"]
    assert seen[CUT + 2 :][: 7 - CUT + 2] == ["for low", *["call"] * (7 - CUT), "let go"]


def test_both_models_are_given_the_latent_in_their_own_scale(monkeypatch):
    """Models that look at the picture itself (inpainting, image to video) are told of it with the prompts."""
    from support.host_mixture import MixtureLatent

    seen: list[Tensor] = []
    models = [mixture(0), mixture(1)]
    for model in models:
        model.model.latent_format = MixtureLatent(middle=0.5)

        def extra_conds(told=model.model.extra_conds, **given):
            seen.append(given["latent_image"])
            return told(**given)

        monkeypatch.setattr(model.model, "extra_conds", extra_conds)
    latent = picture_like().sample(2, seed=1).float()
    run(experts(models[0], models[1], prompts()), SIGMAS, noise(), latent)
    assert len(seen) == 4 and all(torch.equal(one, latent - 0.5) for one in seen)
    seen.clear()
    run(experts(models[0], models[1], prompts()), SIGMAS, noise())
    assert len(seen) == 4 and not any(one.any() for one in seen)  # an empty latent stays 0


def wrapped(model, kind: str, seen: list[str], name: str):
    """A clone with a wrapper of the host's, which notes that it was called."""
    import comfy.patcher_extension

    clone = model.clone()

    def wrapper(executor, *given, **named):
        seen.append(name)
        return executor(*given, **named)

    clone.add_wrapper_with_key(getattr(comfy.patcher_extension.WrappersMP, kind), name, wrapper)
    return clone


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("OUTER_SAMPLE", ["high", "low"]),
        ("PREPARE_SAMPLING", ["high", "low"]),
        ("PREDICT_NOISE", ["high"] * CUT + ["low"] * (7 - CUT)),
        ("DIFFUSION_MODEL", ["high"] * CUT + ["low"] * (7 - CUT)),
    ],
)
def test_what_hangs_on_a_model_sees_its_calls_and_no_others(kind, expected):
    high, low, *texts = demo("flow", "flow")
    seen: list[str] = []
    high, low = (wrapped(model, kind, seen, name) for model, name in ((high, "high"), (low, "low")))
    run(experts(high, low, texts, 1.0, 1.0), SIGMAS, noise((1, 3, 32, 32)))
    assert seen == expected


def test_guidance_patches_act_on_their_own_expert():
    high, low, x, texts = mixture(0), mixture(1), noise(), prompts()
    high, low = high.clone(), low.clone()
    high.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.9)
    low.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 1.1)
    whole = run(experts(high, low, texts), SIGMAS, x)
    halves = by_hand(alone(high, texts, 3.0), alone(low, texts, 2.0), SIGMAS, x, CUT)
    assert torch.equal(whole, halves)


def test_what_a_sampler_puts_on_the_model_is_on_both_experts(monkeypatch):
    """CFG++ reads the unconditional prediction by a function of its own on the model, at every call."""
    high, low, x, texts = mixture(0), mixture(1), noise(), prompts()
    whole = run(experts(high, low, texts), SIGMAS, x, name="euler_cfg_pp")
    halves = by_hand(alone(high, texts, 3.0), alone(low, texts, 2.0), SIGMAS, x, CUT, name="euler_cfg_pp")
    assert torch.equal(whole, halves)


def test_hooks_of_the_prompts_work_on_both_experts():
    """A LoRA on a prompt: its weights are on each expert while that is at work, and on none afterwards."""
    import comfy.hooks

    high, low, positive, negative = demo("flow", "flow")
    key = next(name for name, value in high.model_state_dict().items() if value.ndim == 4)
    patch = {key: ("diff", (0.5 * torch.ones_like(high.model_state_dict()[key]),))}
    hooks = comfy.hooks.create_hook_lora(patch, 1.0, 1.0)
    hooks.hooks[0].need_weight_init = False  # these are patches, not the names of a LoRA file
    hooked = [[positive[0][0], positive[0][1] | {"hooks": hooks}]]
    x = noise((1, 3, 32, 32))
    whole = run(experts(high, low, (hooked, negative)), SIGMAS, x)
    halves = by_hand(alone(high, (hooked, negative), 3.0), alone(low, (hooked, negative), 2.0), SIGMAS, x, CUT)
    assert torch.equal(whole, halves)
    plain = run(experts(high, low, (positive, negative)), SIGMAS, x)
    assert (plain - whole).abs().max() > 1e-3
    mixed = by_hand(alone(high, (hooked, negative), 3.0), alone(low, (positive, negative), 2.0), SIGMAS, x, CUT)
    assert (mixed - whole).abs().max() > 1e-3


def test_the_same_model_twice_is_one_model_with_two_cfgs():
    model, *texts = demo("flow")
    x = noise((1, 3, 32, 32))
    whole = run(experts(model, model, texts), SIGMAS, x)
    halves = by_hand(alone(model, texts, 3.0), alone(model, texts, 2.0), SIGMAS, x, CUT)
    assert torch.equal(whole, halves)
    assert torch.equal(run(experts(model, model, texts, 3.0, 3.0), SIGMAS, x), run(alone(model, texts, 3.0), SIGMAS, x))


# ---------------------------------------------------------------------------------------------------------
# Bad input, and no sigmas


def test_no_sigmas_is_the_latent():
    latent = picture_like().sample(2, seed=1).float()
    assert run(experts(mixture(0), mixture(1), prompts()), torch.tensor([]), noise(), latent) is latent


@pytest.mark.parametrize("boundary", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_boundary_that_is_no_share_is_refused(boundary):
    with pytest.raises(ValueError, match="must be above 0 and below 1. Wan 2.2: 0.875"):
        experts(mixture(0), mixture(1), prompts(), boundary=boundary)


def test_experts_of_different_latents_are_refused():
    (model, *texts) = demo("flow")
    with pytest.raises(ValueError, match="model_high MixtureLatent of 4 channels, model_low EmojiLatent of 3 channels"):
        experts(mixture(0), model, texts)


def test_experts_of_different_noise_are_refused():
    with pytest.raises(ValueError, match="model_high is a flow model, model_low a model of eps or v prediction"):
        experts(mixture(0), mixture(1, "eps"), prompts())
    scaled = mixture(1)
    scaled.model.model_sampling.noise_scale = 8.0
    if hasattr(type(scaled.model.model_sampling), "noise_scale"):  # hosts from 0.31 on
        with pytest.raises(ValueError, match="model_low a flow model with noise scale 8"):
            experts(mixture(0), scaled, prompts())
