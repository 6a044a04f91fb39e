"""Models whose parameters are cut into pieces, one for each rank: torch's FSDP2 around blocks, and whole tensors again.

Whatever is called a pass here is done by all ranks together: where one makes a forward or backward pass of a sharded
model, all must make as many, in the same order.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from tdro.devices import Device, Ranks
from tdro.errors import EnvironmentProblem


def shard(model: nn.Module, network: nn.Module, device: Device, ranks: Ranks) -> None:
    """Leave each rank its piece of every parameter; a pass gathers the parameters of one block after the other.

    Gradients of the ranks are summed, not averaged, in every backward pass. Gathered parameters have the type of the
    pieces, so that a pass computes what it computes in a whole model.

    Args:
        model: Loaded alike by all ranks, anywhere; its parameters go to the device. Changed in place.
        network: The part of it that has blocks: the modules in its outermost lists.
        device: Where it computes.
        ranks: Two or more.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.name, (ranks.count,))
    for part in (*_blocks(network), model):
        # The outermost part too: kept after a pass without gradient, its parameters would miss the optimizer's step.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether `shard` has cut a model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor as a whole; all ranks call it for the same tensors in the same order."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(whole: Tensor, piece: Tensor) -> Tensor:
    """Cut a tensor that all ranks have as another one is cut; without messages."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(piece, DTensor):
        return whole
    return distribute_tensor(whole.to(piece.device), piece.device_mesh, piece.placements, src_data_rank=None)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Give every rank all parameters inside the block, so that each makes the passes it likes; they must not change.

    A model that is not sharded is whole anyway.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def refuse_other_sharding(sharding: str) -> None:
    """Refuse what `accelerate launch` was told to do and tdro does not do, or not in this way.

    Args:
        sharding: model.sharding of the study.

    Raises:
        EnvironmentProblem: The launcher asks for DeepSpeed, Megatron, other parallelism, or an FSDP that the study does
            not ask for or cannot have.
    """

    def asked(name: str) -> bool:
        return os.environ.get(name, "").lower() in ("true", "1", "yes")

    others = {
        "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
        "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
    }
    plain = "start with torchrun or recipes/launch/ddp.yaml"
    for name, what in others.items():
        if asked(name):
            do = f"{plain}; --model.sharding full shards parameters, gradients and moments as ZeRO-3 does"
            raise EnvironmentProblem(f"tdro does not train under {what}", where=f"{name}=true", do=do)
    if not asked("ACCELERATE_USE_FSDP"):
        return
    if sharding != "full":
        do = f"add --model.sharding full, or {plain}"
        raise EnvironmentProblem("the launcher asks for FSDP, the study does not", where="ACCELERATE_USE_FSDP", do=do)
    for name, odd in (
        ("FSDP_OFFLOAD_PARAMS", asked("FSDP_OFFLOAD_PARAMS")),
        ("FSDP_VERSION", os.environ.get("FSDP_VERSION", "2") != "2"),
    ):
        if odd:
            do = "use recipes/launch/fsdp.yaml: FSDP 2, nothing offloaded"
            raise EnvironmentProblem("tdro does not shard in this way", where=name, saw=os.environ[name], do=do)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Find the modules in the outermost lists."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)
