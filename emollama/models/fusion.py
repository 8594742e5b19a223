"""Fusion: raw feature rows by slot -> rows of the LLM's width by placeholder.

Letters: n rows of a slot over all clips of the micro-batch, D its width, H the LLM's width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from emollama.data.batch import PackedFeatures
from emollama.errors import UserError

GROUP = 4  # neighbouring image rows that are joined into one, in raster order
STEADY_ROWS = 4  # CPU libraries multiply fewer rows than this by another routine, which sums in another order


class LinearFusion(nn.Module):
    """Five linear projections, as published with Emotion-LLaMA (the names of the layers are those of its checkpoints).

    Args:
        slot_dims: D of image, face, video and audio; the class row shares the image's.
        width: H.
        dropout: probability of dropping a component of an emitted row, in training.

    Raises:
        UserError: ``slot_dims`` names other slots than these four.
    """

    VIDEO = ("image",)
    FEATURE = ("face", "video", "audio", "cls")

    def __init__(self, slot_dims: Mapping[str, int], width: int, dropout: float = 0.0) -> None:
        super().__init__()
        if set(slot_dims) != {"image", "face", "video", "audio"}:
            names = ", ".join(sorted(slot_dims))
            raise UserError(f"model.slot_dims names {names}; the fusion 'linear' takes image, face, video and audio")
        self.llama_proj = nn.Linear(GROUP * slot_dims["image"], width)
        self.feats_llama_proj1 = nn.Linear(slot_dims["face"], width)
        self.feats_llama_proj2 = nn.Linear(slot_dims["video"], width)
        self.feats_llama_proj3 = nn.Linear(slot_dims["audio"], width)
        self.cls_tk_llama_proj = nn.Linear(slot_dims["image"], width)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def num_tokens(counts: Mapping[str, int]) -> dict[str, int]:
        """Raw rows of one clip by slot -> rows emitted by placeholder.

        Raises:
            ValueError: image rows that cannot be grouped by four.
        """
        image = counts["image"]
        if image % GROUP:
            raise ValueError(f"{image} image rows do not group by {GROUP}: an EVA cache holds 1 + a multiple of {GROUP} rows")
        return {**counts, "image": image // GROUP}

    def forward(self, slots: Mapping[str, PackedFeatures]) -> dict[str, Tensor]:
        """Project every slot; all five layers run even on 0 rows, so that each has a gradient on every rank.

        Args:
            slots: slot -> rows (n, D) of all clips, joined. Each clip's image rows are a multiple of four, so that groups
                never straddle clips.

        Returns:
            placeholder -> (rows emitted, H).
        """
        image = slots["image"].values
        rows = {
            "image": _project(self.llama_proj, image.reshape(-1, GROUP * image.shape[1])),
            "face": _project(self.feats_llama_proj1, slots["face"].values),
            "video": _project(self.feats_llama_proj2, slots["video"].values),
            "audio": _project(self.feats_llama_proj3, slots["audio"].values),
            "cls": _project(self.cls_tk_llama_proj, slots["cls"].values),
        }
        return {name: self.dropout(value) for name, value in rows.items()}


class ImageProjection(nn.Module):
    """One linear projection of an image's rows, as published with MiniGPT-4 (``llama_proj`` is the layer's name there).

    It is no choice of a YAML file, and not registered: the model is that projection.

    Args:
        rows_width: D.
        width: H.
        dropout: probability of dropping a component of an emitted row, in training.
    """

    VIDEO = ("image",)
    FEATURE = ()

    def __init__(self, rows_width: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.llama_proj = nn.Linear(rows_width, width)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def num_tokens(counts: Mapping[str, int]) -> dict[str, int]:
        """Raw rows of one clip by slot -> rows emitted by placeholder: as many."""
        return {"image": counts["image"]}

    def forward(self, slots: Mapping[str, PackedFeatures]) -> dict[str, Tensor]:
        """{"image": rows (n, D) of all clips, joined} -> {"image": (n, H)}."""
        return {"image": self.dropout(_project(self.llama_proj, slots["image"].values))}


def _project(layer: nn.Module, rows: Tensor) -> Tensor:
    """The layer on at least ``STEADY_ROWS`` rows, so that a clip's rows do not depend on its micro-batch to the last bit."""
    lacking = max(0, STEADY_ROWS - len(rows))
    projected: Tensor = layer(nn.functional.pad(rows, (0, 0, 0, lacking)))
    return projected[: len(rows)]


def place_feature_tokens(text: Tensor, ids: Tensor, rows: Mapping[str, Tensor], first_id: int) -> Tensor:
    """Put the emitted rows where their placeholders stand.

    Args:
        text: (T, H) rows of the embedding table (anything at placeholders).
        ids: (T,) ids; ``first_id + j`` stands for a row of the j-th placeholder of ``rows``.
        rows: placeholder -> (count, H), in the order of the ids.
        first_id: the embedding table's row count.

    Raises:
        ValueError: the ids ask for another number of rows than there are, with both numbers.
    """
    for index, (name, value) in enumerate(rows.items()):
        places = (ids == first_id + index).nonzero().squeeze(1)
        if len(places) != len(value):
            raise ValueError(f"{len(places)} placeholders for '{name}', but {len(value)} rows from the fusion module")
        text = text.index_copy(0, places, value.to(text.dtype))
    return text
