"""One dictionary in training: its weights, optimiser, dead latents and controller."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.activations.batch import Batch, seed_of
from mechlab.errors import MechlabError
from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.config import PenaltyConfig, TrainConfig
from mechlab.sae.dead import resample
from mechlab.sae.optimiser import Adam
from mechlab.sae.registry import build
from mechlab.sae.scaling import SiteScale, geometric_median, per_column
from mechlab.sae.schedule import L0Controller, learning_rate, sparsity_factor

# Dead latents and density are looked up every so many steps: it makes the device wait.
LOOK_EVERY = 10

Loss = Callable[["Trainee", Batch, Step], StepLoss]


class Trainee:
    """A dictionary in training.

    Args:
        scales: scale of every site it reads or predicts.
        sample: rows of each site (b_dec starts from those of the output).
        loss: what a batch costs; the dictionary's own loss on the scaled activations by default.

    Attributes:
        sae: in training units: ``x * x_scale`` → ``y * y_scale``.
        variance: total variance of the outputs in those units.
        mean: mean of the outputs ``[d_out]``, in the activations' units.
    """

    def __init__(
        self,
        config: TrainConfig,
        scales: dict[str, SiteScale],
        sample: dict[str, Float[Tensor, "row _"]],
        *,
        seed: int,
        device: torch.device,
        loss: Loss | None = None,
    ) -> None:
        self.config, self._seed, self._device = config, seed, device
        inputs, outputs = ([scales[site] for site in sites] for sites in (config.inputs, config.outputs))
        self.x_scale, self.y_scale = per_column(inputs).to(device), per_column(outputs).to(device)
        self.mean = torch.cat([each.mean for each in outputs])
        self.variance = sum(each.variance * each.scale**2 for each in outputs)
        out_sizes = tuple(len(each.mean) for each in outputs) if config.target else None
        self.sae: Sae = build(config, tuple(len(each.mean) for each in inputs), out_sizes)
        rows = torch.cat([sample[site].float() * scales[site].scale for site in config.outputs], dim=1)
        centres = {"mean": lambda: rows.mean(0), "geometric_median": lambda: geometric_median(rows)}
        b_dec = centres.get(config.b_dec, lambda: rows.new_zeros(rows.shape[1]))()
        self.sae.initialise(b_dec, torch.Generator().manual_seed(seed))
        self.sae.to(device)
        self.optimiser = Adam(self.sae)
        self.controller = L0Controller(config)
        self.since_fired = torch.zeros(config.d_sae, dtype=torch.long, device=device)
        self._loss = loss or (lambda trainee, batch, step: trainee.sae.loss(*trainee.scaled(batch), step))
        self._dead = torch.empty(0, dtype=torch.long, device=device)
        self._density = 1.0

    def scaled(self, batch: Batch) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]:
        """Inputs and outputs of a batch in training units."""
        x = self._side_by_side(batch, self.config.inputs) * self.x_scale
        if self.config.inputs == self.config.outputs:
            return x, x
        return x, self._side_by_side(batch, self.config.outputs) * self.y_scale

    def _side_by_side(self, batch: Batch, sites: tuple[str, ...]) -> Float[Tensor, "row d"]:
        parts = [batch[site].to(self._device, torch.float32) for site in sites]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def step(self, number: int, batch: Batch) -> Callable[[], dict[str, float]]:
        """Train on a batch; returns a function that gives the step's figures.

        Raises MechlabError, with the weights left as they were, when the loss is not finite.
        """
        config = self.config
        if number % LOOK_EVERY == 0:
            self._dead = (self.since_fired >= config.dead_after).nonzero().squeeze(1)
        sparsity = sparsity_factor(config, number) * self.controller.factor
        step = Step(number, config.steps, self.variance, sparsity, self._dead, self._density)
        loss = self._loss(self, batch, step)
        loss.total.backward()  # type: ignore[no-untyped-call]
        rate = learning_rate(config, number)
        norm = self.optimiser.step(number + 1, rate, config.clip)
        if not math.isfinite(norm):
            raise self._broken(number, batch)
        self.since_fired += len(batch)
        self.since_fired[loss.fired] = 0
        if self.controller.target is not None:
            self.controller.see(number, float(loss.l0))
        if number % LOOK_EVERY == LOOK_EVERY - 1:
            self._density = float(loss.l0) / config.d_sae
        if isinstance(config, PenaltyConfig) and config.resamples_at(number):
            self._resample(number, batch)
        return lambda: {
            "loss": float(loss.total.detach()),
            "fve": 1 - float(loss.error),
            "l0": float(loss.l0),
            "dead": float((self.since_fired >= config.dead_after).float().mean()),
            "lr": rate,
            "sparsity": sparsity,
            "gradient_norm": norm,
            **{name: float(value) for name, value in loss.figures.items()},
        }

    @torch.no_grad()
    def start_from(self, sae: Sae) -> None:
        """Take the weights of a finished dictionary, given in the activations' own units."""
        inverse = copy.deepcopy(sae).to(self._device)
        inverse.change_units(1 / self.x_scale, 1 / self.y_scale)
        if self.sae.unit and len(self.sae.out_sizes) > 1:
            # Sites of different scales do not come back to norm 1 by themselves.
            inverse.scale_codes(float(inverse.W_dec.norm(dim=1).mean()))
        given, names = inverse.state_dict(), {name for name, _ in self.sae.named_parameters()}
        lacking = {n for n, p in self.sae.named_parameters() if n not in given or given[n].shape != p.shape}
        if lacking:
            raise MechlabError(
                f"training {self.config.arch} cannot start from this dictionary",
                f"{', '.join(sorted(lacking))} missing or of another shape",
                "start from one of the same architecture and size",
            )
        # What only training needs (running thresholds) is not in a finished dictionary.
        state = self.sae.state_dict()
        self.sae.load_state_dict({**state, **{name: given[name] for name in names}})

    def finished(self) -> Sae:
        """The dictionary in the activations' own units, in the form to be used. Call it once, at the end."""
        self.sae.change_units(self.x_scale, self.y_scale)
        return self.sae.to("cpu").finish().requires_grad_(False).eval()

    def tensors(self) -> dict[str, Tensor]:
        """The state that training goes on from."""
        found = {f"sae.{name}": value.detach() for name, value in self.sae.state_dict().items()}
        for kind, moments in (("first", self.optimiser.first), ("second", self.optimiser.second)):
            found |= {f"{kind}.{name}": value for name, value in moments.items()}
        found["since_fired"] = self.since_fired
        return {name: value.cpu().contiguous() for name, value in found.items()}

    def facts(self) -> dict[str, Any]:
        """The plain values beside ``tensors``."""
        return {"controller": [self.controller.held, self.controller.push], "density": self._density}

    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.sae.load_state_dict({n[4:]: value for n, value in tensors.items() if n.startswith("sae.")})
        for kind, moments in (("first", self.optimiser.first), ("second", self.optimiser.second)):
            for name, value in moments.items():
                value.copy_(tensors[f"{kind}.{name}"])
        self.since_fired.copy_(tensors["since_fired"])
        (self.controller.held, self.controller.push), self._density = facts["controller"], facts["density"]

    @torch.no_grad()
    def _resample(self, number: int, batch: Batch) -> None:
        dead = (self.since_fired >= self.config.dead_after).nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(seed_of(self._seed, number))
        resample(self.sae, *self.scaled(batch), dead, generator)
        self.optimiser.forget(dead)
        self.since_fired[dead] = 0

    def _broken(self, number: int, batch: Batch) -> MechlabError:
        for site in {*self.config.inputs, *self.config.outputs}:
            if not bool(batch[site].isfinite().all()):
                return MechlabError(
                    f"activations at {site} are NaN or infinite",
                    f"step {number}",
                    "check the store (mechlab activations verify) or the model's dtype",
                )
        return MechlabError("training loss is NaN or infinite", f"step {number}", "lower the learning rate")
