"""Fusion modules: they project the feature vectors of each slot to feature tokens of the language model's hidden size.

Shape letters: n = feature vectors of a slot in the whole micro-batch, D = size of a feature vector of the slot, H = hidden size
of the language model, T = tokens of a packed micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from emollama.data.batch import PackedFeatures
from emollama.errors import UserError

GROUP = 4  # number of neighbouring patch vectors, in raster order, that are concatenated into one
# CPU libraries multiply matrices with fewer rows by a different routine, which sums in a different order. Smaller inputs are
# padded, so that the features of a sample are bit-equal alone and in a micro-batch.
MIN_GEMM_ROWS = 4


class LinearFusion(nn.Module):
    """Five linear projections, as published with Emotion-LLaMA. The layers have the names in its checkpoints.

    Args:
        slot_dims: D of image, face, video and audio; the class token has the D of image.
        hidden_size: H.
        dropout: dropout probability on the feature tokens during training.

    Raises:
        UserError: If ``slot_dims`` does not name exactly these four slots.
    """

    # Names of the feature tokens between <video> and </video>, and of those between <feature> and </feature>.
    VIDEO_TAG = ("image",)
    FEATURE_TAG = ("face", "video", "audio", "cls")

    def __init__(self, slot_dims: Mapping[str, int], hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        if set(slot_dims) != {"image", "face", "video", "audio"}:
            names = ", ".join(sorted(slot_dims))
            raise UserError(
                f"model.slot_dims has the slots {names}, but the fusion module 'linear' expects image, face, video and audio"
            )
        self.llama_proj = nn.Linear(GROUP * slot_dims["image"], hidden_size)
        self.feats_llama_proj1 = nn.Linear(slot_dims["face"], hidden_size)
        self.feats_llama_proj2 = nn.Linear(slot_dims["video"], hidden_size)
        self.feats_llama_proj3 = nn.Linear(slot_dims["audio"], hidden_size)
        self.cls_tk_llama_proj = nn.Linear(slot_dims["image"], hidden_size)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def num_feature_tokens(counts: Mapping[str, int]) -> dict[str, int]:
        """Convert the number of a sample's feature vectors by slot to the number of feature tokens by name.

        Raises:
            ValueError: If the number of image vectors is not a multiple of four.
        """
        image = counts["image"]
        if image % GROUP:
            raise ValueError(
                f"{image} image vectors cannot be joined in groups of {GROUP}: an EVA array must contain a class token and a"
                f" multiple of {GROUP} patch vectors"
            )
        return {**counts, "image": image // GROUP}

    def forward(self, slots: Mapping[str, PackedFeatures]) -> dict[str, Tensor]:
        """Project every slot.

        Args:
            slots: slot -> feature vectors (n, D) of all samples. The number of image vectors of each sample is a multiple of
                four, so that a group never contains vectors of two samples.

        Returns:
            name of the feature tokens -> (number of feature tokens, H).
        """
        image = slots["image"].values
        # All five layers run even on empty slots, because DDP expects a gradient for each parameter on every rank.
        tokens = {
            "image": _project(self.llama_proj, image.reshape(-1, GROUP * image.shape[1])),
            "face": _project(self.feats_llama_proj1, slots["face"].values),
            "video": _project(self.feats_llama_proj2, slots["video"].values),
            "audio": _project(self.feats_llama_proj3, slots["audio"].values),
            "cls": _project(self.cls_tk_llama_proj, slots["cls"].values),
        }
        return {name: self.dropout(value) for name, value in tokens.items()}


class ImageProjection(nn.Module):
    """One linear projection of an image's feature vectors, as published with MiniGPT-4, whose checkpoints name it ``llama_proj``.

    It is not registered, because it is the only fusion module of ``arch: minigpt4``.

    Args:
        feature_dim: D.
        hidden_size: H.
        dropout: dropout probability on the feature tokens during training.
    """

    def __init__(self, feature_dim: int, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.llama_proj = nn.Linear(feature_dim, hidden_size)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def num_feature_tokens(counts: Mapping[str, int]) -> dict[str, int]:
        """Return the number of feature tokens, which equals the number of the image's feature vectors."""
        return {"image": counts["image"]}

    def forward(self, slots: Mapping[str, PackedFeatures]) -> dict[str, Tensor]:
        """Project {"image": (n, D)}, the feature vectors of all samples, to {"image": (n, H)}."""
        return {"image": self.dropout(_project(self.llama_proj, slots["image"].values))}


def _project(layer: nn.Module, vectors: Tensor) -> Tensor:
    """Apply the layer to the feature vectors (n, D), padded to at least ``MIN_GEMM_ROWS``."""
    padding = max(0, MIN_GEMM_ROWS - len(vectors))
    projected: Tensor = layer(nn.functional.pad(vectors, (0, 0, 0, padding)))
    return projected[: len(vectors)]


def place_feature_tokens(text: Tensor, ids: Tensor, tokens: Mapping[str, Tensor], first_id: int) -> Tensor:
    """Replace the embeddings at placeholder ids by feature tokens.

    Args:
        text: (T, H) embeddings of the text; the values at placeholder ids are not used.
        ids: (T,) token ids; ``first_id + j`` is the placeholder id of a feature token of the j-th entry of ``tokens``.
        tokens: name of the feature tokens -> (count, H), in the order of their placeholder ids.
        first_id: the first placeholder id, which is the number of rows of the embedding table.

    Raises:
        ValueError: If the numbers of placeholder ids and of feature tokens differ.
    """
    for index, (name, value) in enumerate(tokens.items()):
        positions = (ids == first_id + index).nonzero().squeeze(1)
        if len(positions) != len(value):
            raise ValueError(
                f"{len(positions)} placeholders for '{name}', but the fusion module returned {len(value)} feature tokens"
            )
        text = text.index_copy(0, positions, value.to(text.dtype))
    return text
