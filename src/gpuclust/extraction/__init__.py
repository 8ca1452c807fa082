"""Prompts through a language model and an SAE, to activations.

    prompts         the fixed list of prompts; prompt_files, prompt_hub: rows of files and hubs; texts: their values
    weights         models and SAEs from folders and hubs; model_sizes: their widths without weights
    encoders        language model and SAE together, cut at the hook
    extract_shard   the activations of one shard of prompts

May import: the vocabulary, `hardware`, `storage` and `compute`.
"""
