"""The losses in a trainer of another library, without importing it.

sentence-transformers gives a loss the tokenised columns of a data set, one dict each, and its model makes the
embeddings. This is its form with the losses of `mathlib`:

>>> import torch
>>> from mathlib import info_nce
>>> class Model(torch.nn.Embedding):  # a SentenceTransformer, as far as the loss can see
...     def forward(self, features):
...         return {"sentence_embedding": super().forward(features["input_ids"])}
>>> loss = SentenceTransformerLoss(Model.from_pretrained(torch.eye(4)), info_nce, temperature=1.0)
>>> column = {"input_ids": torch.tensor([0, 1, 2])}
>>> loss([column, column])  # log(1 + 2 / e)
tensor(0.5514)
"""

import inspect
import math
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mathlib._checks import INTEGER, check_count, check_tensor
from mathlib._distributed import gathered, world_size
from mathlib._encoding import encode_in_blocks


class SentenceTransformerLoss(nn.Module):
    r"""A loss of this package as a loss of sentence-transformers' `SentenceTransformerTrainer`.

    .. math:: L = \mathrm{loss}\bigl(f(a), f(p), [f(n_1), \ldots, f(n_N)]\bigr)

    The data set's columns are anchor, positive, and any number of negatives, in this order; f is the model. A column of
    integer labels becomes the loss's `groups`. It works inside their MatryoshkaLoss and, without block_size,
    AdaptiveLayerLoss.

    **Where the defaults differ.** `scale` of MultipleNegativesRankingLoss is 1 / temperature: its 20 is 0.05 here.
    GISTEmbedLoss is ``SentenceTransformerLoss(model, gist_embed_loss, guide=guide, temperature=0.01, lam=0.0,
    contrast_anchors=True, contrast_positives=True)``: here the temperature is 0.05, lam 1, and there are no such
    contrasts. `margin_strategy` is strategy, `gather_across_devices` gather, `mini_batch_size` of the Cached losses
    block_size. A symmetric loss is that of their two directions, each by itself. Every column is a forward pass of its
    own; they join those of the negatives, which changes what dropout draws.

    Args:
        model: f, the SentenceTransformer that is trained.
        loss: `info_nce`, `gist_embed_loss`, or a function of the same form: anchor [B, D], positive [B, D], negatives
            [B, N, D] or nothing, and its options.
        guide: another SentenceTransformer, for a loss that takes guide_anchor: frozen, set to eval mode, and run
            without gradient. If its vocabulary is another, or it reads fewer tokens, the texts are decoded and
            tokenised anew.
        block_size: texts of a column that are encoded at once, by `encode_in_blocks`; None encodes all. (That of the
            loss, rows of scores, is another: ``functools.partial(info_nce, block_size=...)``.)
        options: the loss's own. A `torch.nn.Parameter`, such as a temperature that is learned, becomes this module's:
            the trainer trains it, and `state_dict` holds it, but a saved model does not; with several processes it
            gets the mean of their gradients. `torch.nn.utils.parametrize` can keep it positive.

    Raises:
        TypeError: if the loss does not take an option, or there is a guide and it takes none, or the other way round;
            on a call, if labels are no integers.
        ValueError: if the guide shares parameters with the model; on a call, if there are fewer than two columns, or
            labels that the loss does not take, or if block_size is given where the texts have no axis of their own
            (StaticEmbedding, texts without padding) or inside AdaptiveLayerLoss.

    Source:
        Reimers and Gurevych (2019), arXiv:1908.10084, and the library's documentation of its losses.

    Example:
        >>> class Model(nn.Embedding):
        ...     def forward(self, features):
        ...         return {"sentence_embedding": super().forward(features["input_ids"])}
        >>> from mathlib import info_nce
        >>> temperature = nn.Parameter(torch.tensor(0.05))
        >>> loss = SentenceTransformerLoss(Model(10, 4), info_nce, temperature=temperature, symmetric=True)
        >>> [name for name, _ in loss.named_parameters()]
        ['temperature', 'model.weight']

    Chapter: 01_infonce (eq. info-nce-batch)
    """

    guide: Any
    tokenizer: Any

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        *,
        guide: nn.Module | None = None,
        block_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, module in (("model", model), ("guide", guide)):
            if not isinstance(module, nn.Module) and (module is not None or name == "model"):
                raise TypeError(f"{name} must be a torch.nn.Module, was {type(module).__name__}")
        if not callable(loss):
            raise TypeError(f"loss must be a function, was {type(loss).__name__}")
        if block_size is not None:
            check_count("block_size", block_size)
        signature = inspect.signature(loss)
        signature.bind_partial(**options)  # its error names the option
        guided = signature.parameters.get("guide_anchor")
        if guide is not None and guided is None:
            raise TypeError(f"guide must be None for {named(loss)}, which takes no guide_anchor, was given")
        if guide is None and guided is not None and guided.default is guided.empty:
            raise TypeError(f"guide must be given for {named(loss)}, which needs guide_anchor, was None")

        # not `self.loss`: there the library looks for another loss module
        self.function, self.takes_groups = loss, "groups" in signature.parameters
        self.model, self.guide, self.block_size = model, guide, block_size
        self.options = {}
        self.learned = [name for name, value in options.items() if isinstance(value, nn.Parameter)]
        for name, value in options.items():
            if name in self.learned:
                self.register_parameter(name, value)
            elif isinstance(value, Tensor) and value.requires_grad:
                raise TypeError(f"{name} must be a torch.nn.Parameter to be trained, was a tensor that requires grad")
            else:
                self.options[name] = value
        # the tokeniser that the guide's texts are decoded with; None if it reads the model's words
        self.tokenizer = None
        if guide is not None:
            if {id(x) for x in guide.parameters()} & {id(x) for x in model.parameters()}:
                raise ValueError("guide must share no parameter with model: it is frozen")
            guide.requires_grad_(False)
            if reads_other_words(guide, model):
                self.tokenizer = model.tokenizer
                if not hasattr(self.tokenizer, "batch_decode"):
                    was = type(self.tokenizer).__name__
                    raise TypeError(f"model must have a tokenizer that decodes, for a guide of other words, was {was}")

    def forward(self, sentence_features: Iterable[MutableMapping[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch: each column's features, and the labels if there is such a column."""
        columns = list(sentence_features)
        if len(columns) < 2:
            raise ValueError(f"sentence_features must have an anchor and a positive column, was {len(columns)}")
        given = self.options | {name: self.parameter(name) for name in self.learned}
        if labels is not None:
            check_tensor("labels", labels, (INTEGER,))
            if not self.takes_groups:
                raise ValueError(f"labels must be None for {named(self.function)}, which takes no groups, was given")
            given["groups"] = labels
        if self.guide is not None:
            self.guide.eval()  # a call of this module's train() reaches it
            # before the model writes its results into the columns
            read = [self.for_guide(column) for column in columns]
            with torch.no_grad():
                guides = [embedding(self.guide, column, self.block_size) for column in read]
            given |= zip(("guide_anchor", "guide_positive", "guide_negatives"), arranged(guides), strict=False)
        return self.function(*arranged([embedding(self.model, x, self.block_size) for x in columns]), **given)

    def for_guide(self, column: MutableMapping[str, Any]) -> dict[str, Any]:
        """The column as the guide reads it, in a dict that it may write into."""
        if self.tokenizer is None:
            return dict(column)
        ids = column["input_ids"]
        if "cu_seq_lens_q" in column:  # without padding, all texts in one row
            ids = ids[0].tensor_split(column["cu_seq_lens_q"][1:-1].tolist())
        texts = self.tokenizer.batch_decode([x.tolist() for x in ids], skip_special_tokens=True)
        device = column["input_ids"].device
        features = self.guide.preprocess(texts)
        return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in features.items()}

    def parameter(self, name: str) -> Tensor:
        """A learned option. The model is wrapped for several processes, this module is not: so the mean of theirs."""
        value: Tensor = getattr(self, name)
        if world_size() > 1 and torch.is_grad_enabled():  # pragma: no cover - distributed, no mutate block
            return gathered(value[None])[0].mean(dim=0)
        return value

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        learned = {name: getattr(self, name).tolist() for name in self.learned}
        options = {name: named(value) for name, value in self.options.items()}
        given = {"guide": self.guide, "block_size": self.block_size}
        return {"loss": named(self.function), **{k: x for k, x in given.items() if x is not None}, **options, **learned}


def reads_other_words(guide: Any, model: Any) -> bool:
    """Whether the guide must be given texts, since it does not read the model's tokens, or not as many."""
    shorter = (guide.max_seq_length or math.inf) < (model.max_seq_length or math.inf)
    return shorter or guide.tokenizer.get_vocab() != model.tokenizer.get_vocab()


def arranged(columns: Sequence[Tensor]) -> list[Tensor]:
    """Anchor, positive, and if there are any, each anchor's negatives [B, N, D]."""
    anchor, positive, *negatives = columns
    return [anchor, positive, *([torch.stack(negatives, dim=1)] if negatives else [])]


def embedding(model: nn.Module, column: MutableMapping[str, Any], block_size: int | None) -> Tensor:
    """The model's embeddings of a column [B, D]."""
    if block_size is None:
        return model(column)["sentence_embedding"]
    if "offsets" in column or "cu_seq_lens_q" in column:
        raise ValueError(f"block_size must be None where all texts stand in one row, was {block_size}")
    if any(hasattr(module.forward, "set_layer_idx") for module in model.modules()):
        raise ValueError(f"block_size must be None inside AdaptiveLayerLoss, which keeps all layers, was {block_size}")
    # MatryoshkaLoss wraps the model's forward as long as the loss is taken, and counts its calls: it wraps all blocks
    # together, since by the time that they are encoded again it is gone
    wrapper: Any = vars(model).get("forward")
    encoder = getattr(wrapper, "fn", model)

    def in_blocks(column: MutableMapping[str, Any]) -> dict[str, Tensor]:
        encoded = encode_in_blocks(lambda x: encoder(x)["sentence_embedding"], column, block_size=block_size)
        return {"sentence_embedding": encoded}

    if encoder is model:
        return in_blocks(column)["sentence_embedding"]
    wrapper.fn = in_blocks
    try:
        return model(column)["sentence_embedding"]
    finally:
        wrapper.fn = encoder


def named(value: Any) -> Any:
    """Functions, and functions with options, as they are written; anything else as it is."""
    if isinstance(value, partial):
        written = [*map(repr, value.args), *(f"{name}={x!r}" for name, x in value.keywords.items())]
        return f"{named(value.func)}({', '.join(written)})"
    if isinstance(value, (list, tuple)):
        return [named(x) for x in value]
    return getattr(value, "__name__", value)
