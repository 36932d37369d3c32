"""Labels of figures."""


def percent(share: float) -> str:
    """Format a share as a percentage that rounds neither to 0% nor to 100% unless it is exact."""
    return "<1%" if 0 < share < 0.01 else ">99%" if 0.99 < share < 1 else f"{share:.0%}"
