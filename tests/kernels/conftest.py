"""Without a GPU, Triton kernels run in these tests under Triton's interpreter; it must be chosen before they load."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
