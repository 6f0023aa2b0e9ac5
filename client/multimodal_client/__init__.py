"""Ask a served model questions, from Python and from the command line."""

from multimodal_client.client import Client
from multimodal_client.nemo import NemoQueryMultimodal

__all__ = ["Client", "NemoQueryMultimodal"]
