"""Attention: each query takes the mean of the values, weighted by how well their keys match.

The weights are the softmax of scaled inner products. A query that matches no key better than another
takes the plain mean:

>>> import torch
>>> keys, values = torch.eye(2), torch.tensor([[10.0], [20.0]])
>>> attention(torch.zeros(1, 2), keys, values)
tensor([[15.]])
>>> output, weights = attention(torch.tensor([[4.0, 0.0]]), keys, values, return_weights=True)
>>> output, weights
(tensor([[10.5581]]), tensor([[0.9442, 0.0558]]))

A mask says which keys a query may attend to, True for those it may. One that may attend to none gets 0,
with gradient 0, and not the NaN of an empty softmax:

>>> attention(torch.zeros(2, 2), keys, values, mask=torch.tensor([[False, True], [False, False]]))
tensor([[20.],
        [ 0.]])

`MultiHeadAttention` does this several times at once, each time in another learned projection.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mathlib._checks import (
    BOOL,
    FLOATING,
    check_alike,
    check_count,
    check_device,
    check_flag,
    check_number,
    check_shapes,
    check_some,
    check_tensor,
)
from mathlib._similarity import wide

MASKS = (BOOL, FLOATING)


def attention(
    query: Float[Tensor, "*#batch L D"],
    key: Float[Tensor, "*#batch S D"],
    value: Float[Tensor, "*#batch S E"],
    *,
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    return_weights: bool = False,
) -> Float[Tensor, "*batch L E"] | tuple[Float[Tensor, "*batch L E"], Float[Tensor, "*batch L S"]]:
    r"""Scaled dot-product attention, by torch's fused kernel unless the weights are asked for.

    .. math:: \mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{d_k}} + M\right) V

    The softmax is taken along the keys; half-precision scores and weights are float32 until the end.
    Axes before the last two (batch, heads) broadcast; there may be none.

    Args:
        query: Q, L queries of D features.
        key: K, S keys of D features.
        value: V, a value of E features for every key.
        mask: M, broadcastable to [..., L, S]: boolean, True where a query may attend to a key, or added to
            the scores, in the dtype of query, where -inf forbids. A row of which nothing is left has
            output, weights and gradient 0.
        is_causal: query i may attend to keys 0 to i only, counted from the first query and the first key
            also when L and S differ; a mask, if given as well, forbids further ones.
        scale: what the inner products are multiplied by, > 0; None is 1 / sqrt(D).
        return_weights: also return the softmax. It then has to exist, and O(L S) memory with it.

    Returns:
        The output [..., L, E], or the pair of it and the weights [..., L, S], in the dtype of the inputs
        (under autocast, in its dtype).

    Raises:
        TypeError: if the mask is neither boolean nor of query's dtype.
        ValueError: if shapes do not fit together, the mask does not broadcast to the scores, or D is 0.

    Source:
        Vaswani et al. (2017), arXiv:1706.03762, eq. 1.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> attention(x, x, x, is_causal=True)
        tensor([[1.0000, 0.0000],
                [0.3302, 0.6698]])

    Chapter: 07_attention (eq. attention)
    """
    check_shapes(("query", query, "... L D"), ("key", key, "... S D"), ("value", value, "... S E"))
    check_some("query", query, -1, "feature")
    try:
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    except RuntimeError:
        shapes = [list(x.shape) for x in (query, key, value)]
        raise ValueError(
            "query, key and value must broadcast in all axes but the last two, were {}, {} and {}".format(*shapes)
        ) from None
    if mask is not None:
        check_mask(mask, query, (*leading, query.shape[-2], key.shape[-2]))
    check_flag("is_causal", is_causal)
    check_flag("return_weights", return_weights)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    check_number("scale", scale, above=0)
    if is_causal and (mask is not None or return_weights):
        mask, is_causal = causal(mask, query, key), False
    if return_weights:
        return plain(query, key, value, mask, scale, leading)
    return fused(query, key, value, mask, is_causal, scale, leading)


def plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, leading: torch.Size
) -> tuple[Tensor, Tensor]:
    """The definition: output and weights."""
    dtype = cast_dtype(query)
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (wide(x.to(dtype)) for x in (query, key, value))
        scores = (query * scale) @ key.mT  # [..., L, S]
        if mask is None:
            weights = scores.softmax(dim=-1)
        else:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(dtype)
            # autograd of softmax gives NaN where a whole row is -inf
            dead = scores.isneginf().all(dim=-1, keepdim=True)
            weights = scores.masked_fill(dead, 0.0).softmax(dim=-1).masked_fill(dead, 0.0)
        weights = weights.expand(*leading, *weights.shape[-2:])
        return (weights @ value).to(dtype), weights.to(dtype)


def cast_dtype(x: Tensor) -> torch.dtype:
    """What autocast, if it is on, makes of x in a matrix product and in the fused kernel."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float, leading: torch.Size
) -> Tensor:
    """The output of torch's fused kernel, which gives 0 and gradient 0 to rows that may attend to nothing."""
    query, key, value = (four_axes(x, leading) for x in (query, key, value))
    if mask is not None and len(leading) > 2:
        mask = four_axes(torch.atleast_2d(mask), leading)
    elif mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]  # not expanded: a kernel may copy what it is given
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale)
    return output.reshape(*leading, *output.shape[-2:])


def four_axes(x: Tensor, leading: torch.Size) -> Tensor:
    """[..., L, D] as [batch, heads, L, D], a view up to four axes: all else misses torch's fused kernels."""
    x = x.expand(*leading, *x.shape[-2:])
    return x[(None,) * (4 - x.ndim)] if x.ndim < 4 else x.flatten(0, -4)


def causal(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """The mask, and True or 0 only where key j comes no later than query i, j <= i."""
    allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return allowed
    return mask & allowed if mask.dtype == torch.bool else mask.masked_fill(~allowed, -torch.inf)


def check_mask(mask: Tensor, query: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless mask is boolean or of query's dtype, on its device, and broadcasts to the shape of the scores."""
    check_tensor("mask", mask, MASKS)
    if mask.is_floating_point():
        check_alike("mask", mask, "query", query)
    check_device("mask", mask, "query", query)
    fits = [size in (1, wanted) for size, wanted in zip(mask.shape[::-1], shape[::-1], strict=False)]
    if mask.ndim > len(shape) or not all(fits):
        raise ValueError(f"mask must broadcast to {list(shape)}, was {list(mask.shape)}")


class MultiHeadAttention(nn.Module):
    r"""Attention in several learned projections at once, their outputs joined by one more.

    .. math::
        \mathrm{MultiHead}(Q, K, V) = \mathrm{Concat}(\mathrm{head}_1, \ldots, \mathrm{head}_h)\, W^O

    where :math:`\mathrm{head}_i = \mathrm{Attention}(Q W_i^Q, K W_i^K, V W_i^V)`.

    Each projection also adds a bias, unless told not to. Parameters have the names, shapes and initial
    distribution of `torch.nn.MultiheadAttention`, so that either loads the other's ``state_dict``. Calling
    differs in three ways: the batch comes first, a boolean mask's True means *may attend* (there it means
    *drop*), and the weights come for each head, only if asked for.

    Args:
        d_model: features of the inputs and of the output, >= 1, a multiple of num_heads.
        num_heads: h >= 1; each head has d_model / h features.
        bias: whether the projections add a bias.

    Raises:
        ValueError: if d_model is not a multiple of num_heads.

    Source:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.2.

    Example:
        >>> layer, tokens = MultiHeadAttention(8, 2), torch.zeros(3, 5, 8)
        >>> padding = torch.tensor([5, 2, 4])[:, None] > torch.arange(5)  # True: a token, False: padding
        >>> layer(tokens, mask=padding[:, None, None, :]).shape
        torch.Size([3, 5, 8])

    Chapter: 07_attention (eq. multi-head)
    """

    in_proj_bias: nn.Parameter | None

    def __init__(self, d_model: int, num_heads: int, *, bias: bool = True) -> None:
        super().__init__()
        check_count("d_model", d_model)
        check_count("num_heads", num_heads)
        if d_model % num_heads:
            raise ValueError(f"d_model must be a multiple of num_heads, {num_heads}, was {d_model}")
        check_flag("bias", bias)
        self.d_model, self.num_heads = d_model, num_heads
        # the rows of all W_i^Q, then of all W_i^K, then of all W_i^V
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * d_model)) if bias else None)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)  # W^O
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "B L d_model"],
        key: Float[Tensor, "B S d_model"] | None = None,
        value: Float[Tensor, "B S d_model"] | None = None,
        *,
        mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
        is_causal: bool = False,
        return_weights: bool = False,
    ) -> Float[Tensor, "B L d_model"] | tuple[Float[Tensor, "B L d_model"], Float[Tensor, "B h L S"]]:
        """MultiHead(query, key, value); key is query and value is key where they are not given.

        The mask, as in `attention`, is [L, S] or [B, num_heads, L, S], and each axis may be 1 instead: a
        mask of padding [B, S] enters as ``padding[:, None, None, :]``. Three axes are refused: they could be
        a batch's or the heads'. Weights are [B, num_heads, L, S]. Where nothing is left to attend to,
        all heads are 0, and the output is the last projection's bias.
        """
        if key is None and value is not None:
            raise ValueError("key must be given when value is given")
        key = query if key is None else key
        value = key if value is None else value
        sizes = check_shapes(
            ("query", query, "B L d_model"),
            ("key", key, "B S d_model"),
            ("value", value, "B S d_model"),
            sizes={"d_model": self.d_model},
        )
        if (query.device, cast_dtype(query)) != (self.in_proj_weight.device, cast_dtype(self.in_proj_weight)):
            check_alike("query", query, "the parameters", self.in_proj_weight)
        if mask is not None:
            check_mask(mask, query, (sizes["B"], self.num_heads, sizes["L"], sizes["S"]))
            if mask.ndim not in (2, 4):
                raise ValueError(f"mask must have shape [L, S] or [B, num_heads, L, S], was {list(mask.shape)}")

        matrices = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, matrix, bias).unflatten(2, (self.num_heads, self.d_model // self.num_heads)).transpose(1, 2)
            for x, matrix, bias in zip((query, key, value), matrices, biases, strict=True)
        )  # [B, h, L or S, d_model / h]
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)  # another one under autocast
        attended = attention(q, k, v, mask=mask, is_causal=is_causal, return_weights=return_weights)
        heads, weights = attended if isinstance(attended, tuple) else (attended, None)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))  # Concat, then W^O
        return output if weights is None else (output, weights)
