"""One decomposed forward: every source of the residual stream apart, every reader replaceable.

A decoder-only transformer adds the outputs of its *sources* (the embedding, every
attention head, every MLP) into one residual stream, and its *readers* (every head's
query, key and value inputs, every MLP, the logits) read it through a norm of their own:

    x = embed + Σ head outputs + Σ MLP outputs + Σ b_O
    reader r sees norm_r(x)

The attention output bias b_O belongs to no head; it is a constant of the stream that
no edit removes. An MLP's output includes its output bias.

The pass runs stage by stage (embed, a0, m0, a1, …, logits). At each stage a caller may
replace what the readers read (``read``, before the norm, one stream for all readers or
one each) and what the sources write (``write``). While all readers share one stream it
is normalised once, so an unedited run costs what the model's own forward costs.

Source: the edge view of Elhage et al. (2021), *A mathematical framework for transformer
circuits*; patching before the norm, per reader, as in Conmy et al. (2023).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mechlab.errors import MechlabError
from mechlab.models.shape import Shape as Shape
from mechlab.models.shape import Stage as Stage
from mechlab.models.weights import AnyNorm, Attention, Mlp, read_weights, require_fitting, rotate


@dataclass(frozen=True)
class Trace:
    """What one stage's readers computed, kept for gradients.

    Attributes:
        stage: the stage.
        x: the stream before the norm.
        parts: what the gradient is taken at: (q, k, v) before rotation, each
            ``[batch, pos, heads, d_head]``, or the normalised stream of the MLP or logits.
        positions: where ``x`` is, when not at every position.
        wrote: what the stage's sources are made from: every head's mixed values before W_O
            ``[batch, pos, heads, d_head]``, the MLP's output; None for the logits.
    """

    stage: Stage
    x: Float[Tensor, "batch pos d_model"]
    parts: tuple[Tensor, ...]
    wrote: Tensor | None
    positions: Int[Tensor, "batch read"] | None = None


@dataclass(frozen=True)
class Run:
    """The outcome of a pass.

    Attributes:
        x: the residual stream at the end of the pass.
        logits: all positions, or only those asked for; None when the pass stopped early.
        sources: with ``keep``, outputs of the sources from the first stage run on, in
            graph order, without gradient; else None.
        traces: with ``trace``, one for every stage that reads.
    """

    x: Float[Tensor, "batch pos d_model"]
    logits: Float[Tensor, "batch *read d_vocab"] | None
    sources: Float[Tensor, "source batch pos d_model"] | None
    traces: tuple[Trace, ...]


@dataclass(frozen=True)
class Split:
    """A stage's streams where only some readers have one of their own.

    Attributes:
        shared: what all other readers read.
        own: a stream for each of ``columns``, numbers of readers within the stage.
    """

    shared: Float[Tensor, "batch pos d_model"]
    own: Float[Tensor, "reader batch pos d_model"]
    columns: tuple[int, ...]


Read = Callable[[Stage, Tensor], Tensor | Split]
Write = Callable[[Stage, Tensor], Tensor]


class DecomposedForward:
    """The decomposed forward of a Hugging Face causal language model, or of a compiled one.

    Weights are views of the module's parameters (no copies, no gradient), so later
    in-place changes to them are seen; moving the module to another device is not.
    Sequences carry no padding.

    Args:
        module: an ``AutoModelForCausalLM`` module in eval mode, of a type in ``SUPPORTED``,
            or one that states its own weights.

    Raises:
        MechlabError: the architecture is unknown, its outputs are not additive (norms after
            attention or MLP, as in Gemma 2), or the module is in training mode.
    """

    def __init__(self, module: nn.Module) -> None:
        weights = read_weights(module)
        self._embedding, self._positions = weights.embedding, weights.positions
        self._rotary, self._unembed = weights.rotary, weights.unembed
        self.attentions, self._mlps = weights.attentions, weights.mlps
        self._mlp_norms, self._final_norm = weights.mlp_norms, weights.final_norm
        self.device = self.attentions[0].output.device
        self.shape = Shape(
            n_layers=len(weights.attentions),
            n_heads=self.attentions[0].inputs[0].shape[0],
            n_key_value_heads=self.attentions[0].inputs[1].shape[0],
            parallel=weights.parallel,
        )

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Output of "embed": token embedding, learned positions; MechlabError for what has neither."""
        require_fitting(tokens, self._embedding, self._positions)
        x: Tensor = self._embedding(tokens)
        if self._positions is not None:
            x = x + self._positions[: tokens.shape[1]]
        return x

    def run(
        self,
        tokens: Int[Tensor, "batch pos"] | None = None,
        *,
        x: Float[Tensor, "batch pos d_model"] | None = None,
        start: int = 0,
        stop: int | None = None,
        positions: Int[Tensor, "batch *read"] | None = None,
        read: Read | None = None,
        write: Write | None = None,
        apart: Container[int] | None = None,
        keep: bool = False,
        trace: bool = False,
        leaves: bool = False,
        narrow: bool = False,
    ) -> Run:
        """Run the model, or the layers ``start`` to ``stop`` of it.

        Args:
            tokens: the prompts. Give these or ``x``.
            x: the residual stream entering layer ``start``; at layer 0, the output of "embed".
            stop: stop before this layer; None runs on to the logits.
            positions: unembed only these positions of each prompt, one or several: logits are
                ``[batch, d_vocab]`` or ``[batch, read, d_vocab]``.
            read: ``(stage, stream) -> stream``, called before each stage that reads. May return
                one stream ``[batch, pos, d_model]``, one per reader ``[reader, batch, pos, d_model]``,
                or a ``Split`` where only some readers have their own.
            write: ``(stage, outputs) -> outputs``, called with each stage's source outputs
                ``[source, batch, pos, d_model]``, "embed" included.
            apart: layers whose heads ``write`` sees; all when None. Heads that nobody wants apart are
                added up at once.
            keep: record the sources' outputs.
            trace: record what gradients of reader inputs need; not together with per-reader streams.
            leaves: what the stages' readers make of the stream starts a graph of its own, which ends at
                what the stage writes: a backward pass stage by stage needs no other.
            narrow: after the last layer's attention, run only the ``positions``; nothing later is read.

        Raises:
            MechlabError: both or neither of ``tokens`` and ``x``; tokens with ``start`` > 0.
        """
        if (tokens is None) == (x is None) or (tokens is not None and start != 0):
            raise MechlabError("give tokens, or x and the layer it enters", f"start={start}")
        if x is None:
            assert tokens is not None
            x = self.embed(tokens)
        last = self.shape.n_layers if stop is None else stop - 1
        entry, logits, kept, traces, where = x, None, [], [], None
        for stage in self.shape.stages:
            if stage.kind == "embed":
                if start > 0:
                    continue
                x = x if write is None else write(stage, x[None])[0]
                if keep:
                    kept.append(x.detach()[None])
                continue
            if not start <= stage.layer <= last:
                continue
            if stage.kind == "attention":
                entry = x
            stream = entry if stage.kind == "mlp" and self.shape.parallel else x
            seen = stream if read is None else read(stage, stream)
            if isinstance(seen, Split) and stage.kind != "attention":
                seen = seen.own
            if trace and (isinstance(seen, Split) or seen.ndim != stream.ndim):
                raise MechlabError("trace needs readers that share one stream", stage.kind)
            if stage.kind == "attention":
                attention, parts = self.attentions[stage.layer], self.parts(stage, seen, leaves=leaves)
                mixed = self.attend(attention, *parts)
                wrote: Tensor | None = mixed
                mixed = mixed.detach() if leaves else mixed
                if write is None or (apart is not None and stage.layer not in apart):
                    added = mixed.flatten(2) @ attention.output.flatten(0, 1)
                    outputs = self.head_outputs(attention, mixed.detach()) if keep else added
                else:
                    outputs = write(stage, self.head_outputs(attention, mixed))
                    added = outputs.sum(0)
                if attention.output_bias is not None:
                    added = added + attention.output_bias
            else:
                assert not isinstance(seen, Split)
                seen = seen if seen.ndim == stream.ndim else seen[0]
                parts = self.parts(stage, seen, leaves=leaves)
                normed = parts[0]
                if stage.kind == "logits":
                    at = normed if positions is None or where is not None else gathered(normed, positions)
                    logits, wrote = self._unembed(at), None
                else:
                    wrote = self._mlps[stage.layer](normed)
                    outputs = wrote.detach()[None] if leaves else wrote[None]
                    outputs = outputs if write is None else write(stage, outputs)
                    added = outputs[0]
            if trace:
                assert not isinstance(seen, Split)
                traces.append(Trace(stage, seen.detach(), parts, wrote, where))
            if stage.kind != "logits":
                x = x + added
                if keep:
                    kept.append(outputs.detach())
            if narrow and positions is not None and stage == self.shape.stages[-3]:
                where = positions.reshape(len(x), -1)
                x, entry = gathered(x, where), gathered(entry, where)
        if where is not None and logits is not None and positions is not None and positions.ndim == 1:
            logits = logits[:, 0]
        return Run(x, logits, torch.cat(kept) if kept else None, tuple(traces))

    def parts(self, stage: Stage, seen: Tensor | Split, *, leaves: bool = False) -> tuple[Tensor, ...]:
        """What a stage's readers make of the stream they read: see ``Trace.parts``."""
        if stage.kind == "attention":
            found: tuple[Tensor, ...] = self._project(self.attentions[stage.layer], seen)
        else:
            assert not isinstance(seen, Split)
            found = (self._norm(stage)(seen),)
        return tuple(part.detach().requires_grad_() for part in found) if leaves else found

    def mlp_beside(
        self, layer: int, x: Float[Tensor, "batch pos d_model"], rest: Float[Tensor, "other pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "other pos d_model"]]:
        """Outputs of an MLP for two batches of normalised streams; only the first has a gradient."""
        mlp = self._mlps[layer]
        if isinstance(mlp, Mlp):
            return mlp.beside(x, rest)
        with torch.no_grad():
            other = mlp(rest)
        return mlp(x), other

    def pull_back(
        self, trace: Trace, gradients: tuple[Tensor, ...]
    ) -> Float[Tensor, "reader batch pos d_model"]:
        """Gradient at the stream that each reader of a stage reads, each reader on its own.

        Args:
            trace: the stage's record from ``run(trace=True)``.
            gradients: gradients at ``trace.parts``.
        """
        if trace.stage.kind != "attention":
            return self._norm(trace.stage).pull_back(trace.x, gradients[0][None])
        attention, readers = self.attentions[trace.stage.layer], trace.stage.readers
        pulled = trace.x.new_empty(readers.stop - readers.start, *trace.x.flatten(0, 1).shape)
        unit, inverse = attention.norm.scale(trace.x)
        first = 0
        # The norm's weight, mean and scale act on the weights and on d_head coordinates, so that the
        # largest array here, a stream per reader, is written once and touched once more.
        for g, part, w, bias in zip(gradients, trace.parts, attention.inputs, attention.biases, strict=True):
            heads = slice(first, first + len(w))
            folded, constant = attention.norm.fold(w, bias)
            g = g * inverse[..., None]
            torch.bmm(g.flatten(0, 1).transpose(0, 1), folded.transpose(1, 2), out=pulled[heads])
            if unit is not None:
                along = ((part.detach() - constant) * g).sum(-1).flatten(0, 1).T / unit.shape[-1]
                pulled[heads].addcmul_(along[..., None], unit.flatten(0, 1), value=-1)
            first = heads.stop
        return pulled.view(-1, *trace.x.shape)

    def _norm(self, stage: Stage) -> AnyNorm:
        return self._final_norm if stage.kind == "logits" else self._mlp_norms[stage.layer]

    def _project(self, attention: Attention, seen: Tensor | Split) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[batch, pos, heads, d_head]``, before rotation."""
        split = seen if isinstance(seen, Split) else None
        normed = attention.norm(seen.shared if isinstance(seen, Split) else seen)
        own = None if split is None else attention.norm(split.own)
        found, first = [], 0
        for weight, bias in zip(attention.inputs, attention.biases, strict=True):
            heads = weight.shape[0]
            if normed.ndim == 3:
                part = normed @ weight.transpose(0, 1).flatten(1)
                part = part.view(*normed.shape[:2], heads, -1)
            else:
                part = torch.einsum("hbpd,hdk->bphk", normed[first : first + heads], weight)
            if split is not None:
                here = [
                    (row, column - first)
                    for row, column in enumerate(split.columns)
                    if 0 <= column - first < heads
                ]
                if here:
                    assert own is not None
                    rows, columns = map(list, zip(*here, strict=True))
                    places = torch.tensor(columns, device=part.device)
                    new = torch.einsum("hbpd,hdk->bphk", own[rows], weight[columns])
                    part = part.index_copy(2, places, new)
            found.append(part if bias is None else part + bias)
            first += heads
        return found[0], found[1], found[2]

    def attend(
        self,
        attention: Attention,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch pos kv_head d_head"],
        v: Float[Tensor, "batch pos kv_head d_value"],
    ) -> Float[Tensor, "batch pos head d_value"]:
        """Attention; returns the mixed values ``[batch, pos, heads, d_head]``."""
        n_pos, group = q.shape[1], q.shape[2] // k.shape[2]
        if self._rotary is not None:
            cos, sin = self._rotary(q, torch.arange(n_pos, device=q.device)[None])
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if group > 1:
            k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mask = None
        if attention.window is not None and attention.window < n_pos:
            mask = (
                torch.ones(n_pos, n_pos, dtype=torch.bool, device=q.device).tril().triu(1 - attention.window)
            )
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=attention.causal and mask is None, scale=attention.scale
        )
        return mixed.transpose(1, 2)

    def head_outputs(
        self, attention: Attention, mixed: Float[Tensor, "batch pos head d_head"]
    ) -> Float[Tensor, "head batch pos d_model"]:
        """Each head's output ``[heads, batch, pos, d_model]``, without b_O."""
        return torch.einsum("bphk,hkd->hbpd", mixed, attention.output)


def gathered(
    x: Float[Tensor, "batch pos d_model"], positions: Int[Tensor, "batch *read"]
) -> Float[Tensor, "batch *read d_model"]:
    """A stream at one or several positions of each prompt."""
    rows = torch.arange(len(x), device=x.device)
    return x[rows if positions.ndim == 1 else rows[:, None], positions]


def scattered(
    x: Float[Tensor, "batch read d_model"], positions: Int[Tensor, "batch read"], n_pos: int
) -> Float[Tensor, "batch pos d_model"]:
    """Zero but at ``positions``; the transpose of ``gathered``."""
    out = x.new_zeros(len(x), n_pos, x.shape[-1])
    return out.scatter_add_(1, positions[..., None].expand_as(x), x)
