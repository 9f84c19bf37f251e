"""Which module gets which class: the table of replacements, and the assignment of classes there and back."""

from __future__ import annotations

import fnmatch
import importlib
import sys
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from mvit_kernels.messages import shown
from mvit_kernels.ops import backends
from mvit_kernels.ops.packing import forget_all

from .blocks import ConvLayer, Replacement, Setting
from .chain import Sequential, is_chain

Model = TypeVar("Model", bound=nn.Module)

# A file of this folder, named after its library, and the modules that define the classes it replaces.
LIBRARIES = {
    "models": ("mvit_kernels.models.layers", "mvit_kernels.models.mobilevit", "mvit_kernels.models.mobilevitv2"),
    "models_efficientformer": ("mvit_kernels.models.efficientformer", "mvit_kernels.models.efficientformerv2"),
    "models_mobile_former": ("mvit_kernels.models.mobile_former",),
    "timm": ("timm.models.mobilevit", "timm.models.byobnet"),
    "timm_efficientformer": ("timm.models.efficientformer", "timm.models.efficientformer_v2"),
    "transformers": (
        "transformers.models.mobilevit.modeling_mobilevit",
        "transformers.models.mobilevitv2.modeling_mobilevitv2",
    ),
    "cvnets": (
        "cvnets.modules.mobilevit_block",
        "cvnets.modules.mobilenetv2",
        "cvnets.layers.linear_attention",
        "cvnets.layers.multi_head_attention",
    ),
}


def replacements(model: nn.Module) -> dict[type[nn.Module], type[Replacement]]:
    """Original class -> replacement, of the libraries that modules of the model come from.

    Raises ImportError for a version of a library that misses what its replacements build on.
    """
    table: dict[type[nn.Module], type[Replacement]] = {}
    held = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    for name, modules in LIBRARIES.items():
        if held.isdisjoint(modules):
            continue
        try:
            table |= importlib.import_module(f".{name}", __package__).REPLACEMENTS
        except (ImportError, AttributeError) as error:
            library = name.partition("_")[0]
            version = getattr(sys.modules.get(library), "__version__", "of unknown version")
            raise ImportError(f"mvit_kernels cannot replace the modules of {library} {version}: {error}") from error
    return table


def accelerate(
    model: Model,
    *,
    backend: str = "auto",
    attention: bool = True,
    patches: bool = True,
    norm: bool = True,
    conv: bool = True,
    exclude: Sequence[str | type[nn.Module]] = (),
) -> Model:
    """Give the MobileViT modules of a model faster forwards, in place.

    Replaces modules of timm (`mobilevit*`, `mobilevitv2*`, `semobilevit*`, `efficientformer*`), transformers (MobileViT, MobileViTV2),
    ml-cvnets and mvit_kernels.models by assigning `module.__class__`: parameters, hooks, state_dict keys, train/eval and devices stay as
    they are, and `restore` undoes it. Only modules of exactly a known class are replaced, never those of a subclass. Calling it again
    replaces the former choice. `report` tells what was replaced and why the rest was not.

    Args:
        model: any module; it may be wrapped, in training, loaded before or after.
        backend: "auto" lets each op take the fastest backend that supports its call and `mk.use_backend` decide otherwise; another one
            ("cpu", "triton", "reference") is asked of every call.
        attention: attention by our kernels: `ops.separable_attention_block` and `ops.patch_attention` on the map.
        patches: whole MobileViT blocks on the map, where unfold and fold vanish; where that is not possible (`attention=False`, dropout
            in training), unfold and fold by `ops.unfold_patches` and `ops.fold_patches`.
        norm: the norms of a block inside the ops that read what they normalise. Without it, blocks call their norms as modules.
        conv: in evaluation, convolutions with BatchNorm and activation as one op each, inverted residuals as one, those of MobileViT
            blocks with the block, and pooling and classifier without torch; an nn.Sequential of such modules becomes one that runs the
            kernels of all of them as one plan, where `attention`, `patches` and `norm` are wanted too. **Maps come in channels_last
            then**, as they do from a torch convolution with channels_last weights.
        exclude: module names, fnmatch patterns of them ("stages.4.*"), or classes. They are left alone with everything inside.

    A module runs its original forward for a call, or less of itself on our ops, if something inside of it has hooks, parametrizations,
    active dropout, weights of a tensor class of others (torchao's) or another class than the library gives it there, or if it has a method
    of its own. Folded convolutions know no gradient: where one is wanted (no `torch.no_grad()`, and a parameter or the input requires it),
    convolutions run as before, and attention and feed-forward on ops with gradients of their own.

    On a GPU the same ops run, where Triton can (compute capability 8.0 and up); elsewhere torch's own operations do, and `report` says why.
    Blocks give channels_last maps there in training too, as a convolution does that is given one.

    Under autocast, blocks in evaluation give maps in its dtype; those of EfficientFormers and Mobile-Former do, too, where the originals'
    layer scales and norms make float32 of it.

    Folded and packed weights are kept and made anew when a parameter changes. What torch cannot see is not seen: after changes in place of
    `parameter.data`, through numpy, by torch.distributed collectives or by the replay of a CUDA graph, call `accelerate` again.

    `restore` the model before torch.jit.script, torch.jit.trace or an export to ONNX: none of them knows our ops.

    Returns:
        The same model.

    Raises:
        TypeError, ValueError: model is no module, exclude is no sequence of names and classes or has a name that no module matches, the
            backend is unknown or unusable here, or a module was wrapped into a class of another maker after it was replaced (as
            torch's fully_shard does; accelerate first and once). Nothing is changed then.
        ImportError: the model holds modules of a version of a library that cannot be replaced.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model: expected a torch.nn.Module, got {type(model).__name__}")
    _check_backend(backend)
    _check_exclude(exclude, model)
    table = replacements(model)
    _restore("accelerate", model, table)
    forget_all()

    wanted = {"attention": attention, "patches": patches, "conv": conv}
    asked = None if backend == "auto" else backend
    excluded: set[str] = set()
    covered: set[str] = set()  # what stands inside of a replaced module
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if parent in excluded or _matches(name, module, exclude):
            excluded.add(name)
        if name and parent in covered:
            covered.add(name)
        replacement = table.get(type(module))
        if replacement is None or (name in covered and issubclass(replacement, ConvLayer)):
            continue
        left_alone = None
        if name in excluded:
            left_alone = "excluded"
            covered.add(name)
        elif not wanted[replacement._option]:
            left_alone = f"{replacement._option}=False"
        module._mvit_kernels_setting = Setting(asked, attention, norm, conv, left_alone)
        if left_alone is None:
            module.__class__ = replacement
            covered.add(name)
    if attention and patches and norm and conv:
        for name, module in model.named_modules():
            if name not in covered and type(module) is nn.Sequential and is_chain(module):
                vars(module)["_mvit_kernels_setting"] = Setting(asked, attention, norm, conv)
                module.__class__ = Sequential
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`, in place: every module gets its class back and loses what was added. Returns the same model.

    Raises TypeError if model is no module, ValueError, with nothing changed, if a module was wrapped into a class of another maker since.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model: expected a torch.nn.Module, got {type(model).__name__}")
    _restore("restore", model, replacements(model))
    return model


def _restore(function: str, model: nn.Module, table: dict[type[nn.Module], type[Replacement]]) -> None:
    originals: dict[type[nn.Module], type[nn.Module]] = {replacement: original for original, replacement in table.items()}
    originals[Sequential] = nn.Sequential
    for name, module in model.named_modules():
        if isinstance(module, Replacement) and type(module) not in originals:
            raise ValueError(
                f"{function}: model: expected the class that accelerate gave to {name or 'the model'},"
                f" got {type(module).__name__}, which something derived from it since; undo that first"
            )
    for module in model.modules():
        if type(module) in originals:
            module.__class__ = originals[type(module)]
        if isinstance(vars(module).get("_mvit_kernels_setting"), Setting):
            del module._mvit_kernels_setting


def _check_backend(backend: str) -> None:
    if backend == "auto":
        return
    known = backends()
    if backend not in known:
        raise ValueError(f"accelerate: backend: expected one of auto, {', '.join(sorted(known))}, got {shown(backend)}")
    if not known[backend].usable:
        raise ValueError(f"accelerate: backend: {backend!r} cannot be used here: {known[backend].reason}")


def _check_exclude(exclude: Sequence[str | type[nn.Module]], model: nn.Module) -> None:
    each = None if isinstance(exclude, str | type) or not isinstance(exclude, Sequence | set | frozenset) else exclude
    if each is None or not all(isinstance(one, str | type) for one in each):
        raise TypeError(f"accelerate: exclude: expected a sequence of module names and classes, got {shown(exclude)}")
    names = [name for name, _ in model.named_modules()]
    for one in each:
        if isinstance(one, str) and not any(fnmatch.fnmatchcase(name, one) for name in names):
            raise ValueError(f"accelerate: exclude: expected names of modules or patterns of them, got {shown(one)}, which none matches")


def _matches(name: str, module: nn.Module, exclude: Sequence[str | type[nn.Module]]) -> bool:
    return any(fnmatch.fnmatchcase(name, one) if isinstance(one, str) else isinstance(module, one) for one in exclude)
