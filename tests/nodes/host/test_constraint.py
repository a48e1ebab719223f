"""Manifold Constraint in the host: on exact mixtures nearer to the posterior, in every mode and with every sampler."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from fewstep.nodes.host.progress import Report
from fewstep.samplers.constraint import Identity
from support.field import hosts, model, sample, start_noise
from support.inverse import judged, matrix_of, posterior
from support.mixture import picture_like

pytestmark = pytest.mark.usefixtures("host")
PICTURES = picture_like().sample(4, 5).float()


def mask(size: int = 16) -> torch.Tensor:
    """A MASK, white where something new is drawn: the middle."""
    made = torch.zeros(1, size, size)
    made[:, size // 4 : -size // 4, size // 4 : -size // 4] = 1
    return made


def held(operator="inpaint", patcher=None, measurement=None, report=None, unknown=None, **given):
    """The MODEL with the constraint, and what the node says."""
    from fewstep.nodes.host.constraint import Wanted, constrained

    wanted = Wanted(operator, given.pop("scale", 1.0), given.pop("project", True), **given, report=report)
    if operator == "inpaint" and unknown is None:
        unknown = mask()
    patcher = patcher or model("eps")
    return constrained(patcher, {"samples": PICTURES} if measurement is None else measurement, unknown, wanted)


def drawn(operator="inpaint", kind="eps", sampler="euler", cfg=1.0, **given):
    run = {name: given.pop(name) for name in ("items", "noise", "latent", "sigmas") if name in given}
    return sample(hosts(sampler), kind, cfg, patcher=held(operator, model(kind), **given)[0], **run)


def missed(picture: torch.Tensor, operator=None, unknown=None) -> float:
    known = 1 - (mask() if unknown is None else unknown)
    operator = operator or Identity()
    return float((operator.measure(picture - PICTURES[: len(picture)]) * known).abs().max())


# ---------------------------------------------------------------------------------------------------------
# The posterior

SMALL = picture_like(channels=4, size=8, components=6, classes=3)
DRAWS = 48


@lru_cache
def truth():
    true = SMALL.sample(1, 8)[0]
    return true, posterior(SMALL, matrix_of(lambda v: v * (1 - mask(8)), (4, 8, 8)), true)


def bias(kind: str, scale: float, host_mask: bool = False, **given) -> float:
    """Of draws of one problem with 20 Euler steps; host_mask: by the host's own inpainting."""
    import comfy.sample
    from support.field import schedule
    from support.host_mixture import label_conditioning, mixture_model

    true, exact = truth()
    patcher = mixture_model(SMALL, kind, 3.0 if kind == "flow" else 1.0)
    latent = true.float().expand(DRAWS, -1, -1, -1)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    if not host_mask:
        patcher, _ = held("inpaint", patcher, {"samples": latent[:1]}, unknown=mask(8), scale=scale, **given)
    start, unknown = (latent, mask(8)) if host_mask else (torch.zeros_like(latent), None)
    conditioning = [label_conditioning([-1] * DRAWS)] * 2
    ends = comfy.sample.sample_custom(
        *(patcher, noise, 1.0, hosts("euler"), schedule(patcher, 20), *conditioning, start, unknown), disable_pbar=True
    )
    return judged(ends, exact).bias


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_draws_are_nearer_to_the_exact_posterior_than_the_hosts(kind):
    """The squared bias of their mean: the host's inpainting, what is known put in, and the constraint in both ways."""
    host, projected = bias(kind, 0.0, host_mask=True), bias(kind, 0.0)
    assert projected > 0.6 * host > 0
    for gradient in ("differences", "model"):
        one, three = (bias(kind, 1.0, gradient=gradient, iterations=n) for n in (1, 3))
        assert one < 0.5 * host and three < 0.25 * host, gradient


# ---------------------------------------------------------------------------------------------------------
# What holds of every picture


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@pytest.mark.parametrize("gradient", ["differences", "model"])
@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m"])
def test_what_is_known_is_in_the_picture(kind, gradient, sampler):
    assert missed(drawn(kind=kind, gradient=gradient, sampler=sampler, cfg=4.0)) < 1e-4


@pytest.mark.parametrize("sampler", ["heun", "uni_pc", "dpmpp_sde"])
def test_samplers_of_several_calls_a_step_and_with_noise_of_their_own(sampler):
    assert missed(drawn(sampler=sampler)) < 0.01 < missed(sample(hosts(sampler)))


def test_without_project_it_only_pulls():
    free, pulled = missed(sample(hosts("euler"))), missed(drawn(project=False, scale=0.5))
    assert 1e-3 < pulled < 0.5 * free


@pytest.mark.parametrize("operator", ["downsample 2", "downsample 4", "downsample 8"])
def test_the_small_picture_and_the_large_one_of_it_are_the_same_measurement(operator):
    from fewstep.samplers.constraint import Pooled

    factor = int(operator.split()[1])
    large = drawn(operator)
    small = drawn(operator, measurement={"samples": Pooled(factor).measure(PICTURES)})
    torch.testing.assert_close(small, large, rtol=0, atol=1e-3)
    assert missed(large, Pooled(factor), torch.zeros(())) < 1e-4


def test_a_blurred_picture_comes_back_sharp():
    """Its blur is the measurement, but for frequencies that the blur has taken."""
    from fewstep.samplers.constraint import Blurred

    blurred = Blurred(0.8).measure(PICTURES)
    sharp = drawn("blur", measurement={"samples": blurred}, blur_radius=0.8)
    rough, before, true = (one.diff(dim=-1).square().mean() for one in (sharp, blurred, PICTURES))
    assert 1.8 * before < rough < 1.2 * true
    assert missed(sharp, Blurred(0.8), torch.zeros(())) < 0.2


def test_the_mask_of_the_measurement_serves_where_none_is_connected():
    from fewstep.nodes.host.constraint import Wanted, constrained

    measurement = {"samples": PICTURES, "noise_mask": mask()[:, None]}
    made, _ = constrained(model("eps"), measurement, None, Wanted("inpaint", 1.0, True))
    torch.testing.assert_close(sample(hosts("euler"), patcher=made), drawn())


def test_a_mask_of_the_pictures_size_is_fitted_to_the_latent():
    large = torch.nn.functional.interpolate(mask()[None], scale_factor=8)[0]
    around = torch.nn.functional.max_pool2d(mask(), 3, 1, 1)  # where the edge is blended
    assert missed(drawn(unknown=large), unknown=around) < 1e-4 < 0.1 < missed(sample(hosts("euler")), unknown=around)
    assert missed(drawn(unknown=large)) > 1e-3


@pytest.mark.parametrize("gradient", ["differences", "model"])
def test_a_picture_is_the_same_alone_and_in_a_batch(gradient):
    """The length of a step is that of each picture, not of the batch."""
    together = drawn(gradient=gradient)
    measurement = {"samples": PICTURES[2:3]}
    alone = drawn(gradient=gradient, measurement=measurement, items=slice(2, 3))
    torch.testing.assert_close(alone, together[2:3], rtol=0, atol=1e-4)


def test_one_measurement_is_that_of_the_whole_batch():
    one = drawn(measurement={"samples": PICTURES[:1]})
    every = drawn(measurement={"samples": PICTURES[:1].expand(4, -1, -1, -1)})
    assert torch.equal(one, every)


def test_scale_0_without_project_is_the_model_itself():
    assert torch.equal(drawn(scale=0.0, project=False), sample(hosts("euler")))


def test_two_constraints_on_one_model():
    """Also where the outer one takes its gradient through the inner one."""
    first, _ = held("inpaint", gradient="model")
    both, _ = held("downsample 4", first, gradient="model", scale=0.5)
    made = sample(hosts("euler"), patcher=both)
    assert made.isfinite().all() and not torch.equal(made, drawn("downsample 4", gradient="model", scale=0.5))
    assert (made - PICTURES).square().mean() < (drawn() - PICTURES).square().mean()


# ---------------------------------------------------------------------------------------------------------
# The gradient


def test_it_passes_through_weights_and_prompts_of_inference_mode():
    """As the host loads and runs them: ours and the host's own code under it take them for ordinary tensors."""
    from fewstep.nodes.models.demo import load_clip, load_model

    report = Report(None)
    with torch.inference_mode():
        clip, patcher = load_clip(), load_model("flow")
        prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", "")]
        picture, unknown = torch.zeros(1, 3, 16, 16), mask()
        made, said = held("inpaint", patcher, {"samples": picture}, report.say("before"), unknown, gradient="model")
        import comfy.sample

        noise = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(1))
        sigmas = torch.tensor([1.0, 0.6, 0.3, 0.0])
        end = comfy.sample.sample_custom(made, noise, 3.0, hosts("euler"), sigmas, *prompts, picture, disable_pbar=True)
        assert all(weight.is_inference() for weight in patcher.model.diffusion_model.parameters())
    assert float((end * (1 - unknown)).abs().max()) < 1e-5 < float(end.abs().max())
    assert "ComfyUI reckons with" in said and "for its gradient" in report.entry["text"]


class Refusing(torch.autograd.Function):
    """As a fused kernel that knows no gradient."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, *gradients):
        raise NotImplementedError("this kernel has no gradient")


def refusing(kind: str, error: BaseException | None = None):
    """A model without gradients: of a kernel, of answers cut off, or of an error."""
    from support.host_mixture import MixtureNetwork, mixture_model

    class Network(MixtureNetwork):
        def forward(self, x, *given, **host):
            if error and torch.is_grad_enabled():
                raise error
            answer = super().forward(x, *given, **host)
            if kind == "detached":
                return answer.detach()
            return Refusing.apply(answer) if kind == "kernel" else answer

    patcher = mixture_model(picture_like(), "eps")
    patcher.model.diffusion_model.__class__ = Network
    return patcher


@pytest.mark.parametrize("kind", ["kernel", "memory", "detached"])
def test_a_model_without_gradients_is_asked_twice_and_the_node_says_so(kind):
    import comfy.model_management

    error = comfy.model_management.OOM_EXCEPTION("no memory left") if kind == "memory" else None
    report = Report(None)
    made, said = held("inpaint", refusing(kind, error), report=report, gradient="auto")
    report.say(said)
    end = sample(hosts("euler"), patcher=made)
    torch.testing.assert_close(end, drawn(), rtol=0, atol=1e-5)
    assert "gave no gradient" in report.entry["text"] and "differences are taken" in report.entry["text"]


def test_where_the_gradient_was_asked_for_it_is_an_error_in_words():
    made, _ = held("inpaint", refusing("kernel"), gradient="model")
    with pytest.raises(ValueError, match="Set gradient of Manifold Constraint to auto"):
        sample(hosts("euler"), patcher=made)


def test_an_error_of_the_models_own_stays_what_it_is():
    from support.host_mixture import fail, mixture_model

    patcher = mixture_model(picture_like(), "eps")
    fail(patcher, 2, ValueError("its own words"))
    with pytest.raises(ValueError, match="its own words"):
        sample(hosts("euler"), patcher=held("inpaint", patcher, gradient="auto")[0])


def test_nothing_of_it_is_left_on_what_it_touched():
    """Neither a gradient on the answers that others listen to, nor the host's switch for training."""
    import comfy.model_management

    heard = []

    def hear(args):
        heard.append(args["denoised"])
        return args["denoised"]

    patcher = model("eps").clone()
    patcher.set_model_sampler_post_cfg_function(hear)
    before = getattr(comfy.model_management, "in_training", None)
    end = sample(hosts("euler"), patcher=held("inpaint", patcher, gradient="model")[0])
    assert heard and not end.requires_grad and torch.is_grad_enabled()
    assert getattr(comfy.model_management, "in_training", None) == before


def test_parts_of_an_answer_are_free_of_gradients():
    """What Tune and Compare listen to: they turn it into numbers."""
    from fewstep.nodes.host.guiders import guider_for
    from fewstep.nodes.measuring.running import inside_sampling
    from support.host_mixture import label_conditioning

    patcher, _ = held("inpaint", gradient="model")
    guider = guider_for(patcher, label_conditioning([0] * 4), label_conditioning([-1] * 4), 3.0)

    def look(host, x):
        host.in_parts(x, 5.0)  # the first call, whose gradient is looked at by another
        return host.in_parts(x, 5.0)

    parts = inside_sampling(guider, start_noise(), [5.0, 0.0], look, 0)
    assert parts.shape[1] == 2 and not parts.requires_grad


def test_the_same_constraint_is_known_again_and_another_is_not():
    from fewstep.nodes.host.identity import identify

    made, again = held("inpaint")[0], held("inpaint")[0]
    before = identify(made)["functions"]
    sample(hosts("euler"), patcher=made)
    assert identify(made)["functions"] == before == identify(again)["functions"]
    assert identify(held("inpaint", scale=0.5)[0])["functions"] != before


# ---------------------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize(
    "given, words",
    [
        ({"operator": "outpaint"}, "operator is 'outpaint'"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"gradient": "none"}, "gradient is 'none'"),
        ({"iterations": 0}, "iterations is 0"),
        ({"operator": "blur", "blur_radius": 99.0}, "blur_radius is 99.0"),
        ({"operator": "blur", "unknown": mask()}, "disconnect mask"),
        ({"operator": "grey"}, "does not know which colours"),
        ({"measurement": {"samples": torch.zeros(1, 3, 16, 16)}}, "batch x 4 channels"),
        ({"measurement": {}}, "no LATENT"),
        ({"measurement": {"samples": torch.full((1, 4, 16, 16), torch.nan)}}, "NaN"),
        ({"unknown": torch.zeros(0, 4, 4)}, "mask is no MASK"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(given, words):
    with pytest.raises(ValueError, match=words):
        held(**given)


def test_inpainting_without_any_mask_is_refused():
    from fewstep.nodes.host.constraint import Wanted, constrained

    with pytest.raises(ValueError, match="connect mask"):
        constrained(model("eps"), {"samples": PICTURES}, None, Wanted("inpaint", 1.0, True))


@pytest.mark.parametrize("operator, size", [("inpaint", 8), ("downsample 4", 8), ("downsample 4", 5)])
def test_a_measurement_of_another_size_is_refused_where_it_is_sampled(operator, size):
    with pytest.raises(ValueError, match=f"is {size} x {size}, and the latent that is sampled 16 x 16"):
        drawn(operator, measurement={"samples": torch.zeros(1, 4, size, size)})


def test_a_latent_that_has_no_such_means_is_refused():
    """Whatever the measurement's own size."""
    from fewstep.nodes.host.constraint import Known
    from fewstep.samplers.constraint import Pooled

    for size in (18, 4):
        with pytest.raises(ValueError, match="is 18 x 18; for downsample 4 .* multiples of 4"):
            Known(Pooled(4), torch.zeros(1, 4, size, size)).on(torch.zeros(1, 4, 18, 18))


def test_it_says_what_is_known_and_what_it_takes():
    assert held()[1].startswith("inpaint: 75% of the measurement is known and held.")
    assert "2 model calls for each of the sampler's" in held()[1]
    assert "4 model calls" in held(iterations=3)[1] and "pulled" in held(project=False)[1]
    assert held(scale=0.0)[1].count("\n") == 0
    assert "on a latent of 16 x 16" in held(gradient="auto")[1] and "sampling stops" in held(gradient="model")[1]


def test_grey_is_by_the_colours_of_the_hosts_preview():
    from comfy.latent_formats import SD15
    from fewstep.nodes.host.constraint import LUMA, grey_weights

    factors = SD15().latent_rgb_factors
    assert grey_weights(SD15()) == pytest.approx(
        [sum(a * b for a, b in zip(LUMA, row, strict=True)) for row in factors]
    )
