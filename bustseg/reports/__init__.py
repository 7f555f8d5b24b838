"""The pages and tables that bustseg writes: HTML and Markdown from templates, Markdown and LaTeX tables."""
