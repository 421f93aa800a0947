"""Preferences: which of two answers does a language model prefer, compared with what it did before?

A language model gives each token of an answer a probability; `sequence_log_prob` takes logits and sums the
logarithms over the answer. Here the vocabulary has two tokens, and the answer is token 0, then token 1:

>>> import torch
>>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
>>> sequence_log_prob(logits, torch.tensor([[0, 1]]))
tensor([-1.0064])

`labels[b, t]` is the token whose probability `logits[b, t]` give. A causal model's logits at t predict
token t + 1: shift the tokens by one, and mask everything that is not part of the answer (the prompt, the
padding, the last position) with False, or give it the label -100, as Hugging Face's batches do. Shifting the
tokens is cheaper than slicing the logits, which are much larger.

>>> sequence_log_prob(logits, torch.tensor([[0, 1]]), mask=torch.tensor([[True, False]]))
tensor([-0.6931])
>>> sequence_log_prob(logits, torch.tensor([[0, -100]]))
tensor([-0.6931])

`dpo_loss` compares a preferred answer with a rejected one, under the model that is trained (the policy)
and under a frozen copy of where it started (the reference). Before the first step both agree, and the loss
is log 2:

>>> chosen, rejected = torch.tensor([-12.0]), torch.tensor([-9.0])
>>> dpo_loss(chosen, rejected, chosen, rejected)
tensor(0.6931)
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from mathlib._checks import BOOL, INTEGER, check_choice, check_device, check_number, check_shapes, check_some
from mathlib._rows import reduced
from mathlib._similarity import wide

IGNORED = -100
"""The label of a token that does not count, as in torch's cross_entropy and in Hugging Face's batches."""

BLOCK = {"cpu": 2**21, "cuda": 2**25}
"""How many logits are looked at together: little compared with a batch of them, 8 MB of float32 on a CPU, which stay in
its cache, and 128 MB on CUDA, which wants few launches.
"""


def sequence_log_prob(
    logits: Float[Tensor, "B T V"],
    labels: Integer[Tensor, "B T"],
    *,
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B"]:
    r"""The log-probability of each sequence of tokens: the sum over its tokens, not their mean.

    .. math:: \log \pi(y) = \sum_{t} m_t \log \frac{e^{z_{t, y_t}}}{\sum_{v=1}^V e^{z_{t, v}}}

    Computed by blocks of tokens, which the backward pass computes again: besides the logits and their
    gradient, no tensor of their size is ever alive. On a GPU that takes up to three times as long as ``log_softmax``
    and ``gather``, in a third of their memory (see the page on performance). Where the gradient itself is to be
    differentiated (``create_graph``), and under `torch.compile`, which fuses it, the formula is evaluated as it stands.

    Args:
        logits: z, any scale; -inf forbids a token (if all are forbidden where one counts, the result is NaN).
        labels: y, each in [0, V), already shifted: label t belongs to the logits at t. Where it is -100, the token
            does not count, as in torch's cross_entropy, whatever the mask says.
        mask: m, True where a token counts, by default everywhere; where it is False, logits and label may hold
            anything, NaN too, and get no gradient. The same holds where the label is -100.

    Returns:
        log pi of each sequence, 0 where no token counts, -inf (with a finite gradient) if a forbidden one does; float32
        for half-precision logits.

    Raises:
        TypeError: if logits are not floating-point, labels are not integers, or mask is not boolean.
        RuntimeError: from torch, under forward-mode differentiation, or if a label that counts is not in
            [0, V): values are not read; on CUDA the error surfaces later, as a device-side assertion.

    Source:
        Rafailov et al. (2023), arXiv:2305.18290, appendix B (`pi_logps` in its code are these sums).

    Example:
        >>> sequence_log_prob(torch.zeros(1, 3, 10), torch.tensor([[4, 0, 9]]))  # 3 log(1 / 10)
        tensor([-6.9078])
        >>> tokens, answer = torch.tensor([[7, 4, 0, 9]]), torch.tensor([[False, False, True, True]])
        >>> labels = tokens.masked_fill(~answer, -100)  # the prompt does not count
        >>> sequence_log_prob(torch.zeros(1, 4, 10)[:, :-1], labels[:, 1:])  # logits at t are of token t + 1
        tensor([-4.6052])

    Chapter: 05_dpo (eq. sequence-log-prob)
    """
    sizes = check_shapes(("logits", logits, "B T V"))
    check_some("logits", logits, 2, "token in their vocabulary")
    check_shapes(("labels", labels, "B T"), kind=INTEGER, sizes=sizes)
    check_device("labels", labels, "logits", logits)
    if mask is not None:
        check_shapes(("mask", mask, "B T"), kind=BOOL, sizes=sizes)
        check_device("mask", mask, "logits", logits)
    labels = labels.long()
    counts = labels != IGNORED if mask is None else (labels != IGNORED) & mask
    labels = labels.masked_fill(~counts, 0)
    # a compiler would unroll the loop over blocks, and needs none
    token_log_probs = plain_token_log_probs if torch.compiler.is_compiling() else TokenLogProbs.apply
    return token_log_probs(logits, labels, counts).sum(dim=1)


def plain_token_log_probs(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """log softmax of the logits at each label, 0 where it does not count: the definition. [B, T, V] -> [B, T]."""
    logits = logits.masked_fill(~counts[:, :, None], 0.0)
    log_probs = wide(logits).log_softmax(dim=2).gather(2, labels[:, :, None])[:, :, 0]
    return log_probs.masked_fill(~counts, 0.0)


class TokenLogProbs(torch.autograd.Function):
    """`plain_token_log_probs` by blocks; nothing but its arguments waits for the backward pass."""

    @staticmethod
    def forward(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        log_probs = torch.empty(labels.shape, dtype=sum_dtype(logits), device=logits.device)
        for block in blocks(logits):
            at_label = labels[block][:, :, None]
            log_probs[block] = torch.log_softmax(logits[block], 2, log_probs.dtype).gather(2, at_label)[:, :, 0]
        return log_probs.masked_fill_(~counts, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, counts = ctx.saved_tensors
        # A second derivative is wanted. torch.func.vjp enables gradients here too, but then no input requires one.
        if torch.is_grad_enabled() and logits.view_as(logits).requires_grad:
            log_probs = plain_token_log_probs(logits, labels, counts)
            return *torch.autograd.grad(log_probs, logits, upstream, create_graph=True), None, None
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        dtype = sum_dtype(logits)
        for block in blocks(logits):
            # upstream * (1 at the label - softmax), in place unless the result has to be rounded to half precision
            place = gradient[block] if logits.dtype == dtype else None
            rows = torch.softmax(logits[block], dim=2, dtype=dtype, out=place)
            rows.mul_(-upstream[block][:, :, None])
            rows.scatter_add_(2, labels[block][:, :, None], upstream[block][:, :, None])
            clear(rows, counts[block][:, :, None])
            if place is None:
                gradient[block] = rows
        return gradient, None, None

    @staticmethod
    def vmap(info: Any, axes: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        """A batch of batches is a longer batch."""
        size = info.batch_size
        batches = (
            x.expand(size, *x.shape) if axis is None else x.movedim(axis, 0)
            for x, axis in zip(inputs, axes, strict=True)
        )
        return TokenLogProbs.apply(*(x.flatten(0, 1) for x in batches)).unflatten(0, (size, -1)), 0


def clear(rows: Tensor, keep: Tensor) -> None:
    """rows.masked_fill_(~keep, 0.0) at a third of its cost: nan & 0 is 0, bit by bit, where nan * 0 is nan."""
    bits = torch.int64 if rows.dtype == torch.float64 else torch.int32
    rows.view(bits).bitwise_and_(-keep.to(bits))


def sum_dtype(logits: Tensor) -> torch.dtype:
    """The dtype of `wide` logits."""
    return wide(logits[:0]).dtype


def blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of sequences and of tokens with at most BLOCK logits (but at least one token) in each."""
    sequences, tokens, size = logits.shape
    at_once = max(1, BLOCK.get(logits.device.type, BLOCK["cpu"]) // size)
    token_step = min(max(tokens, 1), at_once)
    sequence_step = at_once // token_step
    for b in range(0, sequences, sequence_step):
        for t in range(0, tokens, token_step):
            yield slice(b, b + sequence_step), slice(t, t + token_step)


def dpo_loss(
    policy_chosen: Float[Tensor, "B"],
    policy_rejected: Float[Tensor, "B"],
    reference_chosen: Float[Tensor, "B"],
    reference_rejected: Float[Tensor, "B"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Float[Tensor, ""] | Float[Tensor, "B"]:
    r"""Direct preference optimisation: the chosen answer must gain more on the reference than the rejected.

    .. math::
        L = -(1 - \epsilon) \log \sigma(h) - \epsilon \log \sigma(-h), \qquad
        h = \beta \log \frac{\pi_\theta(y_w \mid x)}{\pi_{\mathrm{ref}}(y_w \mid x)}
            - \beta \log \frac{\pi_\theta(y_l \mid x)}{\pi_{\mathrm{ref}}(y_l \mid x)}

    Each half of h is an answer's implicit reward, ``beta * (policy - reference)``; h is their margin. The
    loss sees the margin alone: it also falls while both answers grow less likely.

    An answer may be impossible, its log-probability -inf. Under the policy alone, a rejected one costs nothing, and a
    chosen one has an infinite loss with a finite gradient. Two equal infinities have no difference: it counts as 0,
    with gradient 0, where policy and reference forbid the same answer, and where both answers gain equally infinitely.

    In TRL, ``loss_type="sigmoid"`` is this loss without smoothing: there ``label_smoothing`` belongs to other losses
    (``"robust"`` subtracts the flipped half and divides by 1 - 2 epsilon). Its ``"sigmoid_norm"`` and ``"ipo"``
    average over tokens where this loss is given sums; for averages, divide all four by their numbers of tokens.

    Args:
        policy_chosen: log pi_theta(y_w | x), summed over tokens as `sequence_log_prob` does.
        policy_rejected: log pi_theta(y_l | x).
        reference_chosen: log pi_ref(y_w | x); compute it under `torch.no_grad`.
        reference_rejected: log pi_ref(y_l | x), likewise.
        beta: > 0; the larger, the more it costs to leave the reference.
        label_smoothing: epsilon, 0 <= epsilon < 0.5, the share of pairs taken to be labelled the wrong way.
        reduction: "mean" over the pairs, "sum", or "none" for the loss of each.

    Returns:
        The loss, 0-d, or [B] with reduction "none"; float32 for half-precision inputs.

    Raises:
        ValueError: if the four differ in length or are empty, or an option is out of its range.

    Source:
        Rafailov et al. (2023), arXiv:2305.18290, eq. 7; label smoothing: Mitchell (2023), "A note on DPO with
        noisy preferences and relationship to IPO".

    Example:
        >>> policy = torch.tensor([-10.0]), torch.tensor([-20.0])
        >>> reference = torch.tensor([-12.0]), torch.tensor([-15.0])
        >>> dpo_loss(*policy, *reference, beta=0.1)
        tensor(0.4032)
        >>> [0.1 * (p - r) for p, r in zip(policy, reference)]  # the implicit rewards
        [tensor([0.2000]), tensor([-0.5000])]

    Chapter: 05_dpo (eq. dpo)
    """
    check_shapes(
        ("policy_chosen", policy_chosen, "B"),
        ("policy_rejected", policy_rejected, "B"),
        ("reference_chosen", reference_chosen, "B"),
        ("reference_rejected", reference_rejected, "B"),
    )
    check_some("policy_chosen", policy_chosen, 0, "row")
    check_number("beta", beta, above=0)
    check_number("label_smoothing", label_smoothing, least=0, below=0.5)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    gain_chosen = difference(wide(policy_chosen), wide(reference_chosen))
    gain_rejected = difference(wide(policy_rejected), wide(reference_rejected))
    margins = beta * difference(gain_chosen, gain_rejected)
    losses = -F.logsigmoid(margins)  # log(sigmoid) would be -inf from -104 on
    if label_smoothing > 0:
        losses = (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-margins)
    return reduced(losses, reduction)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b, and 0 with gradient 0 where both are the same infinity."""
    same = (a == b) & a.isinf()
    return a.masked_fill(same, 0.0) - b.masked_fill(same, 0.0)
