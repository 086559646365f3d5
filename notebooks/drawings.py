"""The schematic drawings of the lessons, made of boxes, arrows and text, in the style of lesson.py."""

NAMES = ("machine", "block", "heads", "mask", "shift", "windows", "micro_batches", "cache", "loop")


def make(name):
    """-> the figure of that name, and its description for those who cannot see it."""
    import lesson

    if name not in NAMES:
        raise ValueError(f"no drawing is called {name!r}; there are {NAMES}")
    fig, ax = lesson.figure(height=1)
    ax.axis("off")
    ax.text(0.5, 0.5, f"{name}: this drawing is being made", ha="center")
    return fig, f"{name}: this drawing is being made."
