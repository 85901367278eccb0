"""Between people and tokens: chat templates, tokenizers, pictures and the parsing of replies."""
