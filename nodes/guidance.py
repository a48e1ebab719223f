"""Probabilistic guidance for every model, after GMFlow (arXiv 2504.05304 section 3.2): guidance that does not burn."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.guidance import MODES, ProbabilisticGuidance
from ..samplers.rivals import RIVALS, Rival
from ..samplers.spread import load_spread
from . import inputs
from .host.files import FULL, keep, key_of, path_for, saved_at
from .host.guidance import guided_model
from .host.progress import Report
from .measuring.asked import latent_for, sampled_model
from .measuring.estimate import IMAGES, LEVELS
from .measuring.interrupted import Interrupted
from .measuring.spread import BANDS, ESTIMATORS, Request, measure_spread

SpreadType = io.Custom("FEWSTEP_SPREAD")
interrupted = Interrupted("spread", most=4)


class FewStepMeasureSpread(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepMeasureSpread",
            display_name="Measure Spread (FewStep)",
            category="FewStep/guidance",
            description="Measures how far a picture can still be from the model's prediction, at every level of noise: "
            "what Probabilistic Guidance bounds guidance by. Some 250 model calls, once a model; kept in "
            "models/fewstep.",
            inputs=[
                *inputs.measured_on(
                    "A typical prompt: the spread is that under it.",
                    "The negative prompt, with which references are drawn.",
                    inputs.cfg(
                        4.0, "With which references are drawn, 0 to 100. The spread is measured without guidance."
                    ),
                    "an empty latent of the size you will sample: the model draws references, as many at a time as "
                    "its batch size. A latent with pictures: these are the references.",
                ),
                inputs.fixed_seed("Of the references and their noise. Another seed is another measurement."),
                io.Int.Input(
                    "images",
                    default=8,
                    min=IMAGES.least,
                    max=IMAGES.most,
                    tooltip="References, 2 to 4096. 8 are enough.",
                ),
                io.Int.Input(
                    "levels",
                    default=12,
                    min=LEVELS.least,
                    max=LEVELS.most,
                    tooltip="Noise levels, 6 to 400. 12 are enough.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "estimator",
                    options=list(ESTIMATORS),
                    default="residual",
                    optional=True,
                    tooltip="residual: how far the model's prediction is from the reference. derivative: from the "
                    "model's slope (Tweedie), which leaves the model's own error out; twice the calls.",
                    **inputs.ADVANCED,
                ),
                inputs.save_as("model type"),
                inputs.guider(),
                inputs.prompts(),
                io.Combo.Input(
                    "bands",
                    options=list(BANDS),
                    default="1",
                    optional=True,
                    tooltip="Of frequency: with 4 or 8 the spread is measured, and guidance bounded, by bands from "
                    "coarse to fine. No more calls. 1 takes all together.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[SpreadType.Output(display_name="spread")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # to be queued alone, before anything is sampled
            **inputs.REPORTING,
            **inputs.searched_as("burn", "overcooked", "tweedie", "posterior variance"),
        )

    @classmethod
    def execute(
        cls,
        cfg,
        seed,
        images,
        levels,
        model=None,
        positive=None,
        negative=None,
        latent_image=None,
        estimator="residual",
        save_as="",
        guider=None,
        prompts=(),
        bands="1",
    ) -> io.NodeOutput:
        latent = latent_for(sampled_model(model, guider), latent_image)
        beside = {"guider": guider, "prompts": prompts}
        measured = (images, levels, estimator, bands)
        request = Request(model, positive, negative, cfg, latent, seed, *measured, **beside)
        facts = request.facts
        stem = f"spread-{facts['prediction'].lower()}-{key_of(facts)}"
        path, spread = path_for(save_as, stem, facts, load_spread)
        place = saved_at(path)
        if spread is None:
            with interrupted.resumed(key_of(facts, FULL)) as kept:
                spread = measure_spread(request, cls.hidden.unique_id, kept)
                place = keep(spread, path, fresh=True)
        report = Report(cls.hidden.unique_id).say(f"{spread.describe()}\n{place}")
        return io.NodeOutput(spread, ui=report.ui)


class FewStepProbabilisticGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepProbabilisticGuidance",
            display_name="Probabilistic Guidance (FewStep)",
            category="FewStep/guidance",
            description="Guidance that does not burn: what cfg adds to the prediction is bounded by how far the "
            "picture can still be from it. For any model with a negative prompt and a cfg above 1; no further calls.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Other guidance nodes may come before or after: what they and cfg add is bounded together. "
                    "Nodes after it that only change the result (PAG, SAG, TSR) keep their full effect.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.3,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much of the spread guidance may use, 0 to 10 times it; below 1 in the mode "
                    "fixed. 0.3 is a start, 0 is no guidance but prompt_cfg. In the modes magnitude and frequency "
                    "something else, see the help.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[*MODES, *RIVALS],
                    default="cap",
                    tooltip="cap: your cfg, limited. soft: the same without a corner. fixed: the paper's, always as "
                    "strong as the limit, whatever the cfg above 1. magnitude, frequency, zero_star: other guidance, "
                    "to compare with (RAAG, frequency-decoupled, CFG-Zero*); they take no spread.",
                ),
                inputs.orthogonal(
                    "Share of the part along the prediction that is taken out of guidance, 0 to 1. That part only "
                    "makes the picture stronger."
                ),
                *inputs.percents(
                    "From here on, 0 to 1 of the model's time: 0 is pure noise. Before it your cfg works as ever.",
                    "Up to here, 0 to 1 of the model's time: 1 is the picture. After it your cfg works as ever.",
                ),
                SpreadType.Input(
                    "spread",
                    optional=True,
                    tooltip="From Measure Spread. Without it that of picture-like latents is taken.",
                ),
                io.Float.Input(
                    "prompt_cfg",
                    default=8.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="Up to this cfg, yours is left unbounded in the first 15 % of the model's time, where it "
                    "is decided what the picture shows; 1 to 100. 8 holds the prompt, 1 bounds it from the start.",
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
            **inputs.searched_as(
                "apg",
                "burn",
                "burnt",
                "overcooked",
                "oversaturation",
                "saturation",
                "high cfg",
                "cfg rescale",
                "dynamic thresholding",
                "gmflow",
            ),
        )

    @classmethod
    def execute(
        cls, model, strength, mode, orthogonal, start_percent, end_percent, spread=None, prompt_cfg=1.0
    ) -> io.NodeOutput:
        guidance: ProbabilisticGuidance | Rival
        if mode in RIVALS:
            guidance = Rival(mode, strength)
        else:
            guidance = ProbabilisticGuidance(strength, mode, orthogonal, prompt_cfg)
        report = Report(cls.hidden.unique_id)
        guided, remarks = guided_model(model, guidance, start_percent, end_percent, spread, report)
        return io.NodeOutput(guided, ui=report.say("\n".join(remarks)).ui)
