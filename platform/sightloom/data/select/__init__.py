"""Selection: rules, exact top fractions, and the safe expressions that both are written in."""
