"""Many requests, one compiled loop.

Reading order: `ticket` (what is asked for, what has become of it), `slots` (the state of the loop
and the programs that change it), `engine` (who gets a slot, and when). No web in any of them.
"""
