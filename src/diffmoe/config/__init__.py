"""What a run is: frozen records, their cross-checks and their text form."""

from diffmoe.config.checks import Checked, gathered
from diffmoe.config.data import (
    SD_VAE,
    AutoencoderCodec,
    CodecConfig,
    DataConfig,
    DigitsData,
    FolderData,
    PixelCodec,
)
from diffmoe.config.model import (
    ROUTER_OPTIONS,
    BatchPool,
    Dense,
    ExpertChoice,
    ModelConfig,
    RouterOptions,
    TokenChoice,
    register_options,
)
from diffmoe.config.names import field_names, nearest
from diffmoe.config.run import (
    DDPMConfig,
    FlowConfig,
    LoopConfig,
    MachineConfig,
    ObjectiveConfig,
    RunConfig,
    TrainingConfig,
)
from diffmoe.config.sampling import LEGAL_POLICIES, Level, SamplingConfig
from diffmoe.config.shares import Shares, share_out
from diffmoe.config.text import (
    differences,
    from_dict,
    identity_differences,
    read_config,
    to_dict,
    to_yaml,
)

__all__ = [
    "LEGAL_POLICIES",
    "ROUTER_OPTIONS",
    "SD_VAE",
    "AutoencoderCodec",
    "BatchPool",
    "Checked",
    "CodecConfig",
    "DDPMConfig",
    "DataConfig",
    "Dense",
    "DigitsData",
    "ExpertChoice",
    "FlowConfig",
    "FolderData",
    "Level",
    "LoopConfig",
    "MachineConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PixelCodec",
    "RouterOptions",
    "RunConfig",
    "SamplingConfig",
    "Shares",
    "TokenChoice",
    "TrainingConfig",
    "differences",
    "field_names",
    "from_dict",
    "gathered",
    "identity_differences",
    "nearest",
    "read_config",
    "register_options",
    "share_out",
    "to_dict",
    "to_yaml",
]
