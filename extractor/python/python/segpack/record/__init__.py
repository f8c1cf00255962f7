"""Recorders: what other implementations compute, as traces for ``segpack validate PACK --reference TRACE``.

=================================  ===============================================================================
``segpack.record.transformers``    the official classes of transformers: text
``segpack.record.media``           the same, of chats with audio, images and videos
``segpack.record.speech``          the same: spoken answers, their codes and their sound
``segpack.record.server``          llama.cpp, vLLM, SGLang, and any server with OpenAI's interface
``segpack.record.vllm``            vLLM's offline class; written after its documentation, never run on vLLM
=================================  ===============================================================================

Each is a program, ``python -m segpack.record.transformers --help``, and needs what it records from, and
safetensors; Python 3.11 or later. None needs the native half of this package.
"""
