"""Times, machine rates, and the facts about the machine that stand beside them."""
