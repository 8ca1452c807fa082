"""Prompts through a language model and an SAE, to activations.

    prompts         the fixed list of prompts; prompt_files, prompt_hub: rows of files and hubs; texts: their values
    weights         models and SAEs from folders and hubs; model_sizes: their widths without weights
    encoders        language model and SAE together, cut at the hook; patched: whole, and changed there;
                    directions: what the SAE writes and the model reads of it
    activation_files   activations that others wrote, as rows: array_files, group_files, latent_files by their kind;
                    row_readers reads them, row_places says which prompt, position and token they are
    extract_shard   the activations of one shard of prompts

May import: the vocabulary, `hardware`, `storage` and `compute`.
"""
