"""What a Trainer must be like for a training method; said before training starts."""

from typing import Any

from transformers import Trainer

from dynprobe.finetune.freelb import FreeLB
from dynprobe.finetune.method import Method
from dynprobe.finetune.r3f import R3F
from dynprobe.finetune.regulariser import Regulariser
from dynprobe.finetune.smart import SMART


def require_possible(trainer: Trainer, method: Method) -> None:
    """Refuse a trainer with which a method would not do what it says.

    Raises
    ------
    ValueError
        During training; with DataParallel, FSDP, DeepSpeed; with NEFTune, Liger, re-entrant checkpointing where they collide.
    """
    args: Any = trainer.args
    if trainer.is_in_train:
        raise ValueError("a method must be switched on before `trainer.train()`; got a trainer that is training")
    if not method.has_passes:
        return
    wrapped = [name for name in ("is_fsdp_enabled", "is_deepspeed_enabled") if getattr(trainer, name, False)]
    if args.n_gpu > 1 or wrapped:
        raise ValueError(
            f"method {method.name!r} must run on whole weights and whole batches; got "
            f"{wrapped[0] if wrapped else f'DataParallel on {args.n_gpu} GPUs'}. Train on one device, or with torchrun and "
            "DistributedDataParallel"
        )
    if getattr(trainer, "neftune_noise_alpha", None) is not None and isinstance(method, R3F | SMART | FreeLB):
        raise ValueError(
            f"`neftune_noise_alpha` must be None with method {method.name!r}, which perturbs the same embeddings; got "
            f"{trainer.neftune_noise_alpha}"
        )
    if getattr(args, "use_liger_kernel", False) and isinstance(method, Regulariser):
        raise ValueError(
            f"`use_liger_kernel` must be False with method {method.name!r}, which compares logits; got True, whose fused loss "
            "makes none"
        )
    if isinstance(method, FreeLB | SMART) and _reenters(args):
        raise ValueError(
            f"gradient checkpointing must have use_reentrant=False with method {method.name!r}, which differentiates by its "
            "noise; got use_reentrant=True"
        )


def require_seedable_order(trainer: Trainer) -> None:
    """The order of the examples must have a seed of its own.

    Raises
    ------
    ValueError
        When it comes from the random state of the process.
    """
    config: Any = trainer.args.accelerator_config
    if not config.use_seedable_sampler:
        raise ValueError(
            "`use_seedable_sampler` must be True in the accelerator's configuration for a stream of the data order; got False"
        )


def require_kept_parameters(trainer: Trainer) -> None:
    """An optimizer that exists already must hold every parameter that the prepared model trains.

    Raises
    ------
    ValueError
        When it does not: the parameter would never change.
    """
    if trainer.optimizer is None:
        return
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    model: Any = trainer.model
    lost = [name for name, value in model.named_parameters() if value.requires_grad and id(value) not in held]
    if lost:
        raise ValueError(
            f"the optimizer must hold every parameter that is trained; got one without {lost[:3]}. Switch the method on before "
            "the optimizer is made"
        )


def _reenters(args: Any) -> bool:
    if not (getattr(args, "activation_checkpointing", False) or getattr(args, "gradient_checkpointing", False)):
        return False
    names = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
    return any((getattr(args, name, None) or {}).get("use_reentrant", False) for name in names)
