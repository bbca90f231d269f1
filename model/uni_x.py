"""The training model: embedding, a block of layers of several kinds, one LM head over text ids and image tokens."""

from __future__ import annotations

import torch
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.transformer_block import TransformerBlock, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from model import loss
from model.config import ModelConfig
from model.layer_kinds import KINDS, SEPARATED_ORDER
from model.layer_specs import block_submodules
from model.routing import RowRouting


class UniXTrainingModel(LanguageModule):
    """A pipeline stage of the decoder; with one stage it is the whole model.

    Rows enter in separated order. Hidden states leave in the order of the last layer; the head looks up those that have
    a target there, so no activation is put back.
    """

    def __init__(
        self,
        config: ModelConfig,
        transformer: TransformerConfig,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ):
        super().__init__(config=transformer)
        self.model_config = config
        self.model_type = ModelType.encoder_or_decoder  # read by megatron-core's schedules
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = config.tie_word_embeddings
        if pre_process:
            self.embedding = LanguageModelEmbedding(
                config=transformer,
                vocab_size=config.vocab_size,
                max_sequence_length=config.max_position_embeddings,
                position_embedding_type="rope",
            )
            # With sequence parallelism megatron-core draws this dropout from a generator of its own, which no row seeds.
            self.embedding.embedding_dropout = torch.nn.Identity()
        self.decoder = TransformerBlock(
            config=transformer,
            spec=block_submodules(
                config, transformer, get_num_layers_to_build(transformer, vp_stage=vp_stage), vp_stage=vp_stage
            ),
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
        )
        if post_process:
            self.output_layer = ColumnParallelLinear(
                config.hidden_size,
                config.vocab_size,
                config=transformer,
                init_method=transformer.init_method,
                bias=False,
                skip_bias_add=False,
                gather_output=False,
                skip_weight_param_allocation=pre_process and config.tie_word_embeddings,
            )
        if pre_process or post_process:
            self.setup_embeddings_and_output_layer()

    @property
    def first_order(self) -> str:
        """Token order of the first layer's input."""
        return KINDS[self.model_config.layer_kinds[0]].order_wanted

    @property
    def last_order(self) -> str:
        """Token order of hidden states, logits and losses after the last layer."""
        return KINDS[self.model_config.layer_kinds[-1]].order_left

    def set_input_tensor(self, input_tensor) -> None:
        """Called by megatron-core's schedules with the output of the previous stage."""
        self.decoder.set_input_tensor(input_tensor[0] if isinstance(input_tensor, list) else input_tensor)

    def output_weight(self) -> Tensor:
        """LM head weight [vocab, h]: the embedding's when they are tied."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight

    def hidden_states(self, ids: Tensor, routing: RowRouting) -> Tensor:
        """ids [S] in separated order -> [S(/tp), 1, h], after the final norm on the last stage, in `last_order`."""
        embedded = None
        if self.pre_process:
            embedded = self.embedding(input_ids=routing.enter(ids, self.first_order)[None], position_ids=None)
            routing.seed_dropout("embedding")
            embedded = torch.nn.functional.dropout(embedded, self.config.hidden_dropout, self.training)
        return self.decoder(hidden_states=embedded, attention_mask=None, packed_seq_params=routing)

    def logits(self, ids: Tensor, routing: RowRouting) -> Tensor:
        """ids [S] in separated order -> full logits [S, vocab] in separated order: for one process and small models."""
        hidden = self.hidden_states(ids, routing).squeeze(1)
        if self.last_order != SEPARATED_ORDER:
            hidden = routing.reorder(hidden, SEPARATED_ORDER)
        return torch.nn.functional.linear(hidden, self.output_weight())

    def forward(
        self, ids: Tensor, labels: Tensor, targets: Tensor, routing: RowRouting, image_weight: float | None = None
    ) -> tuple[Tensor, ...] | Tensor:
        """ids, labels [S] in separated order -> (losses [T] float32 of the tokens `targets` [T], their labels [T]).

        With `image_weight` (training) -> (losses, labels, their sum in which picture codes count by it): the sum alone has
        a gradient. Prompts and padding have no target: the head, a good part of a small model, is spared for them. A
        stage that is not the last returns its hidden states [S(/tp), 1, h] instead.
        """
        hidden = self.hidden_states(ids, routing)
        if not self.post_process:
            return hidden
        if self.config.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(
                hidden
            )  # backward: summed over the vocabulary
        else:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        hidden = hidden.squeeze(1).index_select(0, routing.place(targets, self.last_order))
        labels = labels[targets]
        if image_weight is None:
            return loss.token_losses(hidden, self.output_weight(), labels), labels
        factors = None
        if image_weight != 1:
            is_code = self.model_config.vocabulary.is_code(labels)
            factors = torch.where(is_code, image_weight, 1.0).float()
        total, losses = loss.weighted_loss(hidden, self.output_weight(), labels, factors)
        return losses, labels, total
