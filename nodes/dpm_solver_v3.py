"""DPM-Solver-v3 (arXiv 2310.13268): a solver whose parameterization is measured on the person's own model."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.choices import check_choice
from ..samplers.dpm_solver_v3 import Options
from ..samplers.dpm_solver_v3.measured import load_measured, load_published
from ..samplers.dpm_solver_v3.plan import CORRECTORS, LAST_STEPS
from ..samplers.dpm_solver_v3.pooling import POOLINGS
from . import inputs
from .host.dpm_solver_v3 import PREDICTIONS, USES, Choice, dpm_solver_v3_sampler
from .host.files import FULL, find, keep, key_of, path_for, saved_at, statistics_names
from .host.progress import Report
from .measuring.asked import latent_for, sampled_model
from .measuring.estimate import DERIVATIVES, IMAGES, LEVELS, Request, estimate, published_range
from .measuring.interrupted import Interrupted

StatisticsType = io.Custom("FEWSTEP_STATISTICS")
interrupted = Interrupted("statistics", most=4)


class FewStepDPMSolverV3(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDPMSolverV3",
            display_name="DPM-Solver-v3 (FewStep)",
            category="FewStep/dpm-solver-v3",
            description="A sampler for 5 to 12 model calls. With statistics measured on your model it is far nearer to "
            "the converged picture; without them it is a good multistep sampler.",
            inputs=[
                io.Int.Input(
                    "order",
                    default=2,
                    min=1,
                    max=3,
                    tooltip="How many answers of the model a step is made of, 1 to 3. 2 is best; 1 is taken where the "
                    "check of the statistics found it better.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "corrector",
                    options=list(CORRECTORS),
                    default="everywhere",
                    tooltip="Mends every step when the next model call is known, for nothing. everywhere is best "
                    "up to 12 calls; high_noise and low_noise: only above or below a noise-to-signal ratio of 1.6; off "
                    "is safest at a very high cfg.",
                ),
                io.Boolean.Input(
                    "pseudo_predictor",
                    default=False,
                    tooltip="At order 3: high derivatives from fewer points. The paper uses it at 5 calls.",
                    **inputs.ADVANCED,
                ),
                io.Boolean.Input(
                    "pseudo_corrector",
                    default=False,
                    tooltip="The corrector takes one point more. The paper uses it on latent models.",
                    **inputs.ADVANCED,
                ),
                io.Boolean.Input(
                    "lower_order_final",
                    default=False,
                    tooltip="Lower the order in the last steps, for steadiness.",
                    **inputs.ADVANCED,
                ),
                StatisticsType.Input(
                    "statistics",
                    optional=True,
                    tooltip="From Estimate Statistics or Load Statistics, for this model, cfg and shift.",
                ),
                io.Combo.Input(
                    "prediction",
                    options=list(PREDICTIONS),
                    default="data",
                    optional=True,
                    tooltip="Without statistics. data: as DPM++ 2M predicts. noise: as DPM-Solver does.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "last_step",
                    options=list(LAST_STEPS),
                    default="full_order",
                    optional=True,
                    tooltip="For schedules that end at 0. full_order: the last hop is solved like the others, at no "
                    "further call. denoised: it ends with the model's last prediction, as other samplers do.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "use",
                    options=list(USES),
                    default="when_checked",
                    optional=True,
                    tooltip="when_checked: statistics are used at those numbers of calls where they won their own "
                    "check, and over no longer steps than it had. always, never: for comparing.",
                ),
            ],
            outputs=[io.Sampler.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
            **inputs.searched_as("dpm3", "dpm v3", "dpm-solver", "flow dpm", "dpm++ 3", "ems", "few steps"),
        )

    @classmethod
    def execute(
        cls,
        order,
        corrector,
        pseudo_predictor,
        pseudo_corrector,
        lower_order_final,
        statistics=None,
        prediction="data",
        last_step="full_order",
        use="when_checked",
    ) -> io.NodeOutput:
        check_choice("prediction", prediction, PREDICTIONS)
        check_choice("use", use, USES)
        options = Options(order, corrector, pseudo_predictor, pseudo_corrector, lower_order_final, last_step=last_step)
        report = Report(cls.hidden.unique_id)
        sampler = dpm_solver_v3_sampler(Choice(options, statistics, prediction, use, report))
        return io.NodeOutput(sampler, ui=report.ui)


class FewStepEstimateStatistics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepEstimateStatistics",
            display_name="Estimate Statistics (FewStep)",
            category="FewStep/dpm-solver-v3",
            description="Measures DPM-Solver-v3's statistics on your model, with your prompt and cfg, checks them on "
            "seeds they do not know, and saves them in models/fewstep. Some hundred model calls, once a model.",
            inputs=[
                *inputs.measured_on(
                    "A typical prompt.",
                    "The negative prompt that goes with it.",
                    inputs.cfg(
                        5.0, "The cfg you will sample with, 0 to 100. Statistics of another cfg are worse than none."
                    ),
                    "an empty latent of the size you will sample: the model draws its own references, as many at a "
                    "time as its batch size. A latent with pictures: these are the references, not checked.",
                ),
                inputs.fixed_seed("Of the references and probes. Another seed is another measurement."),
                io.Int.Input(
                    "images",
                    default=6,
                    min=IMAGES.least,
                    max=IMAGES.most,
                    tooltip="References, 2 to 4096. 6 are enough; with more later on, only the new ones are measured.",
                ),
                io.Int.Input(
                    "levels",
                    default=20,
                    min=LEVELS.least,
                    max=LEVELS.most,
                    tooltip="Noise levels, 6 to 400. 20 are enough.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "pooling",
                    options=list(POOLINGS),
                    default="global",
                    tooltip="What shares one number. global: all of a latent, for any size, and the best in our tests. "
                    "channel: each channel. spectral: bands of spatial frequency. pixel: the paper's, needs hundreds "
                    "of images.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "derivative",
                    options=list(DERIVATIVES),
                    default="auto",
                    tooltip="forward_mode: exact, twice the time. differences: any model. auto: forward_mode where "
                    "the model's code allows it.",
                    **inputs.ADVANCED,
                ),
                inputs.save_as("model type, cfg"),
                inputs.guider(),
                inputs.prompts(),
            ],
            outputs=[StatisticsType.Output(display_name="statistics")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # to be queued alone, before anything is sampled
            **inputs.REPORTING,
            **inputs.searched_as("ems", "empirical model statistics", "dpm3", "dpm v3", "calibrate"),
        )

    @classmethod
    def execute(
        cls,
        cfg,
        seed,
        images,
        levels,
        pooling,
        derivative,
        model=None,
        positive=None,
        negative=None,
        latent_image=None,
        save_as="",
        guider=None,
        prompts=(),
    ) -> io.NodeOutput:
        latent = latent_for(sampled_model(model, guider), latent_image)
        beside = {"guider": guider, "prompts": prompts}
        request = Request(model, positive, negative, cfg, latent, seed, images, levels, pooling, derivative, **beside)
        facts = request.facts
        stem = f"{facts['prediction'].lower()}-cfg{request.cfg:g}-{key_of(facts)}"
        path, known = path_for(save_as, stem, facts, load_measured)
        place = saved_at(path)
        if known is None or known.facts["batches"] < request.batches:
            derived = f"{key_of(facts, FULL)}-{derivative}"  # one derivative is not finished by another
            with interrupted.resumed(derived) as kept:
                fresh, known = known is None, estimate(request, known, kept, cls.hidden.unique_id)
                place = keep(known, path, fresh)
        report = Report(cls.hidden.unique_id).say(f"{place}\n{known.describe()}")
        return io.NodeOutput(known, ui=report.ui)


class FewStepLoadStatistics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepLoadStatistics",
            display_name="Load Statistics (FewStep)",
            category="FewStep/dpm-solver-v3",
            description="Statistics that Estimate Statistics saved, or a folder with the paper's authors' l.npz and "
            "sb.npz, from models/fewstep.",
            inputs=[
                io.Combo.Input("name", options=statistics_names(), tooltip="A file or folder in models/fewstep."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Only for the authors' files, which do not hold their noise levels: the model they are of.",
                ),
            ],
            outputs=[StatisticsType.Output(display_name="statistics")],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
            **inputs.searched_as("ems", "empirical model statistics", "dpm3", "dpm v3"),
        )

    @classmethod
    def validate_inputs(cls, name: str = "") -> bool | str:
        return inputs.found(find, name)

    @classmethod
    def fingerprint_inputs(cls, name: str, **linked) -> float:
        return inputs.time_of(find(name))

    @classmethod
    def execute(cls, name, model=None) -> io.NodeOutput:
        path = find(name)
        if path.is_dir():
            if model is None:
                raise ValueError(
                    f"{name} holds the authors' files, which do not say their noise levels. Connect the model."
                )
            measured = load_published(path, *published_range(model))
        else:
            measured = load_measured(path)
        report = Report(cls.hidden.unique_id).say(measured.describe())
        return io.NodeOutput(measured, ui=report.ui)
