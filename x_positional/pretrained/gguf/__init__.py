"""GGUF files, the single-file format of llama.cpp: config, tensors and tokenizer."""
