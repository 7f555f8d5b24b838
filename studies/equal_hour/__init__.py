"""What one core achieves in one hour: bustseg's recipe, and other tools that a laptop user might choose."""
