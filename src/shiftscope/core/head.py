"""The unembedding of a causal model as it truly is: final norm, weight, bias, soft-cap and scale, checked on a probe.

The final norm is found by what it does, not by its name: the modules that run after the last block. So any architecture
works whose logits are `scale · cap(W·final(h) + bias)`, and one that is not is refused with the size of the disagreement.
"""

# B batch, T positions, N rows, d width, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Head:
    """Splits a causal language model into body, blocks, final norm and unembedding, verified against its own logits.

    Raises ValueError where the parts found do not reproduce the model's logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.body: nn.Module = model.base_model
        unembedding = model.get_output_embeddings()
        if unembedding is None:
            raise ValueError(f"{type(model).__name__} has no output embeddings: a causal language model is needed")
        self.unembedding: nn.Linear = unembedding
        config = model.config.get_text_config()
        self.soft_cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = float(getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1))
        self.blocks = _blocks(self.body, config.num_hidden_layers)
        self.final: Callable[[Tensor], Tensor] = nn.Identity()
        with evaluating(model):
            self._verify()

    @property
    def weight(self) -> Tensor:
        """The unembedding rows, [V, d]: the model's own tensor, not a copy."""
        return self.unembedding.weight

    @property
    def bias(self) -> Tensor | None:
        """The unembedding bias, [V], or None."""
        return getattr(self.unembedding, "bias", None)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Last hidden state after the final norm, [B, T, d]: what the unembedding reads."""
        return self.body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state

    def logits(self, hidden_ND: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits [N, V] in the model's dtype of final hidden rows; `out` is a buffer to write them into."""
        weight, bias = self.weight, self.bias
        logits = (
            torch.mm(hidden_ND, weight.T, out=out) if bias is None else torch.addmm(bias, hidden_ND, weight.T, out=out)
        )
        if self.soft_cap:
            logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits if self.scale == 1 else logits.mul_(self.scale)

    def lens(self, state_ND: Tensor) -> Tensor:
        """Logits [N, V] of block states (before the final norm): the logit lens with the model's own norm and head."""
        return self.logits(self.final(state_ND))

    @torch.no_grad()
    def _verify(self) -> None:
        """Find the final norm and compare head and lens with the model's own logits on a short probe."""
        from shiftscope.core import trace

        vocabulary = self.weight.shape[0]
        ids = torch.arange(1, 9, device=self.device).mul(7919).remainder(vocabulary)[None]
        with trace.states(self.blocks) as states, _calls(self.body) as seen:
            last = self.hidden(ids)
        before = states[-1]
        after = [m for m in seen[seen.index(self.blocks[-1]) + 1 :] if self.blocks[-1] not in m.modules()]
        inner = {child for module in after for child in module.modules() if child is not module}
        self.final = nn.Sequential(*(module for module in after if module not in inner))
        own = self.model(input_ids=ids, use_cache=False).logits[0].float()
        for name, logits in (("head", self.logits(last[0])), ("logit lens", self.lens(before[0]))):
            error = float((logits.float() - own).abs().max())
            allowed = max(1e-4, 4 * torch.finfo(logits.dtype).eps) * max(1.0, float(own.abs().max()))
            if not error <= allowed and bool(own.isfinite().all()):
                raise ValueError(
                    f"the {name} of {type(self.model).__name__} differs from its own logits by {error:.3g} (allowed "
                    f"{allowed:.3g}): it does more between the last block and the logits than norm, weight, bias, "
                    f"soft-cap and scale"
                )


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients; every submodule's `training` flag is put back afterwards."""
    training = [module for model in models for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _blocks(body: nn.Module, count: int) -> list[nn.Module]:
    """The transformer blocks: the one ModuleList that has as many entries as the configuration has layers."""
    found = [list(module) for module in body.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not found:
        raise ValueError(
            f"{type(body).__name__} has no list of {count} blocks, though its configuration names {count} layers"
        )
    return found[0]


@contextmanager
def _calls(body: nn.Module) -> Iterator[list[nn.Module]]:
    """Collect the submodules of body in the order in which they return during one forward."""
    called: list[nn.Module] = []

    def leave(module: nn.Module, _: object, __: object) -> None:
        called.append(module)

    handles = [module.register_forward_hook(leave) for module in body.modules()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()
