"""The pack, as the host asks for it: the list of its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .boost import FewStepBoost
from .bridge import FewStepBridge
from .compare import FewStepCompare, FewStepEntry
from .dataset import FewStepDatasetModel
from .deis import FewStepDEIS
from .demo import FewStepDemoModel
from .dpm_solver_v3 import FewStepDPMSolverV3, FewStepEstimateStatistics, FewStepLoadStatistics
from .dual_fast import FewStepDualFast
from .experts import FewStepTwoExperts
from .flow_maps import FewStepFlowMapSampler, FewStepTrigFlow, FewStepTrigFlowSchedule
from .gmflow import (
    FewStepGMFlowGuider,
    FewStepGMFlowLabel,
    FewStepGMFlowSampler,
    FewStepLoadGMFlow,
    FewStepPiFlowSampler,
)
from .guidance import FewStepMeasureSpread, FewStepProbabilisticGuidance
from .heavy_tail import FewStepHeavyTailNoise
from .host.replacements import register_replacements
from .inspection import FewStepInspectSchedule
from .optimal_steps import FewStepLoadSchedule, FewStepSearchSchedule
from .prompts import FewStepPromptList
from .restart import (
    FewStepRestartInterval,
    FewStepRestartKSampler,
    FewStepRestartKSamplerAdvanced,
    FewStepRestartSampler,
    FewStepRestartSchedule,
)
from .tune import FewStepLoadTuning, FewStepTune, FewStepTunedSampler


class FewStepExtension(ComfyExtension):
    """All nodes, in the order of the contract."""

    async def on_load(self) -> None:
        await register_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            FewStepDemoModel,
            FewStepRestartInterval,
            FewStepRestartSchedule,
            FewStepRestartSampler,
            FewStepDPMSolverV3,
            FewStepEstimateStatistics,
            FewStepLoadStatistics,
            FewStepSearchSchedule,
            FewStepLoadSchedule,
            FewStepMeasureSpread,
            FewStepProbabilisticGuidance,
            FewStepLoadGMFlow,
            FewStepGMFlowLabel,
            FewStepGMFlowGuider,
            FewStepGMFlowSampler,
            FewStepPiFlowSampler,
            FewStepBoost,
            FewStepTwoExperts,
            FewStepPromptList,
            FewStepRestartKSampler,
            FewStepRestartKSamplerAdvanced,
            FewStepTune,
            FewStepLoadTuning,
            FewStepTunedSampler,
            FewStepInspectSchedule,
            FewStepEntry,
            FewStepCompare,
            FewStepDEIS,
            FewStepDualFast,
            FewStepTrigFlow,
            FewStepTrigFlowSchedule,
            FewStepFlowMapSampler,
            FewStepHeavyTailNoise,
            FewStepBridge,
            FewStepDatasetModel,
        ]
