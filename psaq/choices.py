"""The words that options choose from. What they choose is elsewhere: help on them must not wait for torch."""

from typing import Literal

TaskName = Literal["classification", "segmentation", "detection", "features"]
"""What a model may be for."""

Measure = Literal["divergence", "distance"]
"""Of disagreement: the divergence of what is told apart and relative squared errors, or V2's mean distance."""

Precision = Literal["auto", "float32", "bfloat16"]
"""Of a model's forward and backward pass; auto is bfloat16 on a GPU, float32 on a CPU."""

Heads = Literal["mean", "separate"]
"""Heads averaged into one feature per patch (the authors' way), or kept apart."""

Grid = Literal["fine", "reference"]
"""Where the density is evaluated: spacing ≤ h over all of [-1, 1], or the authors' 10 points between extremes."""

Scope = Literal["all", "matmul", "linear"]
"""Which activations are quantised beside the weights; see `psaq.quantization.model.points.SCOPES`."""

Group = Literal[32, 64, 128]
"""Inputs of a linear layer that share a scale."""

Runtime = Literal["onnxruntime", "openvino", "tensorrt"]
"""Whom an exported file is written for."""
