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
    broadcast,
    check_alike,
    check_count,
    check_device,
    check_flag,
    check_number,
    check_shapes,
    check_some,
    check_tensor,
)
from mathlib._similarity import HALVES, autocasts, no_autocast, wide


def attention(
    query: Float[Tensor, "... L D"],
    key: Float[Tensor, "... S D"],
    value: Float[Tensor, "... S E"],
    *,
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    return_weights: bool = False,
) -> Float[Tensor, "... L E"] | tuple[Float[Tensor, "... L E"], Float[Tensor, "... L S"]]:
    r"""Scaled dot-product attention, by torch's fused kernel unless the weights are asked for.

    .. math:: \mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{d_k}} + M\right) V

    The softmax is taken along the keys; half-precision scores and weights are float32 until the end.
    Axes before the last two (batch, heads) broadcast; there may be none.

    Grouped queries: with four axes each, key and value [B, G, S, D] may have fewer heads than query [B, H, L, D],
    a divisor of H. Head h of query then reads head h // (H / G), which the fused kernel does without a copy.

    What a mask removes cannot matter: whatever stands at a key and value that no query may attend to, or at a query
    that may attend to no key, NaN and infinity included, reaches neither the output nor a gradient (a key that several
    batches or heads share counts as attended to if it is in one of them). Where only some queries may attend to a key,
    numbers that are not finite are part of the formula, and can reach the other queries too, since 0 times NaN is NaN.

    Args:
        query: Q, L queries of D features.
        key: K, S keys of D features.
        value: V, a value of E features for every key.
        mask: M, broadcastable to [..., L, S]: boolean, True where a query may attend to a key, or added to
            the scores, in the dtype of query, where -inf forbids and finite numbers may have any size: only their
            differences within a row count. A row of which nothing is left has output, weights and gradient 0.
            A padding mask [B, S] is given as ``mask[:, None, None, :]``: as it is, it would be read as [L, S] where
            that fits.
        is_causal: query i may attend to keys 0 to i only, counted from the first query and the first key
            also when L and S differ; a mask, if given as well, forbids further ones. (To count from the last ones,
            give ``torch.ones(L, S, dtype=torch.bool).tril(S - L)`` as mask.)
        scale: what the inner products are multiplied by, > 0; None is 1 / sqrt(D).
        return_weights: also return the softmax. It then has to exist, and O(L S) memory with it.

    Returns:
        The output [..., L, E], or the pair of it and the weights [..., L, S], in the dtype of the inputs
        (under autocast, in its dtype).

    Raises:
        TypeError: if the mask is neither boolean nor of query's dtype, or an object that stands for a mask
            (`torch.nn.attention.bias`, `BlockMask`, nested tensors).
        ValueError: if shapes do not fit together, the mask does not broadcast to the scores, or D is 0.
        RuntimeError: from torch, where a gradient of the fused kernel is differentiated once more (NotImplementedError
            under forward-mode differentiation): with return_weights there are derivatives of all orders.

    Source:
        Vaswani et al. (2017), arXiv:1706.03762, eq. 1; grouped queries: Ainslie et al. (2023), arXiv:2305.13245.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> attention(x, x, x, is_causal=True)
        tensor([[1.0000, 0.0000],
                [0.3302, 0.6698]])

    Chapter: 07_attention (eq. attention)
    """
    check_shapes(("query", query, "... L D"), ("key", key, "... S D"), ("value", value, "... S E"))
    check_some("query", query, -1, "feature")
    queries, keys, sharing = query.shape[-2], key.shape[-2], queries_per_key(query, key, value)
    leading = leading_axes(query, key, value, sharing)
    if mask is not None:
        check_mask(mask, query)
        check_mask_shape(mask, (*leading, queries, keys))
    check_flag("is_causal", is_causal)
    check_flag("return_weights", return_weights)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    check_number("scale", scale, above=0)
    if is_causal and (mask is not None or return_weights):
        mask, is_causal = causal(mask, query, key), False
    asking = None
    if mask is not None:
        mask = level(torch.atleast_2d(mask), cast_dtype(query))
        asking, asked = asking_and_asked(mask)
        if sharing > 1 and asked.ndim > 1 and asked.shape[-2] > 1:
            asked = asked.unflatten(-2, (-1, sharing)).any(dim=-2)
        query, key, value = cleared(query, asking), cleared(key, asked), cleared(value, asked)
    elif is_causal:
        key, value = key[..., :queries, :], value[..., :queries, :]  # no query attends to those beyond
    if return_weights:
        return plain(query, key, value, mask, scale, leading, sharing)
    return fused(query, key, value, mask, asking, is_causal, scale, leading, sharing)


def queries_per_key(query: Tensor, key: Tensor, value: Tensor) -> int:
    """How many heads of query read each head of key and value: 1 unless queries are grouped."""
    if not query.ndim == key.ndim == value.ndim == 4:
        return 1
    heads, groups = query.shape[1], key.shape[1]
    grouped = groups == value.shape[1] and 1 < groups < heads and heads % groups == 0  # one group broadcasts
    return heads // groups if grouped else 1


def leading_axes(query: Tensor, key: Tensor, value: Tensor, sharing: int) -> torch.Size:
    """The axes before the output's last two."""
    shapes = [x.shape[:-2] for x in (query, key, value)]
    if sharing > 1:
        shapes[1:] = [torch.Size((batch, heads * sharing)) for batch, heads in shapes[1:]]
    if shapes[0] == shapes[1] == shapes[2]:  # nearly always, and axis by axis it would take ten times as long
        return shapes[0]
    leading = broadcast(*shapes)
    if leading is None:
        raise ValueError(
            "query, key and value must broadcast in all axes but the last two, or key and value have fewer heads, a "
            "divisor of query's, in four axes, were {}, {} and {}".format(*(list(x.shape) for x in (query, key, value)))
        )
    return leading


def plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, leading: torch.Size, sharing: int = 1
) -> tuple[Tensor, Tensor]:
    """The definition: output and weights."""
    dtype = cast_dtype(query)
    if sharing > 1:
        key, value = (x.repeat_interleave(sharing, dim=1) for x in (key, value))
    with no_autocast(query):
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
    if x.dtype == torch.float64 or not autocasts(x):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    asking: Tensor | None,
    is_causal: bool,
    scale: float,
    leading: torch.Size,
    sharing: int = 1,
) -> Tensor:
    """The output of torch's fused kernel, and 0 where a query may attend to nothing: asking [..., L] is False there.

    What a kernel makes of an empty row differs between kernels, one on CUDA takes the mean. So it gets a full one.
    """
    groups, grouped = leading, False
    if sharing > 1:  # which torch.compile takes for a symbol, and the kernel does not
        groups, grouped = torch.Size((leading[0], key.shape[1])), True
    query, key, value = four_axes(query, leading), four_axes(key, groups), four_axes(value, groups)
    empty = None if asking is None else ~asking[..., None]
    if mask is not None and empty is not None:
        mask = mask.masked_fill(empty, mask.dtype == torch.bool)
    if mask is not None and len(leading) > 2:
        mask = four_axes(mask, leading)
    elif mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]  # not expanded: a kernel may copy what it is given
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=grouped
    )
    output = output.reshape(*leading, *output.shape[-2:])
    return output if empty is None else output.masked_fill(empty, 0.0)


def four_axes(x: Tensor, leading: torch.Size) -> Tensor:
    """[..., L, D] as [batch, heads, L, D], a view up to four axes: all else misses torch's fused kernels."""
    if x.shape[:-2] != leading:
        x = x.expand(*leading, *x.shape[-2:])
    return x[(None,) * (4 - x.ndim)] if x.ndim < 4 else x.flatten(0, -4)


def causal(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """The mask, and True or 0 only where key j comes no later than query i, j <= i."""
    allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return allowed
    return mask & allowed if mask.dtype == torch.bool else mask.masked_fill(~allowed, -torch.inf)


def level(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive mask less each row's maximum, which changes no softmax; a boolean mask as it is.

    Beside -1e9, the scores and the logarithm of their sum, from which kernels compute gradients, are lost in float32.
    In half precision the difference is rounded. There a maximum up to 256 stays, beside which float32 keeps enough;
    beyond it what is rounded, at more than half of the maximum, is so far below that its weight is 0.
    """
    if mask.dtype == torch.bool or mask.shape[-1] == 0:
        return mask
    most = mask.detach().amax(dim=-1, keepdim=True)
    stays = most.isinf() | (most.abs() <= (256 if dtype in HALVES else 0))
    return mask - most.masked_fill(stays, 0.0)


def asking_and_asked(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which queries [..., L] may attend to a key, and which keys [..., S] a query may attend to."""
    allowed = mask if mask.dtype == torch.bool else ~mask.isneginf()
    return allowed.any(dim=-1), allowed.any(dim=-2)


def cleared(x: Tensor, used: Tensor) -> Tensor:
    """x [..., n, D] with 0 at the rows that are not used [..., n] in any of the batches and heads that share them."""
    if used.ndim >= x.ndim:
        used = used.any(dim=tuple(range(used.ndim - x.ndim + 1)))
    shared = [axis for axis in range(-2, -used.ndim - 1, -1) if x.shape[axis - 1] == 1 != used.shape[axis]]
    if shared:
        used = used.any(dim=shared, keepdim=True)
    return x.masked_fill(~used[..., None], 0.0)


def check_mask(mask: Tensor, query: Tensor) -> None:
    """Raise unless mask is a tensor of booleans or of query's dtype, on its device."""
    # Their classes, which it takes seconds to import, are asked for by name: some are tensors of memory never written.
    if type(mask).__module__.startswith(("torch.nn.attention", "torch.nested", "torch.masked")):
        raise TypeError(f"mask must be a tensor of booleans or of numbers to add, was {type(mask).__name__}")
    check_tensor("mask", mask, (BOOL, FLOATING))
    if mask.is_floating_point():
        check_alike("mask", mask, "query", query)
    check_device("mask", mask, "query", query)


def check_mask_shape(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless mask broadcasts to the shape of the scores."""
    last = shape[max(len(shape) - mask.ndim, 0) :]
    if mask.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in zip(mask.shape, last, strict=True)):
        raise ValueError(f"mask must broadcast to {list(shape)}, was {list(mask.shape)}")


class MultiHeadAttention(nn.Module):
    r"""Attention in several learned projections at once, their outputs joined by one more.

    .. math::
        \mathrm{MultiHead}(Q, K, V) = \mathrm{Concat}(\mathrm{head}_1, \ldots, \mathrm{head}_h)\, W^O

    where :math:`\mathrm{head}_i = \mathrm{Attention}(Q W_i^Q, K W_i^K, V W_i^V)`.

    Each projection also adds a bias, unless told not to. Parameters have the names, shapes and initial
    distribution of `torch.nn.MultiheadAttention`, so that either loads the other's ``state_dict``. Calling
    differs: the batch comes first, one mask stands for ``attn_mask`` and ``key_padding_mask``, its True means
    *may attend* (there it means *drop*), the weights come for each head, only if asked for, and there is no dropout.

    Built on the device "meta", or sharded, the layer has no numbers. After ``to_empty``, ``reset_parameters()`` draws
    them as construction does, for the layer, or for each of its modules that has one, in any order.

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
        self.register_parameter("in_proj_bias", nn.Parameter(torch.empty(3 * d_model)) if bias else None)
        self.out_proj = LastProjection(d_model, d_model, bias=bias)  # W^O, which draws its numbers itself
        self.draw_in_proj()

    def reset_parameters(self) -> None:
        """Draw all parameters again."""
        self.out_proj.reset_parameters()
        self.draw_in_proj()

    def draw_in_proj(self) -> None:
        """Draw all W_i^Q, W_i^K and W_i^V, and set their biases to 0."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)

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
        a batch's or the heads'. Two are refused where the batch has as many sequences as there are queries: they
        could be padding; ``mask[None, None]`` says that they are [L, S], at any size. Weights are [B, num_heads, L, S].
        Where nothing is left to attend to, all heads are 0, and the output is the last projection's bias.

        Whatever stands at a token that no query of its sequence may attend to, NaN and infinity included, reaches
        neither the other tokens' outputs nor a gradient, the parameters' included. Where key is query, it also stands
        at a query, whose output is computed; there, a number that is not finite, or above the root of the largest of
        its dtype, is read as 0.
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
            check_mask(mask, query)
            if mask.ndim not in (2, 4):
                raise ValueError(f"mask must have shape [L, S] or [B, num_heads, L, S], was {list(mask.shape)}")
            if mask.ndim == 2 and sizes["B"] > 1 and mask.shape[0] == sizes["B"] and mask.shape[1] == sizes["S"]:
                raise ValueError(
                    "mask must not be [B, S], which may mean padding or [L, S]: write mask[:, None, None, :] or "
                    f"mask[None, None], was {list(mask.shape)}"
                )
            check_mask_shape(mask, (sizes["B"], self.num_heads, sizes["L"], sizes["S"]))
        check_flag("is_causal", is_causal)
        check_flag("return_weights", return_weights)
        if is_causal and (mask is not None or return_weights):
            mask, is_causal = causal(mask, query, key), False
        asking = None
        if mask is not None:
            mask = level(mask[(None,) * (4 - mask.ndim)], cast_dtype(query))
            asking, asked = asking_and_asked(mask)
            asked = asked.any(dim=1)  # by any head
            shared = value is key
            if key is query:
                query = key = harmless(query, asked)
            else:
                key = cleared(key, asked)
            value = key if shared else cleared(value, asked)
            query = cleared(query, asking.any(dim=1))
        elif is_causal:
            key, value = key[:, : sizes["L"]], value[:, : sizes["L"]]  # no query attends to those beyond

        matrices = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, matrix, bias).unflatten(2, (self.num_heads, self.d_model // self.num_heads)).transpose(1, 2)
            for x, matrix, bias in zip((query, key, value), matrices, biases, strict=True)
        )  # [B, h, L or S, d_model / h]
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)  # another one under autocast
        scale, leading = 1 / math.sqrt(q.shape[-1]), q.shape[:2]
        if not return_weights:
            return self.joined(fused(q, k, v, mask, asking, is_causal, scale, leading))
        heads, weights = plain(q, k, v, mask, scale, leading)
        return self.joined(heads), weights

    def joined(self, heads: Tensor) -> Tensor:
        """Concat, then W^O: [B, h, L, d_model / h] -> [B, L, d_model]."""
        return self.out_proj(heads.transpose(1, 2).flatten(2))


class LastProjection(nn.Linear):
    """W^O. Its bias starts at 0 also where `reset_parameters` is called for each module of a model in turn."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def harmless(tokens: Tensor, asked: Tensor) -> Tensor:
    """Tokens [B, S, D] with 0 for numbers of which a sum of products may overflow, where no query asks [B, S]."""
    limit = math.sqrt(torch.finfo(cast_dtype(tokens)).max)
    return tokens.masked_fill(~(asked[..., None] | (tokens.detach().abs() <= limit)), 0.0)
