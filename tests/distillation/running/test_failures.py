import pytest
import torch

from g2l_plugin.distillation.running.failures import explain
from g2l_plugin.errors import UserError

_RESUMES = r"same command again: it resumes from the last checkpoint \(`resume: auto`\)"
_ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", RuntimeError)
_ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be "
    "asynchronously reported at some other API call.\nCompile with `TORCH_USE_CUDA_DSA`"
)
_DUPLICATE = (
    "NCCL error in: NCCLUtils.cpp:77, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL "
    "version 2.27.7\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast "
    "error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 4000"
)
_PEER = (
    "NCCL error in: ProcessGroupNCCL.cpp:3699, remote process exited or there was a network error, "
    "NCCL version 2.27.7\nncclRemoteError: A call failed possibly due to a network error"
)
_DIST_ERROR = torch.distributed.DistBackendError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_ACCELERATOR_ERROR(_ILLEGAL), "GPU failed: CUDA error: an illegal .* encountered. Run"),
        (RuntimeError(_ILLEGAL), "CUDA_LAUNCH_BLOCKING=1.*nvidia-smi"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `f()`"), "CUBLAS"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "CUDNN.*g2l doctor"),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR"), "CUSOLVER"),
        (_DIST_ERROR(_DUPLICATE), "cannot talk to each other: NCCL error.*NCCL_DEBUG=INFO"),
        (RuntimeError(_DUPLICATE), "NCCL_DEBUG=INFO.*driver"),
        (_DIST_ERROR(_PEER), "Another device of the run has ended"),
        (torch.distributed.DistError("Timed out"), "Another device of the run has ended"),
    ],
)
def test_a_failure_of_a_device_says_in_one_line_what_to_check_and_that_the_run_resumes(error, said):
    message = explain(error, 2)
    assert "\n" not in message and len(message) < 600
    with pytest.raises(UserError, match=f"{said}"):
        raise UserError(message)
    with pytest.raises(UserError, match=_RESUMES):
        raise UserError(message)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        _ACCELERATOR_ERROR("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_full_memory_of_a_device_is_told_from_other_failures(error):
    assert "memory is full" in explain(error, 1) and "MICRO_BATCH_SIZE" in explain(error, 1)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("CUDA error"),
        UserError("The GPU failed: CUDA error: of a library, explained before."),
    ],
)
def test_other_errors_keep_their_traceback(error):
    assert explain(error, 2) is None
