"""The evaluation suite: published benchmarks, asked as they prescribe and scored by their rules."""
