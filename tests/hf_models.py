"""Tiny random ModernBERTs of transformers, batches in every padding, and the answer each class should give."""

import copy
import os
import random
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import transformers

from modernbert_fast import dispatch
from modernbert_fast.training import modeling

MLM = "ModernBertForMaskedLM"
VOCAB = 97
ZERO_GRADIENT = 1e-2  # of the model's largest gradient, for biases
KINDS = ("none", "right", "left", "holes", "packed")
ARCHITECTURES = (
    "ModernBertModel",
    "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
    "ModernBertForQuestionAnswering",
    "ModernBertForMultipleChoice",
)
PRETRAINING = "ModernBertForPreTraining"
EVERY = (*ARCHITECTURES, PRETRAINING)
POOLED = ("ModernBertForSequenceClassification", "ModernBertForMultipleChoice")
ROPES = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
)
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "local_attention": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


def tiny_config(**changes):
    """A config of head_dim 8 and intermediate 37 with one full and two sliding layers."""
    return transformers.ModernBertConfig(**{**TINY, **changes})


def random_config(seed, **changes):
    """A config in which everything that the architecture leaves open is drawn; every value shows up in 20 seeds."""
    draw = random.Random(seed)
    layers = draw.choice((2, 3, 4))
    types = ("full_attention", "sliding_attention")
    head_dim = (8, 32, 64, 128)[seed % 4]
    heads = draw.choice((1, 2, 3)) if head_dim < 64 else 1
    return tiny_config(
        **{
            "hidden_size": head_dim * heads,
            "num_attention_heads": heads,
            "intermediate_size": (37, 5, 64, 96, 101)[seed % 5],
            "num_hidden_layers": layers,
            "layer_types": [draw.choice(types) for _ in range(layers)],
            "rope_parameters": {
                kind: {**ROPES[(seed + shift) // 2 % 4], "rope_theta": draw.choice((20.0, 1e4, 160_000.0))}
                for shift, kind in enumerate(types)
            },
            "local_attention": (1, 5, 7, 8, 13, 16, 128)[seed % 7],
            "hidden_activation": ("gelu", "silu", "gelu", "relu", "gelu_new", "gelu_pytorch_tanh")[seed % 6],
            "classifier_activation": draw.choice(("gelu", "silu", "tanh")),
            "norm_eps": draw.choice((1e-5, 1e-3)),
            "sparse_prediction": draw.random() < 0.5,
            "num_labels": draw.choice((1, 2, 5)),
            "problem_type": draw.choice((None, "multi_label_classification")),
            **{
                flag: draw.random() < 0.5
                for flag in (
                    "attention_bias",
                    "mlp_bias",
                    "norm_bias",
                    "classifier_bias",
                    "decoder_bias",
                    "tie_word_embeddings",
                )
            },
            **changes,
        }
    )


def kind(architecture):
    """The stock class of that name."""
    return modeling.ModernBertForPreTraining if architecture == PRETRAINING else getattr(transformers, architecture)


def build(architecture, config, seed=0):
    """A stock model in eval mode whose attention is sharp and whose norms and biases are not trivial."""
    config = copy.deepcopy(config)
    if architecture == "ModernBertForQuestionAnswering":
        config.num_labels = 2
    if architecture == "ModernBertForTokenClassification" and config.num_labels == 1:
        config.num_labels = 3  # one class of one is no choice, and has no gradient
    model = kind(architecture)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * 1.2 * parameter.shape[1] ** -0.5)
    return model


@dataclass
class Batch:
    """Four texts: ids (B, S) with zeros for padding, mask (B, S) of bool, and one of KINDS."""

    kind: str
    ids: torch.Tensor
    mask: torch.Tensor
    seed: int

    @property
    def texts(self):
        """The ids of each text, without padding; the positions of "holes" do not survive this."""
        return [row[kept] for row, kept in zip(self.ids, self.mask, strict=True)]

    def inputs(self, architecture):
        """Keyword arguments of a forward call."""
        if self.kind != "packed":
            choices = architecture == "ModernBertForMultipleChoice"
            shape = (2, -1, self.ids.shape[1]) if choices else self.ids.shape
            given = {"input_ids": self.ids.view(shape)}
            if self.kind == "none" and not choices:  # of which transformers cannot take the mean without a mask
                return given
            return {**given, "attention_mask": self.mask.long().view(shape)}
        flat = torch.cat(self.texts)[None]
        return {
            "input_ids": flat[None] if architecture == "ModernBertForMultipleChoice" else flat,
            **packed_kwargs([len(text) for text in self.texts]),
        }

    def targets(self, architecture, config):
        """The labels of a forward call, and of `loss`."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        B = len(self.ids)
        if architecture in ("ModernBertForMaskedLM", "ModernBertForTokenClassification"):
            classes = VOCAB if architecture == "ModernBertForMaskedLM" else config.num_labels
            labels = torch.randint(classes, self.ids.shape, generator=generator)
            labels[torch.rand(labels.shape, generator=generator) < 0.5] = -100
            labels = labels.masked_fill(~self.mask, -100)
            return {"labels": labels[self.mask][None] if self.kind == "packed" else labels}
        if architecture == PRETRAINING:
            ways = getattr(config, "sentence_order_labels", 2)
            order = torch.randint(ways, (B,), generator=generator)
            return {**self.targets(MLM, config), "sentence_order_label": order}
        if architecture == "ModernBertForSequenceClassification":
            if config.problem_type == "multi_label_classification":
                return {"labels": torch.rand(B, config.num_labels, generator=generator)}
            if config.num_labels == 1:
                return {"labels": torch.randn(B, 1, generator=generator)}
            return {"labels": torch.randint(config.num_labels, (B,), generator=generator)}
        if architecture == "ModernBertForMultipleChoice" and self.kind != "packed":
            return {"labels": torch.randint(B // 2, (2,), generator=generator)}
        if architecture == "ModernBertForQuestionAnswering" and self.kind != "packed":
            columns = [kept.nonzero().squeeze(1) for kept in self.mask]
            return {
                name: torch.stack([c[torch.randint(len(c), (), generator=generator)] for c in columns])
                for name in ("start_positions", "end_positions")
            }
        return {}

    def rows(self, architecture, output):
        """The part of an output that counts: (T, K) at the tokens, or (B, K) of pooled texts."""
        if architecture == "ModernBertModel":
            grid = output.last_hidden_state
        elif architecture == "ModernBertForQuestionAnswering":
            grid = torch.stack([output.start_logits, output.end_logits], dim=-1)
        elif architecture == PRETRAINING:
            grid = output.prediction_logits
        elif architecture in POOLED:
            return output.logits if architecture != "ModernBertForMultipleChoice" else output.logits.reshape(-1, 1)
        else:
            grid = output.logits
        return grid[0] if self.kind == "packed" else grid[self.mask]

    def expected(self, model, architecture):
        """`rows` of a stock model: of this batch as it is, or of each text alone where padding would disturb it."""
        cls_of_padding = (
            self.kind == "left"
            and architecture == "ModernBertForSequenceClassification"
            and model.config.classifier_pooling == "cls"
        )
        if self.kind == "packed" or cls_of_padding:
            return alone(model, architecture, self.texts)
        return self.rows(architecture, model(**self.inputs(architecture)))

    def loss(self, architecture, rows, config):
        """The loss of `rows` in plain torch, as transformers defines it; of the span, over real tokens only."""
        targets = self.targets(architecture, config)
        if not targets:
            generator = torch.Generator().manual_seed(self.seed + 2)
            return F.mse_loss(rows, torch.randn(rows.shape, generator=generator))
        if architecture == "ModernBertForQuestionAnswering":
            sizes = self.mask.sum(1).tolist()
            losses = []
            for name, logits in zip(targets, rows.unbind(1), strict=True):
                for text, kept, column in zip(logits.split(sizes), self.mask, targets[name], strict=True):
                    losses.append(F.cross_entropy(text, kept[:column].sum()))
            return torch.stack(losses).mean()
        labels = targets["labels"]
        if architecture == "ModernBertForMultipleChoice":
            return F.cross_entropy(rows.view(2, -1), labels)
        if architecture == "ModernBertForSequenceClassification":
            if config.problem_type == "multi_label_classification":
                return F.binary_cross_entropy_with_logits(rows, labels)
            return F.mse_loss(rows, labels) if config.num_labels == 1 else F.cross_entropy(rows, labels)
        return F.cross_entropy(rows, labels[0] if self.kind == "packed" else labels[self.mask])


def packed_kwargs(lengths):
    """What DataCollatorWithFlattening passes beside the ids."""
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    longest = max(lengths, default=0)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def batch(kind, seed=0, S=33):
    """Four texts, one of them full, one a single token, all with the first column real except under left padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (4, S), generator=generator)
    places = torch.arange(S)
    lengths = torch.tensor([[S], [1], [S // 2], [int(torch.randint(2, S, (), generator=generator))]])
    mask = places < lengths
    if kind == "left":
        mask = mask.flip(1)
    elif kind == "holes":
        mask = (torch.rand(4, S, generator=generator) < 0.6) & (places < S - 3)
        mask[:, 0] = True
        mask[0, 5 : S // 2] = False
    elif kind == "none":
        mask = torch.ones_like(mask)
    return Batch(kind, ids.masked_fill(~mask, 0), mask, seed)


def alone(model, architecture, texts):
    """The rows of each text run by itself, without padding: what any batch of them should give."""
    rows = []
    for text in texts:
        ids = text[None, None] if architecture == "ModernBertForMultipleChoice" else text[None]
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        one = Batch("none", text[None], torch.ones(1, len(text), dtype=torch.bool), 0)
        rows.append(one.rows(architecture, output))
    return torch.cat(rows)


def relative(actual, expected, floor=1e-30):
    """Largest error, over the largest value expected or `floor`."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if actual.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(floor))


def gradients(model):
    """Every parameter's gradient by name."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gradient_error(actual, expected):
    """Largest relative error of any gradient, and whose it is; both by name."""
    assert actual.keys() == expected.keys()
    # The gradient of a bias before a softmax is zero but for rounding: biases are measured by the model's largest too.
    floor = ZERO_GRADIENT * max(float(gradient.abs().max()) for gradient in expected.values())
    return max((relative(actual[n], expected[n], floor if n.endswith("bias") else 1e-30), n) for n in expected)


def force_triton(stack):
    """Within the stack, every op that has a Triton row takes it."""
    for op, rows in dispatch.TABLE.items():
        if any(row.backend == "triton" for row in rows):
            stack.enter_context(dispatch.use_backend("triton", op))


def environment(**changes):
    """The environment of a child process that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **changes}


def right(architecture="ModernBertModel"):
    """Inputs of a right-padded batch."""
    return batch("right").inputs(architecture)


def mask():
    """The mask of that batch, (B, S) of bool."""
    return batch("right").mask
