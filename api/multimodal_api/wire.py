"""Triton's tensors, as NeMo's exporter and `NemoQueryMultimodal` name them (NeMo 2.1 to 2.4, Export-Deploy to 0.4)."""

from __future__ import annotations

from typing import Final, NamedTuple


class Tensor(NamedTuple):
    """One input or output of the Triton model."""

    name: str
    datatype: str
    """KServe v2 name."""
    shape: tuple[int, ...]
    """Without the batch dimension; -1 is any size."""
    optional: bool = False


INPUT_TEXT: Final = Tensor("input_text", "BYTES", (-1,))
INPUT_MEDIA: Final = Tensor("input_media", "UINT8", (-1, -1, -1, 3))
"""Raw RGB frames: one for a picture."""
INPUT_SIGNAL: Final = Tensor("input_signal", "FP32", (-1,))
INPUT_SIGNAL_LENGTH: Final = Tensor("input_signal_length", "INT32", (1,))

BATCH_SIZE: Final = Tensor("batch_size", "INT64", (-1,), optional=True)
MAX_OUTPUT_LEN: Final = Tensor("max_output_len", "INT64", (-1,), optional=True)
TOP_K: Final = Tensor("top_k", "INT64", (-1,), optional=True)
TOP_P: Final = Tensor("top_p", "FP32", (-1,), optional=True)
TEMPERATURE: Final = Tensor("temperature", "FP32", (-1,), optional=True)
REPETITION_PENALTY: Final = Tensor("repetition_penalty", "FP32", (-1,), optional=True)
NUM_BEAMS: Final = Tensor("num_beams", "INT64", (-1,), optional=True)
LORA_UIDS: Final = Tensor("lora_uids", "BYTES", (-1,), optional=True)

OUTPUTS: Final = Tensor("outputs", "BYTES", (-1,))

STREAM_SUFFIX: Final = "-stream"
"""Behind the model's name it is the name of the same model that answers in pieces (decoupled, in Triton's words)."""

SAMPLE_RATE: Final = 16_000
"""Of `INPUT_SIGNAL`, in Hz; one channel, full scale -1 to 1."""
GRPC_CONNECTION_SECONDS: Final = 5
"""So often the server asks a client of gRPC to connect anew, between requests: that leads to a pod that stays."""

OPTIONS: Final = (
    BATCH_SIZE,
    MAX_OUTPUT_LEN,
    TOP_K,
    TOP_P,
    TEMPERATURE,
    REPETITION_PENALTY,
    NUM_BEAMS,
    LORA_UIDS,
)

VISION_INPUTS: Final = (INPUT_TEXT, INPUT_MEDIA, *OPTIONS)
AUDIO_INPUTS: Final = (INPUT_TEXT, INPUT_SIGNAL, INPUT_SIGNAL_LENGTH, *OPTIONS)

DEFAULT_MAX_OUTPUT_LEN: Final = 30
"""Of the library and of `forward`; the query script's own default is 128."""
DEFAULT_TOP_K: Final = 1
DEFAULT_TOP_P: Final = 0.0
DEFAULT_TEMPERATURE: Final = 1.0
DEFAULT_REPETITION_PENALTY: Final = 1.0

ERROR_PREFIX: Final = "An error occurred: "
"""What NeMo's server put in place of an answer; ours never does, our client still recognises it."""
