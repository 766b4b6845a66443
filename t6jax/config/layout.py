"""How a run is spread over devices: MeshConfig, ShardingConfig, and whether a batch divides."""

import dataclasses
from typing import Annotated, ClassVar

from t6jax.errors import InputError
from t6jax.fields import Range, Section, keys_of

_SIZE = Range(low=-1)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """Devices along each axis of the mesh; one axis may be -1, for all that are left."""

    section: ClassVar[str] = "mesh"

    data: Annotated[int, _SIZE, "Devices over which the rows of a batch are split."] = -1
    fsdp: Annotated[int, _SIZE, "Devices over which rows and the stored parameters are split."] = 1
    tensor: Annotated[
        int, _SIZE, "Devices over which heads, the SwiGLU's width and the vocabulary are split."
    ] = 1
    sequence: Annotated[int, _SIZE, "Devices over which each sequence's tokens are split."] = 1

    def __post_init__(self):
        super().__post_init__()
        sizes = self.to_dict()
        if 0 in sizes.values() or list(sizes.values()).count(-1) > 1:
            raise InputError(
                "mesh sizes must be at least 1, and one of them may be -1, for the devices that "
                f"are left; got {', '.join(f'mesh.{axis}={n}' for axis, n in sizes.items())}"
            )


@dataclasses.dataclass(frozen=True)
class ShardingConfig(Section):
    """The mesh axes that each named axis of the parameters is split over: "", one, or several as
    "fsdp,sequence".

    Over tensor, vocab, mlp, heads and kv_heads stay split while the model runs; everything else is
    gathered one layer at a time.
    """

    section: ClassVar[str] = "sharding"

    d_model: Annotated[str, "Width of the hidden states."] = "fsdp"
    vocab: Annotated[str, "The vocabulary."] = "tensor"
    mlp: Annotated[str, "Width of the SwiGLU."] = "tensor"
    heads: Annotated[str, "Heads."] = "tensor"
    kv_heads: Annotated[str, "Heads of keys and values, if fewer."] = "tensor"
    head_dim: Annotated[str, "Features of a head."] = ""
    rank: Annotated[str, "Ranks of TPA's factors."] = ""
    latent: Annotated[str, "Widths of MLA's and MFA's latents."] = ""

    def __post_init__(self):
        super().__post_init__()
        axes = tuple(keys_of(MeshConfig))
        for name, text in self.to_dict().items():
            named = [axis.strip() for axis in text.split(",") if axis.strip()]
            if not set(named) <= set(axes) or len(set(named)) < len(named):
                raise InputError(
                    f"sharding.{name} must be '' or of {', '.join(axes)}, several with commas "
                    f"between; got {text!r}"
                )
