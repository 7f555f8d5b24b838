"""Every page and table that bustseg writes: HTML and Markdown from templates, Markdown and LaTeX tables."""
