"""Torch modules shared by builder and worker: media tower, projector, splice, language model, sampling.

Modules are written out here, under Hugging Face's parameter names, instead of being imported from transformers: that
import takes several times as long as torch's own, and stands between a pod's start and its first answer. Parity tests
hold them to transformers' logits.
"""
