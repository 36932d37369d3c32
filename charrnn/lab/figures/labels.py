"""How figures write characters and numbers."""


def percent(share: float) -> str:
    """A share as a percentage; what would round to nothing or to everything is not called that."""
    return "<1%" if 0 < share < 0.01 else ">99%" if 0.99 < share < 1 else f"{share:.0%}"
